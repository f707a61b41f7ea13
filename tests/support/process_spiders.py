"""Spiders whose crawls are processes. Each has a name of its own, as spiders of one project do.

Their processes import this module, so it imports none that is for tests, and pytest with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import scrapy
from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.dupefilters import RFPDupeFilter
from scrapy.http import Response
from scrapy.statscollectors import MemoryStatsCollector

from tests.support.spiders import Links


class Tree(Links):
    """Crawls a ``tree``. Starts with one page twice, which is not filtered, and another one."""

    name = "tree"
    starts: ClassVar = ("/0", "/0", "/1")

    async def start(self) -> AsyncIterator[Any]:
        for path in self.starts:
            yield scrapy.Request(f"{self.site}{path}", dont_filter=True)


class InMemory(Links):
    """Stops while requests are in memory only: of its page, or of nothing (``orphans``)."""

    name = "in-memory"
    orphans = ""

    def parse(self, response: Response) -> Iterator[Any]:
        for number in range(3):
            request = scrapy.Request(f"{self.site}/{number}", lambda response: None)
            if self.orphans:
                asyncio.get_running_loop().call_soon(
                    self.crawler.engine.crawl, request, context=contextvars.Context()
                )
            else:
                yield request
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)


class Run(Links):
    """Follows the links of its first page, and of "/stuck", whose callback takes a minute."""

    name = "run"

    def parse(self, response: Response) -> Iterator[Any]:
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, self.parse_page)

    async def parse_page(self, response: Response) -> AsyncIterator[Any]:
        if response.url.endswith("/stuck"):
            for request in self.parse(response):
                yield request
            await asyncio.sleep(60)
        self.note(response)
        yield {"path": self.handled[-1]}


class Waits(Links):
    """Says when it is asked what it starts with, which takes a minute."""

    name = "waits"

    async def start(self) -> AsyncIterator[Any]:
        print("waiting", flush=True)
        await asyncio.sleep(60)
        yield scrapy.Request(f"{self.site}/")


# Ctrl-C at each stage of a crawl.


def reached(stage: str) -> None:
    """Send this process a SIGINT if it is the stage for it. A second one would end it at once."""
    if os.environ.get("STAGE") == stage:
        del os.environ["STAGE"]
        os.kill(os.getpid(), signal.SIGINT)


class Stages(Links):
    name = "stages"


class StagesStats(MemoryStatsCollector):
    calls = 0

    def inc_value(self, key: str, count: int = 1, start: int = 0) -> None:
        if key.startswith("apify_rq/api/calls/"):
            self.calls += 1
            reached(f"call {self.calls}")
        super().inc_value(key, count, start)


class StagesFilter(RFPDupeFilter):
    def open(self) -> None:
        reached("filter")


class StagesPipeline:
    def __init__(self, crawler: Crawler) -> None:
        for name in ("engine_started", "spider_opened"):
            stage = getattr(signals, name)
            crawler.signals.connect(lambda name=name: reached(name), stage, weak=False)
        reached("pipeline made")

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> StagesPipeline:
        return cls(crawler)

    def process_item(self, item: Any) -> Any:
        return item


class Forks(Links):
    """Leaves a child behind that has all that a child can inherit."""

    name = "forks"

    def parse(self, response: Response) -> Iterator[Any]:
        if response.url.endswith("/"):
            with warnings.catch_warnings():  # newer Pythons warn of threads
                warnings.simplefilter("ignore")
                child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            print("child", child, flush=True)
            yield response.follow("/held")


class Shelves(Links):
    """Links to pages of several slots and priorities, and starts with two more."""

    name = "shelves"
    starts: ClassVar = ("/", "/late", "/later")

    async def start(self) -> AsyncIterator[Any]:
        for path in self.starts:
            priority = 0 if path == "/" else -9
            yield scrapy.Request(f"{self.site}{path}", dont_filter=True, priority=priority)

    def parse(self, response: Response) -> Iterator[Any]:
        for number, request in enumerate(super().parse(response)):
            if isinstance(request, scrapy.Request):
                meta = {"download_slot": f"shelf {number % 3}"}
                request = request.replace(priority=number % 2, meta=meta)
            yield request
