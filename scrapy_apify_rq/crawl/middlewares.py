"""What Scrapy tells only its middlewares: why a download failed, whether a callback was reached.

Both look at the requests that the scheduler has handed out and let all others pass. The spider
middleware also holds back a spider that yields requests faster than the queue takes them.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from scrapy import Request, Spider, signals
from scrapy.http import Response
from scrapy.utils.asyncgen import as_async_generator
from scrapy.utils.asyncio import is_asyncio_available
from scrapy.utils.python import global_object_name
from twisted.python.failure import Failure

from scrapy_apify_rq import backends, scrapy_private
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.entries.converter import RequestConverter, target
from scrapy_apify_rq.entries.unique_keys import normalize_url
from scrapy_apify_rq.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler

    from scrapy_apify_rq.crawl.flight import Flight

MESSAGE_LIMIT = 1000
TURN = 0.005
"""Seconds for which a callback may yield without a break."""


def describe(error: BaseException) -> str:
    """An exception as one line of ``errorMessages``."""
    name = global_object_name(type(error)).removeprefix("builtins.")
    text = f"{name}: {error}"[:MESSAGE_LIMIT] if str(error) else name
    return text.encode(errors="replace").decode()  # JSON has no lone surrogates


def check(crawler: Crawler) -> None:
    """Raise ConfigError if this crawl cannot work as it is configured."""
    config = Config.from_settings(crawler.settings, os.environ, crawler.spidercls.name)
    if not config.enabled:
        return
    if not is_asyncio_available():
        raise ConfigError(
            f"TWISTED_REACTOR is {crawler.settings['TWISTED_REACTOR']!r}, but the request queue"
            " needs asyncio. Remove the setting, or set it to"
            " 'twisted.internet.asyncioreactor.AsyncioSelectorReactor'."
        )
    if config.unique_key == "crawlee":
        normalize_url("")  # raises where yarl is not installed
    backends.check(config)
    if crawler.spider is not None:
        RequestConverter.from_config(crawler.spider, config)  # raises for a missing callback


class DownloaderMiddleware:
    """Notes how the download of a request ended.

    Sits next to the downloader, so that it sees each response and exception before a middleware
    that makes something else of it.
    """

    def __init__(self) -> None:
        self.running: Mapping[Request, Flight] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        # The first of our components that Scrapy makes. An error raised later, with the engine
        # half up, is buried under errors of the engine's own.
        if scrapy_private.is_crawl(crawler):
            check(crawler)
        return cls()

    def process_response(self, request: Request, response: Response) -> Response:
        if (visit := self.running.get(request)) is not None:
            visit.status = response.status
            visit.download_error = None
        return response

    def process_exception(self, request: Request, exception: Exception) -> None:
        if (visit := self.running.get(request)) is not None:
            visit.download_error = describe(exception)


class SpiderMiddleware:
    """Notes how the callback of a request ended, and holds back a spider that is too fast.

    Sits next to the spider, so that a response seen here is one that no middleware refused.
    """

    def __init__(self) -> None:
        self.running: Mapping[Request, Flight] = {}
        # Before the scheduler is open, and in commands that do without it, nothing is held back.
        self.is_full: Callable[[], bool] = lambda: False
        self.room: Callable[[Request], Awaitable[None]]
        self.started: WeakSet[Request] = WeakSet()
        """Start requests; ``is_start_request`` does not tell, since copies of meta carry it."""
        self.sync_only = True
        """Before Scrapy 2.16: a middleware of the project may not know asynchronous output."""

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        middleware = cls()
        crawler.signals.connect(middleware.spider_error, signals.spider_error)
        return middleware

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for output in start:
            if isinstance(output, Request):
                self.started.add(output)
                if self.is_full():
                    await self.room(output)
            yield output

    def process_spider_input(self, response: Response) -> None:
        if (visit := self._visit(response)) is not None:
            visit.reached_callback = True
            visit.loaded_url = response.url

    def process_start_requests(
        self, start_requests: Iterable[Any], spider: Spider
    ) -> Iterator[Any]:
        """Before Scrapy 2.16, in projects with a middleware that knows no ``process_start``."""
        for output in start_requests:
            if isinstance(output, Request):
                self.started.add(output)
            yield output

    def process_spider_output(
        self, response: Response, result: Iterable[Any]
    ) -> Iterable[Any] | AsyncIterator[Any]:
        """Before Scrapy 2.16, for callbacks that are not asynchronous.

        Where Scrapy has to collect asynchronous output for a middleware that does not know it, all
        that a callback yielded before it raised is lost. So there the spider is not held back.
        """
        if self.sync_only:
            return result
        return self.process_spider_output_async(response, as_async_generator(result))

    async def process_spider_output_async(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        turn_ends = math.inf
        async for output in result:
            if time.monotonic() > turn_ends:
                # Scrapy takes a hundred outputs at a time; meanwhile downloads would stand still.
                await asyncio.sleep(0)
                turn_ends = math.inf
            turn_ends = min(turn_ends, time.monotonic() + TURN)
            if isinstance(output, Request) and self.is_full():
                await self.room(output)
            yield output

    def spider_error(self, failure: Failure, response: Response | Failure) -> None:
        if failure.value is not None and (visit := self._visit(response)) is not None:
            visit.callback_error = describe(failure.value)

    def _visit(self, response: Response | Failure) -> Flight | None:
        request = getattr(response, "request", None)
        if request is None:
            return None
        if (visit := self.running.get(request)) is not None:
            return visit
        # A downloader middleware put in the response to a request of its own.
        wanted = target(request)
        same = (visit for ours, visit in self.running.items() if target(ours) == wanted)
        return next(same, None)
