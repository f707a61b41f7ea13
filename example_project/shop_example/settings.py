"""Settings of the example; ADDONS is the only line that has to do with the request queue."""

BOT_NAME = "shop_example"

SPIDER_MODULES = ["shop_example.spiders"]
NEWSPIDER_MODULE = "shop_example.spiders"

ADDONS = {"scrapy_apify_rq.Addon": 500}

# The shop comes with the example. SHOP_URL, where it is set, names one that runs elsewhere.
EXTENSIONS = {"shop_example.extension.ShopExtension": 500}
SHOP_PORT = 8765

ROBOTSTXT_OBEY = True
LOG_LEVEL = "INFO"
TELNETCONSOLE_ENABLED = False

# Not FEEDS, whose file is buffered: see the pipeline.
ITEM_PIPELINES = {
    "shop_example.pipelines.JsonLinesPipeline": 500,
    "shop_example.pipelines.DatasetPipeline": 600,
}
SHOP_ITEMS = "items.jsonl"
