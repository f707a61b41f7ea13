"""The crawl that ``kills`` kills: with all ways in which an item can belong to a request, or to
none, and a feed of every kind.

It crawls the tree of ``site``. No two of its items are equal, but for one of ``start()``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy import Field, Item, Request, signals
from scrapy.crawler import AsyncCrawlerProcess, Crawler
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import DontCloseSpider
from scrapy.http import Response

_GZIP = "scrapy.extensions.postprocessing.GzipPlugin"
_NOWHERE = "http://127.0.0.1:9/"  # nobody listens there


class Page(Item):
    id = Field()
    text = Field()


def feeds(folder: Path) -> dict[str, dict[str, Any]]:
    """The part of a file's name before "-" names the feed."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "over.json": ("json", {"overwrite": True}),
        "add.jl": ("jsonlines", {}),
        "add.csv": ("csv", {"fields": ["id", "text"]}),
        "over.xml": ("xml", {"overwrite": True}),
        "over-%(batch_id)d.jl": ("jsonlines", {"overwrite": True, "batch_item_count": 7}),
        "more-%(batch_id)d-%(batch_time)s.jl": ("jsonlines", {"batch_item_count": 30}),
        "over.gz": ("jsonlines", {"overwrite": True, "postprocessing": [_GZIP]}),
        "add.gz": ("jsonlines", {"postprocessing": [_GZIP]}),
        "class.jl": ("jsonlines", {"item_classes": [f"{__name__}.Page"]}),
    }
    return {
        str(folder / name): {"format": kind, **options} for name, (kind, options) in kinds.items()
    }


class Shapes(scrapy.Spider):
    name = "shapes"
    site: str
    tag = ""
    """Before the ids of its items."""
    loose = 3
    """Items that it scrapes when it is idle."""

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> Shapes:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.idle, signals.spider_idle)
        return spider

    def item(self, id: str) -> dict[str, str]:
        return {"id": self.tag + id, "text": "x" * 300}

    async def start(self) -> AsyncIterator[Any]:
        for number in (1, 2, 2, 3):
            yield self.item(f"start {number}")
        yield Request(f"{self.site}/t/0")

    async def parse(self, response: Response) -> AsyncIterator[Any]:
        path = response.url.removeprefix(self.site)
        number = int(path.rpartition("/")[2])
        yield self.item(path)
        yield Page(self.item(f"{path} page"))
        if number % 7 == 3:  # downloads its own request again
            again = response.request.replace(dont_filter=True)
            await self.crawler.engine.download_async(again)
            yield self.item(f"{path} again")
        if number % 11 == 5 and not response.meta.get("retry_times"):
            again = get_retry_request(response.request, spider=self, reason="not yet")
            again.cb_kwargs["is_again"] = True
            yield again.replace(callback=self.parse_again)
            return
        for request in self.follow(response, number):
            yield request
        if number % 40 == 1:
            for part in range(600):
                yield self.item(f"{path} part {part}")

    def follow(self, response: Response, number: int) -> Iterator[Request]:
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, dont_filter=number % 2 == 1)
        if number % 13 == 4:  # lives in memory only
            yield response.follow(f"/leaf/{number}", self.leaf(number))
        if number % 17 == 6:
            meta = {"dont_retry": True}
            yield Request(f"{_NOWHERE}{number}", errback=self.failed, meta=meta)

    async def parse_again(self, response: Response, is_again: bool) -> AsyncIterator[Any]:
        path = response.url.removeprefix(self.site)
        yield self.item(f"{path} retried")
        for request in self.follow(response, int(path.rpartition("/")[2])):
            yield request

    def leaf(self, number: int) -> Callable[[Response], Iterator[Any]]:
        return lambda response: iter([self.item(f"leaf {number}")])

    def failed(self, failure: Any) -> Iterator[Any]:
        yield self.item(f"failed {failure.request.url.removeprefix(_NOWHERE)}")

    def idle(self) -> None:
        count, self.loose = self.loose, 0
        if count:
            self.scraping = asyncio.gather(*map(self.scrape_loose, range(count)))
            # Scrapy would look only after 5 seconds whether the spider is still idle.
            page = Request(f"{self.site}/leaf/idle", lambda response: None, dont_filter=True)
            self.crawler.engine.crawl(page)
            raise DontCloseSpider

    async def scrape_loose(self, number: int) -> None:
        item = self.item(f"idle {number}")
        await self.crawler.engine.scraper.start_itemproc_async(item, response=None)


SETTINGS: dict[str, Any] = {
    "CONCURRENT_REQUESTS": 8,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 8,
    "DOWNLOAD_DELAY": 0,
    "LOG_LEVEL": "INFO",
    "RETRY_TIMES": 2,
    "TELNETCONSOLE_ENABLED": False,
}


def main() -> None:
    # The classes of "__main__" have other names, and the feeds' filters would not know them.
    from benchmarks.killed import Shapes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site")
    parser.add_argument("settings", help="JSON")
    parser.add_argument("--tag", default="")
    options = parser.parse_args()
    process = AsyncCrawlerProcess({**SETTINGS, **json.loads(options.settings)})
    process.crawl(Shapes, site=options.site, tag=options.tag)
    process.start()


if __name__ == "__main__":
    main()
