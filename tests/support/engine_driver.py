"""The engine's part in the life of a request, played by a test on a real scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler
from scrapy.exceptions import DontCloseSpider
from scrapy.http import Response

from scrapy_apify_rq.crawl.scheduler import Scheduler
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.waiting import wait_until


class Stays(Spider):
    """Asks for nothing by itself, is not closed when idle, and has its engine paused."""

    name = "stays"

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **options: Any) -> Self:
        spider = super().from_crawler(crawler, *args, **options)
        crawler.signals.connect(spider.stay, signals.spider_idle)
        crawler.signals.connect(spider.pause, signals.spider_opened)
        return spider

    def pause(self) -> None:
        assert self.crawler.engine is not None
        self.crawler.engine.pause()

    def stay(self) -> None:
        raise DontCloseSpider

    async def start(self) -> AsyncIterator[Any]:
        for nothing in ():
            yield nothing

    def parse(self, response: Response) -> None:
        """Never called."""


class EngineDriver:
    """Hands requests out and finishes them as a test says."""

    def __init__(self, crawl: Crawl) -> None:
        self.crawl = crawl
        engine = crawl.crawler.engine
        assert engine is not None
        assert engine._slot is not None
        self._slot = engine._slot
        assert isinstance(engine._slot.scheduler, Scheduler)
        self.scheduler = engine._slot.scheduler

    def schedule(self, *requests: Request) -> list[bool]:
        """Whether each was taken."""
        return [self.scheduler.enqueue_request(request) for request in requests]

    def next(self) -> Request | None:
        """What the scheduler hands out now; from here on it is in progress."""
        request = self.scheduler.next_request()
        if request is not None:
            self._slot.add_request(request)
        return request

    async def take(self) -> Request:
        """The next one, which may have to be saved or read first."""
        taken: list[Request | None] = []
        await wait_until(lambda: taken.append(self.next()) or taken[-1], "a request to hand out")
        assert taken[-1] is not None
        return taken[-1]

    def finish(self, request: Request) -> None:
        """Scrapy has finished with it, and asks what else there is."""
        self._slot.remove_request(request)
        self.scheduler.has_pending_requests()

    def finish_all(self) -> None:
        for request in list(self._slot.inprogress):
            self.finish(request)


@asynccontextmanager
async def driving(
    crawls: Crawls, settings: Mapping[str, Any] | None = None, *, queue: Queue | None = None
) -> AsyncIterator[EngineDriver]:
    """A crawl that does what the test does. At the end it is stopped, and all is saved."""
    crawl = await crawls.start(Stays, settings, queue=queue)
    # A stop before that is not heard by an engine that is paused.
    await wait_until(lambda: crawl.crawler.engine.running, "the engine's start")
    engine = EngineDriver(crawl)
    try:
        yield engine
    finally:
        engine.finish_all()
        await crawl.crawler.stop_async()
        await crawl.end()
