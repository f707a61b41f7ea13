"""Crawls a Scrapy project as an Actor, the way the guide of Apify's SDK has it."""

import os

os.environ["SCRAPY_SETTINGS_MODULE"] = "project.settings"

from apify.scrapy import run_scrapy_actor


async def main() -> None:
    from apify import Actor
    from apify.scrapy import apply_apify_settings
    from scrapy.crawler import AsyncCrawlerRunner

    async with Actor:
        await AsyncCrawlerRunner(apply_apify_settings()).crawl("spider")


run_scrapy_actor(main())
