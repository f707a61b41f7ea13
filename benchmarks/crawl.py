"""Crawl a site once, and print the measurements as JSON.

The other benchmarks run this program, so that each crawl has its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.http import Response

from benchmarks.meter import Meter


class Links(scrapy.Spider):
    """Follows every link of every page. With BENCHMARK_ITEM, it scrapes an item of so many bytes of
    each, and changes its state.
    """

    name = "links"

    def parse(self, response: Response) -> Iterator[Any]:
        if size := self.settings.getint("BENCHMARK_ITEM"):
            yield item(response.url, size)
            state = getattr(self, "state", {})  # Scrapy has none without JOBDIR
            state["pages"] = state.get("pages", 0) + 1
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href)


def item(url: str, size: int) -> dict[str, Any]:
    """Of about so many bytes as JSON."""
    found = {"sku": "A-1234", "name": "Something nice", "price": 12.5, "tags": ["new", "blue"]}
    text = "Lorem ipsum, dolor sit amet. "
    return {**found, "url": url, "text": (text * (size // len(text)))[: size - 160]}


SETTINGS: dict[str, Any] = {
    "CONCURRENT_REQUESTS": 16,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
    "LOG_LEVEL": "WARNING",
    "TELNETCONSOLE_ENABLED": False,
    "EXTENSIONS": {Meter: 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="the page to start from")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--cpu", type=int, help="the only core to run on")
    parser.add_argument(
        "--started-at", type=float, default=time.time(), help="when this process was started"
    )
    parser.add_argument("--profile", help="write a profile of the crawl to this file")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    settings = {**SETTINGS, "BENCHMARK_STARTED_AT": options.started_at}
    settings |= {
        name: json.loads(value) for name, _, value in (s.partition("=") for s in options.set)
    }
    process = CrawlerProcess(settings)
    crawler = process.create_crawler(Links)
    process.crawl(crawler, start_urls=[options.url])
    if options.profile:
        import cProfile

        profile = cProfile.Profile()
        profile.runcall(process.start)
        profile.dump_stats(options.profile)
    else:
        process.start()
    assert crawler.stats is not None
    stats = crawler.stats.get_stats()
    print(json.dumps({**crawler.meter.report(), "stats": stats}, default=str))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
