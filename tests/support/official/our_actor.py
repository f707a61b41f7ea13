"""Crawls a project of the tests as an Actor of Apify's SDK, with our scheduler."""

import os

os.environ["SCRAPY_SETTINGS_MODULE"] = "settings"

from apify.scrapy import run_scrapy_actor


async def main() -> None:
    from apify import Actor
    from apify.scrapy import apply_apify_settings
    from scrapy.crawler import AsyncCrawlerRunner
    from scrapy.utils.log import configure_logging

    async with Actor:
        settings = apply_apify_settings()
        settings["SCHEDULER"] = "scrapy_apify_rq.Scheduler"
        settings["DOWNLOADER_MIDDLEWARES"]["scrapy_apify_rq.DownloaderMiddleware"] = 10000
        settings["SPIDER_MIDDLEWARES"]["scrapy_apify_rq.SpiderMiddleware"] = 10000
        configure_logging(settings)
        await AsyncCrawlerRunner(settings).crawl("run", site=os.environ["SITE"])


run_scrapy_actor(main())
