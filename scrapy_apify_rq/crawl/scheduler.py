"""Scrapy's face of the queue: what the engine calls, synchronous and in memory only.

A request becomes an entry here and goes to the frontier. What the frontier hands out goes to the
engine, and is in flight until Scrapy has finished with it (``inflight``). The contract with the
engine is ``scrapy.core.scheduler.BaseScheduler``:
https://docs.scrapy.org/en/latest/topics/scheduler.html
"""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Literal, cast

from queuelib.queue import LifoMemoryQueue
from scrapy import Request, Spider
from scrapy.core.scheduler import BaseScheduler
from scrapy.core.scheduler import Scheduler as StockScheduler
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.misc import load_object
from twisted.internet.defer import Deferred

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.config import Config, is_enabled
from scrapy_apify_rq.crawl.inflight import is_start, live_size
from scrapy_apify_rq.crawl.lifecycle import Lifecycle
from scrapy_apify_rq.crawl.middlewares import DownloaderMiddleware, SpiderMiddleware
from scrapy_apify_rq.crawl.refusal import tell_in_one_line
from scrapy_apify_rq.entries.converter import stored_spider_errors
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import CodecError, ConfigError, MissingError
from scrapy_apify_rq.frontier.visit import Visit

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler
    from scrapy.settings import BaseSettings

    from scrapy_apify_rq.crawl.feeds import Feeds


class Scheduler(BaseScheduler):
    """Put this into ``SCHEDULER``, or let ``ADDONS`` do it.

    Promises: a request whose add the queue has confirmed is crawled at least once, whatever happens
    to the process; none of the methods that the engine calls for each request waits for anything.
    Raises ConfigError if the queue cannot be used, and RuntimeError at open if it does not know
    this version of Scrapy.
    """

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        if not is_enabled(crawler.settings) or not scrapy_private.is_crawl(crawler):
            return cast("Self", StockScheduler.from_crawler(crawler))
        tell_in_one_line()
        downloader = crawler.get_downloader_middleware(DownloaderMiddleware)
        spider = crawler.get_spider_middleware(SpiderMiddleware)
        if downloader is None or spider is None or downloader.config is None:
            raise ConfigError(
                "SCHEDULER is scrapy_apify_rq.Scheduler, but DOWNLOADER_MIDDLEWARES lacks"
                " scrapy_apify_rq.DownloaderMiddleware or SPIDER_MIDDLEWARES lacks"
                " scrapy_apify_rq.SpiderMiddleware. Set both to 10000, or set only"
                ' ADDONS = {"scrapy_apify_rq.Addon": 500}.'
            )
        return cls(crawler, downloader.config)

    def __init__(self, crawler: Crawler, config: Config) -> None:
        self._stats = crawler.stats
        self.callbacks = config.callbacks
        self._is_lifo = config.order == "lifo"
        self._start_line = _start_line(crawler.settings)
        self._life = Lifecycle(crawler, config)
        self._converter = self._life.converter
        self._duplicates = self._life.duplicates
        self.frontier = self._life.frontier
        self.inflight = self._life.inflight

    def __len__(self) -> int:
        """Requests waiting in this process; the queue may hold many more."""
        return self.frontier.ready

    def status(self) -> dict[str, int]:
        """How many requests there are: ``waiting`` in this process, of these ``memory_only``;
        ``in_flight``; ``unsaved_adds`` and ``unsaved_updates``, which the queue has not confirmed.
        """
        return {
            "waiting": self.frontier.ready,
            "memory_only": self.frontier.ready_in_memory,
            "in_flight": len(self.inflight),
            "unsaved_adds": self.frontier.unsaved_adds,
            "unsaved_updates": self.frontier.unsaved_updates,
        }

    # Scrapy's status tools ask for the lengths of its own scheduler's queues (scrapy.utils.engine).

    @property
    def dqs(self) -> Sized:
        """As long as the line of stored requests that wait in this process."""
        return range(self.frontier.ready - self.frontier.ready_in_memory)

    @property
    def mqs(self) -> Sized:
        """As long as the line of requests that wait in memory only."""
        return range(self.frontier.ready_in_memory)

    @property
    def feeds(self) -> Feeds | None:
        """What the feed exporter is to know; None where items cannot be saved."""
        return self._life.feeds

    @property
    def has_failed(self) -> bool:
        """The spider is to be closed, since the queue cannot be used."""
        return self._life.failure is not None

    def open(self, spider: Spider) -> Deferred[None]:
        return deferred_from_coro(self._life.open())

    def close(self, reason: str) -> Deferred[None]:
        return deferred_from_coro(self._life.close(reason))

    # From Scrapy to the queue.

    def enqueue_request(self, request: Request) -> bool:
        if self.inflight.is_retry(request):
            return True
        self.inflight.note_replacement(request)
        key = self._duplicates.new_key(
            request,
            lambda: self._converter.content(request, **self._stored_form(request)),
            self.inflight.on_behalf(),
        )
        if key is None:  # as most links of a site, so this comes before all that takes time
            return False
        changes = self._stored_form(request)
        started = is_start()
        newest_first = self._is_lifo and not (started and self._start_line == "fifo")
        visit = Visit(
            None,
            request,
            priority=request.priority,
            forefront=request.priority > 0 or newest_first,
            newest_first=newest_first,
            is_start=started and self._start_line == "lifo",
        )
        try:
            entry = self._converter.encode(request, key, **changes)
            size = live_size(entry)
            if reason := self.frontier.refusal(entry, size):
                raise CodecError(reason)
        except CodecError as error:
            visit.key = key
            self.frontier.remember(request_id(key))
            self._life.unwritable(visit, str(error))
            self.inflight.adopt(visit)
            self.frontier.keep(visit)
        else:
            visit.entry = entry
            visit.size = size
            self.frontier.add(visit)
        return True

    def _stored_form(self, request: Request) -> dict[str, Any]:
        """What is to be written in place of the request's own."""
        stored = self.inflight.stored_form(request)
        return stored._asdict() if stored else {}

    def is_full(self) -> bool:
        """The spider is to wait for ``room`` before it yields another request."""
        return self.frontier.is_full()

    async def room(self, request: Request) -> None:
        """Wait until the queue can take this request, which it need not do with a duplicate."""
        if self._duplicates.needs_room(request):
            await self.frontier.room()

    def begin_start_item(self, item: Any) -> bool:
        """``start()`` yields this item. Return False if an earlier run has scraped and saved it."""
        items = None if self.feeds is None else self.feeds.items
        return items is None or items.begin_start_item(item)

    def end_start(self) -> None:
        """``start()`` yields nothing more."""
        self._life.start_has_ended = True

    # From the queue to Scrapy.

    def next_request(self) -> Request | None:
        if not self._life.has_to_end():
            self._life.settle()
            while not self.inflight.is_full() and (visit := self.frontier.next()) is not None:
                if (request := self._request(visit)) is not None:
                    self.inflight.take(visit, request)
                    self._stats.inc_value("scheduler/dequeued")
                    if visit.entry is None:
                        self._stats.inc_value("scheduler/dequeued/memory")
                    return request
        self.inflight.take_nothing()
        return None

    def _request(self, visit: Visit) -> Request | None:
        """What to hand out; None if that is not possible, or not yet."""
        if visit.request is not None and visit.request not in self.inflight:
            return visit.request
        if visit.entry is None:  # one object, scheduled twice
            self.inflight.put_behind(visit)
            return None
        try:
            request = self._converter.decode(visit.entry)
        except MissingError as error:
            self._life.report.missing(visit.entry, error)
            self.frontier.leave(visit)
            return None
        except CodecError as error:
            self._life.report.undecodable(visit.entry, error)
            problem = f"not crawled, since it cannot be decoded: {error}"
            self.inflight.ack(visit, visit.entry, problem)
            return None
        visit.spider_errors = stored_spider_errors(visit.entry)
        return request

    def has_pending_requests(self) -> bool:
        self._life.settle()
        # A failing queue must not look like a finished one.
        is_failing = self._life.failure is not None
        return is_failing or len(self.inflight) > 0 or self.frontier.has_pending()


def _start_line(settings: BaseSettings) -> Literal["fifo", "lifo", "common"]:
    """How Scrapy's own scheduler would line up start requests, with APIFY_RQ_ORDER = "lifo".

    https://docs.scrapy.org/en/latest/topics/settings.html#scheduler-start-memory-queue
    """
    queue = settings["SCHEDULER_START_MEMORY_QUEUE"]
    if not queue:
        return "common"  # in one line with all others
    return "lifo" if issubclass(load_object(queue), LifoMemoryQueue) else "fifo"
