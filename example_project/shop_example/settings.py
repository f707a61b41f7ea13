"""Settings of the example. ADDONS is the only one that concerns the request queue."""

BOT_NAME = "shop_example"

SPIDER_MODULES = ["shop_example.spiders"]
NEWSPIDER_MODULE = "shop_example.spiders"

ADDONS = {"scrapy_apify_rq.Addon": 500}

# The example serves the shop itself, unless SHOP_URL names a shop that runs elsewhere.
EXTENSIONS = {"shop_example.extension.ShopExtension": 500}
SHOP_PORT = 8765

ROBOTSTXT_OBEY = True
LOG_LEVEL = "INFO"
TELNETCONSOLE_ENABLED = False

FEEDS = {"items.jsonl": {"format": "jsonlines", "overwrite": True}}
