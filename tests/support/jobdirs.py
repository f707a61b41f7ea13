"""What stock Scrapy leaves in a JOBDIR, written without a crawl."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from scrapy import Request, Spider
from scrapy.core.scheduler import Scheduler
from scrapy.crawler import Crawler
from scrapy.utils.misc import load_object


class NoStart(Spider):
    name = "spider"

    async def start(self) -> Any:
        for _ in ():
            yield


def _slot(request: Request) -> Any:
    """As Scrapy's downloader."""
    return request.meta.get("download_slot") or urlsplit(request.url).hostname


def spider_of(folder: Path, cls: type[Spider] = NoStart, **settings: Any) -> Spider:
    """A spider whose crawler has all that a scheduler asks for, but does not crawl."""
    crawler = Crawler(cls, {"JOBDIR": str(folder), **settings})
    crawler.stats = load_object(crawler.settings["STATS_CLASS"])(crawler)
    crawler.request_fingerprinter = load_object(crawler.settings["REQUEST_FINGERPRINTER_CLASS"])()
    slots = SimpleNamespace(slots={}, get_slot_key=_slot)
    crawler.engine = SimpleNamespace(downloader=slots)  # type: ignore[assignment]
    crawler.spider = crawler.spidercls.from_crawler(crawler)
    return crawler.spider


def write(folder: Path, *requests: Request, **settings: Any) -> None:
    """Write the requests as stock Scrapy's scheduler does."""
    spider = spider_of(folder, **settings)
    scheduler = Scheduler.from_crawler(spider.crawler)
    scheduler.open(spider)
    for request in requests:
        assert scheduler.enqueue_request(request)
    scheduler.close("shutdown")
