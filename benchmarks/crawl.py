"""Crawls a site once with a given scheduler, and prints what it cost as JSON.

A program of its own so that each crawl has a process of its own; ``api_crawl.py`` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Iterator
from typing import Any

import scrapy
from scrapy import signals
from scrapy.crawler import CrawlerProcess
from scrapy.http import Response

BEAT = 0.001


class Links(scrapy.Spider):
    """Follows every link of every page."""

    name = "links"

    def parse(self, response: Response) -> Iterator[Any]:
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href)


class Meter:
    """Measures from the first response to the last, so that neither the start of the process nor
    the wait for a queue that is surely empty is counted as crawling.
    """

    def __init__(self, crawler: Any) -> None:
        self.pages = 0
        self.first = self.last = 0.0
        self.cpu = 0.0
        self.stall = 0.0
        self._beats: asyncio.Task[None] | None = None
        for name in ("response_received", "engine_stopped"):
            crawler.signals.connect(getattr(self, name), getattr(signals, name))

    @classmethod
    def from_crawler(cls, crawler: Any) -> Meter:
        crawler.meter = cls(crawler)
        return crawler.meter

    def response_received(self) -> None:
        now = time.perf_counter()
        if not self.pages:
            self.first, self._first_cpu = now, time.process_time()
        elif self._beats is None:  # the first response pays for what is made but once
            self._beats = asyncio.create_task(self._beat())
        self.pages += 1
        self.last, self.cpu = now, time.process_time() - self._first_cpu

    def engine_stopped(self) -> None:
        if self._beats is not None:
            self._beats.cancel()

    async def _beat(self) -> None:
        """Stalls are in CPU time, since other processes of this machine may stall us as well."""
        while True:
            before = time.process_time()
            await asyncio.sleep(BEAT)
            self.stall = max(self.stall, time.process_time() - before)

    def report(self) -> dict[str, Any]:
        seconds = self.last - self.first
        return {
            "pages": self.pages,
            "seconds": seconds,
            "cpu": self.cpu,
            "stall": self.stall,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def settings(scheduler: str, storage: str, name: str, extra: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "CONCURRENT_REQUESTS": 16,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
        "LOG_LEVEL": "WARNING",
        "TELNETCONSOLE_ENABLED": False,
        "EXTENSIONS": {Meter: 0},
    }
    if scheduler == "jobdir":
        values["JOBDIR"] = storage
    elif scheduler != "stock":
        values["ADDONS"] = {"scrapy_apify_rq.Addon": 500}
        values["APIFY_RQ_STORAGE_DIR"] = storage
        values["APIFY_RQ_NAME"] = name
    return {**values, **extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheduler", choices=["stock", "jobdir", "embedded", "api"])
    parser.add_argument("url", help="where to start")
    parser.add_argument("--storage", default=".", help="folder of the embedded queue, or JOBDIR")
    parser.add_argument("--name", default="benchmark", help="of the queue")
    parser.add_argument("--api", help="address of the API")
    parser.add_argument("--profile", help="write a profile of the crawl to this file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    options = parser.parse_args()
    extra = {name: json.loads(value) for name, _, value in (s.partition("=") for s in options.set)}
    if options.scheduler == "api":
        extra |= {"APIFY_TOKEN": "benchmark-token", "APIFY_API_BASE_URL": options.api}
    process = CrawlerProcess(settings(options.scheduler, options.storage, options.name, extra))
    crawler = process.create_crawler(Links)
    process.crawl(crawler, start_urls=[options.url])
    if options.profile:
        import cProfile

        profile = cProfile.Profile()
        profile.runcall(process.start)
        profile.dump_stats(options.profile)
    else:
        process.start()
    print(json.dumps({**crawler.meter.report(), "stats": crawler.stats.get_stats()}, default=str))


if __name__ == "__main__":
    main()
