"""A project of the form that Apify's template for Scrapy has, in our own words."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FILES: Final = {
    "scrapy.cfg": "[settings]\ndefault = src.settings\n\n",
    "requirements.txt": "apify[scrapy] >= 4.0, < 5.0\nscrapy\n",
    ".actor/Dockerfile": """FROM apify/actor-python:3.13
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY . ./
CMD ["python3", "-m", "src"]
""",
    "src/__init__.py": "",
    "src/__main__.py": """import os

from apify.scrapy import initialize_logging, run_scrapy_actor

from .main import main

os.environ["SCRAPY_SETTINGS_MODULE"] = "src.settings"

if __name__ == "__main__":
    initialize_logging()
    run_scrapy_actor(main())
""",
    "src/main.py": """from apify import Actor
from apify.scrapy import apply_apify_settings
from scrapy.crawler import AsyncCrawlerRunner

from .spiders import TitleSpider


async def main():
    async with Actor:
        given = await Actor.get_input() or {}
        settings = apply_apify_settings(proxy_config=given.get("proxyConfiguration"))
        await AsyncCrawlerRunner(settings).crawl(
            TitleSpider,
            start_urls=[start["url"] for start in given.get("startUrls", [])],
            allowed_domains=given.get("allowedDomains"),
        )
""",
    "src/settings.py": """BOT_NAME = "titlebot"
DEPTH_LIMIT = 1
LOG_LEVEL = "INFO"
SPIDER_MODULES = ["src.spiders"]
ROBOTSTXT_OBEY = False
TELNETCONSOLE_ENABLED = False
TWISTED_REACTOR = "twisted.internet.asyncioreactor.AsyncioSelectorReactor"
HTTPCACHE_ENABLED = True
HTTPCACHE_EXPIRATION_SECS = 7200
ITEM_PIPELINES = {"src.pipelines.TitlePipeline": 123}
""",
    "src/items.py": """import scrapy


class TitleItem(scrapy.Item):
    url = scrapy.Field()
    title = scrapy.Field()
""",
    "src/pipelines.py": """class TitlePipeline:
    def process_item(self, item):
        return item
""",
    "src/spiders/__init__.py": "from .title import TitleSpider\n",
    "src/spiders/title.py": """from apify import Actor
import scrapy

from ..items import TitleItem


class TitleSpider(scrapy.Spider):
    name = "title_spider"

    def __init__(self, start_urls, allowed_domains, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start_urls = start_urls
        self.allowed_domains = allowed_domains

    def parse(self, response):
        Actor.log.info(f"Reading {response.url}")
        yield TitleItem(url=response.url, title=response.css("title::text").get())
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, self.parse)
""",
}


def make_template_project(folder: Path) -> None:
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
