"""Two sensors: they report what Scrapy shows to middlewares only, and hold no rules.

Both report to the scheduler's ``InFlight``. The spider middleware also holds back a spider that
yields requests faster than the queue takes them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from scrapy import Item, Request, signals
from scrapy.http import HtmlResponse, Response
from scrapy.utils.asyncio import is_asyncio_available
from twisted.python.failure import Failure

from scrapy_apify_rq import backends, scrapy_private
from scrapy_apify_rq.actor.spider_input import input_of
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.crawl.inflight import inflight_of, mark_start_requests
from scrapy_apify_rq.crawl.refusal import tell_in_one_line, tell_nothing_else
from scrapy_apify_rq.entries.arguments import arguments_of
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler

    from scrapy_apify_rq.crawl.scheduler import Scheduler

# Scrapy takes up to 200 outputs of a callback at a time, and meanwhile downloads stand still. So
# others get their turn earlier, but not on a page with few outputs: Scrapy starts a hundred workers
# for each page, and all that have no output yet must be woken once more, which costs CPU time.
_OUTPUTS: Final = 50
# A request of more bytes than this ends the turn. Each value in its meta counts as so many, too.
_LARGE: Final = 16 * 1024
_VALUE: Final = 16
_CONTAINERS: Final = (dict, list, tuple, set, frozenset)


def checked_config(crawler: Crawler) -> Config | None:
    """The settings of this crawl; None if it does not use the queue.

    Raises ConfigError if it cannot work as it is configured.
    """
    if not scrapy_private.is_crawl(crawler):
        return None
    spider_name = getattr(crawler.spider or crawler.spidercls, "name", None)
    found = scrapy_private.arguments(crawler)
    given = input_of(crawler)
    if found is not None and given is not None:
        found = (found[0], {**given.identity, **found[1]})
    arguments = None if found is None else arguments_of(*found)
    config = Config.from_settings(crawler.settings, os.environ, spider_name, arguments)
    if not config.enabled:
        return None
    if not is_asyncio_available():
        raise ConfigError(
            f"TWISTED_REACTOR is {crawler.settings['TWISTED_REACTOR']!r}, but the request queue"
            " needs asyncio. Remove the setting, or set it to"
            " 'twisted.internet.asyncioreactor.AsyncioSelectorReactor'."
        )
    backends.check(config)
    if crawler.spider is not None:
        RequestConverter.from_config(crawler.spider, config)  # raises for a missing callback
    return config


class DownloaderMiddleware:
    """Reports how the download of a request ended. In the place of one that the entry does not
    want, it answers with an empty page.

    It sits next to the downloader, so it sees a request after all other middlewares, and each
    response and exception before any of them makes something else of it.
    """

    def __init__(self, crawler: Crawler, config: Config | None) -> None:
        self._crawler = crawler
        self.config = config
        """For the scheduler, which is made later."""

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        # This is the first of our components that Scrapy makes. An error raised later, with the
        # engine half up, is buried under errors of the engine's own.
        tell_in_one_line()
        try:
            return cls(crawler, checked_config(crawler))
        except ConfigError:
            tell_nothing_else()
            raise

    def process_request(self, request: Request) -> Response | None:
        inflight = inflight_of(self._crawler)
        if inflight is None:
            return None
        inflight.sent(request)
        if not inflight.has_no_page(request):
            return None
        self._crawler.stats.inc_value("apify_rq/navigation_skipped")
        return HtmlResponse(request.url, encoding="utf-8")

    def process_response(self, request: Request, response: Response) -> Response:
        if (inflight := inflight_of(self._crawler)) is not None:
            inflight.downloaded(request, response)
        return response

    def process_exception(self, request: Request, exception: Exception) -> None:
        if (inflight := inflight_of(self._crawler)) is not None:
            inflight.download_failed(request, exception)


class SpiderMiddleware:
    """Reports how the callback of a request ended, and holds back a spider that is too fast.

    It sits next to the spider, so a response seen here was refused by no other middleware.
    """

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        crawler.signals.connect(self.spider_error, signals.spider_error)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        return cls(crawler)

    def _scheduler(self) -> Scheduler | None:
        """The crawl's scheduler once the spider is open; None where the project uses another."""
        scheduler: Any = scrapy_private.scheduler(self._crawler)
        return scheduler if hasattr(scheduler, "inflight") else None

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        scheduler = self._scheduler()
        given = input_of(self._crawler)
        starts = None
        if given is not None and scheduler is not None:
            starts = given.start_requests(scheduler.callbacks)
        try:
            async for output in start:
                if starts is not None and isinstance(output, Request):
                    output = starts.completed(output, self._crawler.spider)
                mark_start_requests(True)
                if scheduler is not None:
                    if not isinstance(output, Request):
                        if not scheduler.begin_start_item(output):
                            continue
                    elif scheduler.is_full():
                        await scheduler.room(output)
                yield output
                mark_start_requests(False)
        except Exception:
            # It would raise again in the next run.
            if scheduler is not None:
                scheduler.end_start()
            raise
        if scheduler is not None:
            scheduler.end_start()
        # A middleware may still hold back some, for example to yield them in another order.
        mark_start_requests(True)

    def process_spider_input(self, response: Response) -> None:
        if (inflight := inflight_of(self._crawler)) is not None:
            inflight.reached_callback(response)

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        scheduler = self._scheduler()
        left = _OUTPUTS
        async for output in result:
            if left <= 0:
                await asyncio.sleep(0)
                left = _OUTPUTS
            left -= 1
            if scheduler is not None and isinstance(output, Request):
                if scheduler.is_full():
                    await scheduler.room(output)
                if _is_large(output):
                    left = 0  # it counts as waiting only once Scrapy has scheduled it
            yield output

    def spider_error(self, failure: Failure, response: Response | Failure | None) -> None:
        inflight = inflight_of(self._crawler)
        if inflight is not None and failure.value is not None:
            inflight.callback_failed(getattr(response, "request", None), failure.value)


def _is_large(request: Request) -> bool:
    """Whether it may take long to write, or much memory. Looks at no more values than it must."""
    left = _LARGE - len(request.body)
    values: list[Any] = [request.meta, request.cb_kwargs]
    while values and left >= 0:
        value = values.pop()
        kind = type(value)
        left -= _VALUE
        if kind is str or kind is bytes:
            left -= len(value)
        elif kind in _CONTAINERS:
            if len(value) * _VALUE > left:
                return True
            values.extend(value.values() if kind is dict else value)
        elif isinstance(value, Item):
            values.append(vars(value))
    return left < 0
