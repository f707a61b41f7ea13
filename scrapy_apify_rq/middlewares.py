"""What Scrapy tells only its middlewares: why a download failed, whether a callback was reached.

Both look at the requests that the scheduler has handed out and let all others pass. The spider
middleware also holds back a spider that yields requests faster than the queue takes them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from scrapy import Request, signals
from scrapy.http import Response
from scrapy.utils.asyncio import is_asyncio_available
from scrapy.utils.python import global_object_name
from twisted.python.failure import Failure

from scrapy_apify_rq import backends, scrapy_private
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.requests import RequestConverter
from scrapy_apify_rq.unique_keys import normalize_url

if TYPE_CHECKING:
    from scrapy.crawler import Crawler
    from typing_extensions import Self

    from scrapy_apify_rq.visits import Visit

MESSAGE_LIMIT = 1000


def describe(error: BaseException) -> str:
    """An exception as one line of ``errorMessages``."""
    name = global_object_name(type(error)).removeprefix("builtins.")
    return f"{name}: {error}"[:MESSAGE_LIMIT] if str(error) else name


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
        RequestConverter(crawler.spider, config.callbacks)


async def _no_limit() -> None:
    """Before the scheduler is open, and in commands that do without it, nothing is held back."""


class DownloaderMiddleware:
    """Notes how the download of a request ended.

    Sits next to the downloader, so that it sees each response and exception before a middleware
    that makes something else of it.
    """

    def __init__(self) -> None:
        self.running: Mapping[Request, Visit] = {}

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
        self.running: Mapping[Request, Visit] = {}
        self.room: Callable[[], Awaitable[None]] = _no_limit
        self.started: WeakSet[Request] = WeakSet()
        """Start requests; ``is_start_request`` does not tell, since copies of meta carry it."""

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        middleware = cls()
        crawler.signals.connect(middleware.spider_error, signals.spider_error)
        return middleware

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for output in start:
            if isinstance(output, Request):
                self.started.add(output)
                await self.room()
            yield output

    def process_spider_input(self, response: Response) -> None:
        if (visit := self._visit(response)) is not None:
            visit.reached_callback = True
            visit.loaded_url = response.url

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        async for output in result:
            if isinstance(output, Request):
                await self.room()
            yield output

    def spider_error(self, failure: Failure, response: Response | Failure) -> None:
        if failure.value is not None and (visit := self._visit(response)) is not None:
            visit.callback_error = describe(failure.value)

    def _visit(self, response: Response | Failure) -> Visit | None:
        request = getattr(response, "request", None)
        return None if request is None else self.running.get(request)
