"""Scrapy's face of the queue: what the engine calls, synchronous and in memory only.

The scheduler turns requests into entries and back, remembers what it has handed out, and decides
what becomes of an entry when Scrapy has finished with it. The contract with the engine is
``scrapy.core.scheduler.BaseScheduler``: https://docs.scrapy.org/en/latest/topics/scheduler.html
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from scrapy import Request, Spider, signals
from scrapy.core.scheduler import BaseScheduler
from scrapy.core.scheduler import Scheduler as StockScheduler
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.utils.defer import deferred_from_coro, maybe_deferred_to_future
from scrapy.utils.misc import build_from_crawler, load_object
from twisted.internet.defer import Deferred

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.actor.events import RunEvents
from scrapy_apify_rq.backends import backend_for
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.crawl.flight import Flight
from scrapy_apify_rq.crawl.middlewares import DownloaderMiddleware, SpiderMiddleware
from scrapy_apify_rq.crawl.progress import Progress
from scrapy_apify_rq.entries.converter import (
    RequestConverter,
    apify_start_key,
    store_spider_errors,
    target,
)
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import Keys, request_id, start_key
from scrapy_apify_rq.errors import BackendError, CodecError, ConfigError
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.notices import (
    Bug,
    LeaseLost,
    LeasesKept,
    Notice,
    OthersSeen,
    RateReached,
)
from scrapy_apify_rq.frontier.visit import Visit

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler

logger = logging.getLogger(__name__)

# Seconds between two looks for finished requests while the engine, busy downloading, asks for none.
_REAP_INTERVAL: Final = 0.02
# Of the reasons why requests failed: how many the summary tells, how long, how many are counted.
_REASONS: Final = 5
_REASON_LENGTH: Final = 100
_REASONS_LIMIT: Final = 1000


class Scheduler(BaseScheduler):
    """Put this into ``SCHEDULER``, or let ``ADDONS`` do it.

    Promises: a request whose ``enqueue_request`` was confirmed by the queue is crawled at least
    once, whatever happens to the process; none of the three methods that the engine calls for each
    request waits for anything. Raises ConfigError at open if the queue cannot be used, RuntimeError
    if Scrapy is not one that it knows.
    """

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        config = Config.from_settings(crawler.settings, os.environ, crawler.spidercls.name)
        if not config.enabled or not scrapy_private.is_crawl(crawler):
            return cast("Self", StockScheduler.from_crawler(crawler))
        return cls(crawler, config)

    def __init__(self, crawler: Crawler, config: Config) -> None:
        self.crawler = crawler
        self.config = config
        self.stats = crawler.stats
        self.running: dict[Request, Flight] = {}
        """What the engine has been given and has not finished."""
        self.in_flight: dict[str, Visit] = {}
        """Of these by entry id, those that have an entry."""
        self.backend = backend_for(config, crawler.stats.inc_value)
        self.frontier = Frontier(
            self.backend,
            self,
            stats=crawler.stats,
            window=config.window,
            outbox=config.outbox,
            idle_before_close=config.idle_before_close,
            retries_first=config.retry_forefront,
        )
        self.progress = Progress(
            self.backend,
            self.stats,
            interval=crawler.settings.getfloat("LOGSTATS_INTERVAL"),
            bar=config.progress,
            log=self._log,
        )
        self.run_events = RunEvents(crawler, config, self.frontier.hold)
        self._opened: AsyncExitStack | None = None
        """Closes what is open."""
        self._reason = "shutdown"
        """Why the spider is closed; this is Scrapy's word for one that could not be opened."""
        self._open_error: BackendError | None = None
        """Why the queue could not be opened."""
        self._reaper: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self.keys = Keys(crawler, config.unique_key)
        self._problems: Counter[str] = Counter()
        """How many requests failed, by the last error message."""
        self._unserializable_logged = False
        self._has_frozen = False

    def __len__(self) -> int:
        """Requests waiting in this process; the queue may hold many more."""
        return self.frontier.ready

    # Opening and closing.

    def open(self, spider: Spider) -> Deferred[None]:
        return deferred_from_coro(self._open(spider))

    async def _open(self, spider: Spider) -> None:
        scrapy_private.verify(self.crawler.engine)
        self.spider = spider
        self.converter = RequestConverter.from_config(spider, self.config)
        self.spider_middleware = self._attach_middlewares()
        async with AsyncExitStack() as opened:
            await self._open_dupefilter()
            opened.push_async_callback(self._close_dupefilter)
            opened.push_async_callback(self.backend.close)
            opened.push_async_callback(self.progress.stop)
            try:
                await self._open_backend()
            except BackendError as error:
                # Raised from here, it would be buried under errors of an engine that is half up.
                # Once the engine runs and asks for a request, it can close the spider properly.
                self._open_error = error
            self._opened = opened.pop_all()
        self._freeze()

    async def _open_backend(self) -> None:
        """Open the backend, and start all that works with it."""
        await self.backend.open()
        if self.config.access == "shared" and self.config.client_key is not None:
            await self.backend.unlock()  # what a run before us held, with the same key
        has_pending, is_new = await self._begin_or_resume()
        await self._remember_foreign_starts()
        self.frontier.open(has_pending=has_pending, is_new=is_new)
        self._reaper = asyncio.create_task(self._reap_regularly())
        self.progress.start()
        self.run_events.open()

    def _freeze(self) -> None:
        """Spare the garbage collector what was made before the crawl, until the crawl has ended.

        A full collection looks at every object, at 80,000 of Scrapy's own before ours, and holds up
        the crawl meanwhile. What that costs is in the README, Speed.
        """
        # PyPy has no freeze; a project that has frozen by itself knows what it does.
        if hasattr(gc, "freeze") and not gc.get_freeze_count():
            gc.freeze()
            self._has_frozen = True

    def _attach_middlewares(self) -> SpiderMiddleware:
        downloader = self.crawler.get_downloader_middleware(DownloaderMiddleware)
        spider = self.crawler.get_spider_middleware(SpiderMiddleware)
        if downloader is None or spider is None:
            raise ConfigError(
                "SCHEDULER is scrapy_apify_rq.Scheduler, but DOWNLOADER_MIDDLEWARES lacks"
                " scrapy_apify_rq.DownloaderMiddleware or SPIDER_MIDDLEWARES lacks"
                " scrapy_apify_rq.SpiderMiddleware. Set both to 10000, or set only"
                ' ADDONS = {"scrapy_apify_rq.Addon": 500}.'
            )
        downloader.running = spider.running = self.running
        spider.is_full = self.frontier.is_full
        spider.room = self._room
        spider.sync_only = scrapy_private.has_sync_only_middleware(self.crawler.engine)
        return spider

    async def _open_dupefilter(self) -> None:
        """The queue itself filters duplicates; a filter of the project's own is asked first."""
        settings = self.crawler.settings
        cls = load_object(settings["DUPEFILTER_CLASS"])
        self._dupefilter: BaseDupeFilter | None = None
        # Made by hand, because from_crawler() would write its own set of seen requests to JOBDIR.
        self._duplicates = RFPDupeFilter(
            debug=settings.getbool("DUPEFILTER_DEBUG"),
            fingerprinter=self.crawler.request_fingerprinter,
        )
        if cls not in (BaseDupeFilter, RFPDupeFilter):
            self._dupefilter = build_from_crawler(cls, self.crawler)
            if (opened := self._dupefilter.open()) is not None:
                await maybe_deferred_to_future(opened)

    async def _close_dupefilter(self) -> None:
        own = self._dupefilter
        if own is not None and (closed := own.close(self._reason)) is not None:
            await maybe_deferred_to_future(closed)

    async def _begin_or_resume(self) -> tuple[bool, bool]:
        """Whether the queue holds pending entries, and whether it is new."""
        info = await self.backend.info()
        queue = f"Request queue {info.title!r} in {self.backend.location}"
        finished = info.total > 0 and not info.pending
        purge = self.config.purge_on_start
        # Over the API the queue may hold what others want to keep, as it does with a name.
        own = self.config.queue_is_default and self.config.backend == "sqlite"
        own = own and self.config.access == "single"  # a worker may start when all is done
        if info.total and (purge or (finished and own)):
            await self.backend.purge()
            why = "its crawl was finished"
            if purge:
                why = f"{info.pending} of them pending, since APIFY_RQ_PURGE_ON_START is set"
            self._log(logging.INFO, f"{queue}: emptied of {info.total} entries, {why}")
        elif finished:
            self._log(
                logging.WARNING,
                f"{queue} is finished: {info.handled} handled, none pending, so that only requests"
                " new to it are crawled. To crawl all again, run once with"
                " -s APIFY_RQ_PURGE_ON_START=True, or choose another APIFY_RQ_NAME",
            )
        elif info.total:
            self._log(
                logging.INFO,
                f"{queue}: resuming, {info.pending} pending, {info.handled} handled",
            )
        else:
            self._log(logging.INFO, f"{queue}: new")
        return bool(info.pending) and not purge, not info.total

    async def _remember_foreign_starts(self) -> None:
        """Know the start requests that ``apify.scrapy`` gave keys of which nothing can be told."""
        if self.config.unique_key != "crawlee":
            return
        counts: Counter[str] = Counter()
        async for entry in self.backend.list():
            if (key := apify_start_key(entry)) is not None:
                counts[key] += 1
                self.frontier.remember(request_id(start_key(key, counts[key])))

    def close(self, reason: str) -> Deferred[None]:
        return deferred_from_coro(self._close(reason))

    async def _close(self, reason: str) -> None:
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        self._reason = reason
        if self._has_frozen:
            gc.unfreeze()
        async with opened:
            self._reap()
            if self._reaper is not None:
                self._reaper.cancel()
            await self.run_events.close()
            await self.frontier.close()
            self._announce(await self._summary())

    async def _summary(self) -> str:
        if self._open_error is not None:
            return "The request queue could not be opened, so nothing was crawled"
        if self.frontier.error is not None:
            unsaved = self.frontier.unsaved_adds + self.frontier.unsaved_updates
            return (
                f"The queue in {self.backend.location} failed; {unsaved} changes"
                " could not be saved. The requests they belong to are still pending: run the"
                " spider again to go on"
            )
        handled, failed, retried = (
            self.stats.get_value(f"apify_rq/{name}", 0) for name in ("handled", "failed", "retried")
        )
        done = f"this run handled {handled} ({failed} of them failed) and retried {retried}"
        try:
            info = await self.backend.info()
        except BackendError as error:  # all is saved, so the run is as good as any
            return (
                f"Request queue in {self.backend.location}: {done}; its counts are unknown: {error}"
            )
        return (
            f"Request queue {info.title!r} in {self.backend.location}: {done};"
            f" the queue holds {info.handled} handled, {info.pending} pending"
            f"{self._reasons(failed)}"
        )

    def _reasons(self, failed: int) -> str:
        """Why requests failed, the most frequent reasons first."""
        most = self._problems.most_common(_REASONS)
        parts = [f"{count} x {problem}" for problem, count in most]
        if (others := failed - sum(count for _, count in most)) > 0:
            parts.append(f"{others} for other reasons")
        return f"; failed: {', '.join(parts)}" if parts else ""

    def _announce(self, text: str) -> None:
        """Log this last of all, below the stats, where people look first."""
        # The closure must not know the crawler, or its signals would keep it alive for ever.
        self.crawler.signals.connect(lambda: logger.info(text), signals.engine_stopped, weak=False)

    def _log(self, level: int, text: str) -> None:
        logger.log(level, text, extra={"spider": self.spider})

    # From Scrapy to the queue.

    def enqueue_request(self, request: Request) -> bool:
        if (original := self._original(request)) is not None:
            original.retry = request
            return True
        self._note_replacement(request)
        key = self.keys.plain(request)
        if repeatable := self.keys.is_repeatable(request):
            key = self.keys.own(key, is_start=request in self.spider_middleware.started)
        if self._is_duplicate(request, key, repeatable):
            return False
        priority = request.priority
        is_lifo = self.config.order == "lifo" and request not in self.spider_middleware.started
        visit = Visit(
            None, request, priority, forefront=priority > 0 or is_lifo, newest_first=is_lifo
        )
        try:
            visit.entry = self.converter.encode(request, key)
        except CodecError as error:
            self._note_unserializable(request, error)
            self.frontier.remember(request_id(key))
            self.stats.inc_value("scheduler/enqueued")
            self.stats.inc_value("scheduler/enqueued/memory")
            self.frontier.keep(visit)
        else:
            visit.size = 2 * visit.entry.size
            self.frontier.add(visit)
        return True

    def _original(self, request: Request) -> Flight | None:
        """The visit that ``request`` is a retry of, made by ``get_retry_request()``."""
        times = _retries(request)
        # Copies of meta carry retry_times, too, but only a retry is not to be filtered.
        if not (times and request.dont_filter):
            return None
        same = self.crawler.request_fingerprinter.fingerprint
        found = [
            visit
            for original, visit in self.running.items()
            if visit.retry is None
            and _retries(original) + 1 == times
            and len(_redirects(original)) == len(_redirects(request))
            and (same(original) == same(request) or target(original) == target(request))
        ]
        # Two in flight may differ in nothing but what a custom fingerprinter looks at.
        found.sort(key=lambda visit: same(cast("Request", visit.visit.request)) != same(request))
        return found[0] if found else None

    def _note_replacement(self, request: Request) -> None:
        """Tell the request in flight in whose place a middleware has put this one.

        That is a redirect, or a copy of itself to be tried again by rules other than Scrapy's.
        """
        urls = _redirects(request)
        if not (urls or request.dont_filter):
            return
        for original, visit in self.running.items():
            came_from = urls[-1:] == [original.url] and len(_redirects(original)) + 1 == len(urls)
            is_copy = request.dont_filter and target(original) == target(request)
            if (came_from or is_copy) and visit.is_downloaded and visit.loaded_url is None:
                visit.loaded_url = request.url
                return

    async def _room(self, request: Request) -> None:
        """Wait until the outbox has room for a request, which a duplicate does not need."""
        # A fingerprint is kept for the request that it is asked for, and this one may still change.
        copy = request.copy()
        keys = self.keys
        if keys.is_repeatable(copy) or not self.frontier.knows(request_id(keys.plain(copy))):
            await self.frontier.room()

    def _is_duplicate(self, request: Request, key: str, repeatable: bool) -> bool:
        own = None if repeatable else self._dupefilter
        if own is not None and own.request_seen(request):
            own.log(request, self.spider)
            return True
        # A start request may be one of an earlier run, which the queue has given us by now.
        if self.frontier.knows(request_id(key)):
            self._duplicates.log(request, self.spider)
            return True
        return False

    def wake(self) -> None:
        scrapy_private.wake(self.crawler.engine)

    def dropped(self, visit: Visit) -> None:
        """The queue had the entry already, from an earlier run or from others."""
        request = cast("Request", visit.request)
        self._duplicates.log(request, self.spider)
        self.crawler.signals.send_catch_log(
            signals.request_dropped, request=request, spider=self.spider
        )

    def refused(self, visit: Visit, reason: str) -> None:
        """The queue will not take the entry; the visit goes on in memory."""
        self._note_unserializable(cast("Request", visit.request), reason)
        self.stats.inc_value("scheduler/enqueued")
        self.stats.inc_value("scheduler/enqueued/memory")

    def _note_unserializable(self, request: Request, error: object) -> None:
        self.stats.inc_value("scheduler/unserializable")
        if not self._unserializable_logged:
            self._unserializable_logged = True
            self._log(
                logging.WARNING,
                f"{request} cannot be written to the queue: {error}. It is crawled from memory and"
                " lost if this process ends first. No more of these are logged; see the stat"
                " scheduler/unserializable",
            )

    # From the queue to Scrapy.

    def next_request(self) -> Request | None:
        if self._open_error is not None:
            if self._closer is None:
                self.failed(self._open_error)
            return None
        self._reap()
        while (visit := self.frontier.next()) is not None:
            request = self._request(visit)
            if request is not None:
                visit.request = request
                self.running[request] = Flight(visit)
                if visit.entry is not None:
                    self.in_flight[visit.entry.id] = visit
                self.stats.inc_value("scheduler/dequeued")
                if visit.entry is None:
                    self.stats.inc_value("scheduler/dequeued/memory")
                return request
        return None

    def _request(self, visit: Visit) -> Request | None:
        if visit.request is not None and visit.request not in self.running:
            return visit.request
        if visit.entry is None:  # one object, yielded twice
            return cast("Request", visit.request).copy()
        try:
            request = self.converter.decode(visit.entry)
        except CodecError as error:
            self._refuse(visit, visit.entry, error)
            return None
        return request

    def _refuse(self, visit: Visit, entry: Entry, error: CodecError) -> None:
        self.stats.inc_value("apify_rq/undecodable")
        self._log(
            logging.ERROR,
            f"Entry {entry.id} ({entry.url or 'no URL'}) is no request: {error}. It is marked"
            " handled, with this message",
        )
        self._ack(Flight(visit), entry, f"not crawled, since it cannot be decoded: {error}")

    def has_pending_requests(self) -> bool:
        self._reap()
        return bool(self.running) or self.frontier.has_pending()

    # When Scrapy has finished with a request.

    async def _reap_regularly(self) -> None:
        while True:
            await asyncio.sleep(_REAP_INTERVAL)
            self._reap()

    def _reap(self) -> None:
        """Settle all that has left the engine since the last look."""
        if not self.running:
            return
        unfinished = scrapy_private.running(self.crawler.engine)
        for request in [request for request in self.running if request not in unfinished]:
            self._settle(self.running.pop(request), request)

    def _settle(self, flight: Flight, request: Request) -> None:
        visit = flight.visit
        if visit.entry is not None:
            del self.in_flight[visit.entry.id]
        if flight.retry is not None:
            self._requeue(visit, flight.retry, flight.retry_reason)
        elif (
            flight.callback_error is not None
            and visit.spider_errors < self.config.retry_spider_errors
        ):
            visit.spider_errors += 1
            self._requeue(visit, request, flight.callback_error)
        elif visit.entry is not None:
            self._ack(flight, visit.entry, flight.problem)

    def _ack(self, flight: Flight, entry: Entry, problem: str | None) -> None:
        entry.handled_at = datetime.now(UTC)
        entry.loaded_url = flight.loaded_url
        if problem is not None:
            entry.error_messages.append(problem)
            self._count_problem(problem)
        self.frontier.update(flight.visit)

    def _count_problem(self, problem: str) -> None:
        """For the summary; messages that all differ must not fill the memory."""
        problem = problem.partition("\n")[0][:_REASON_LENGTH]
        if problem in self._problems or len(self._problems) < _REASONS_LIMIT:
            self._problems[problem] += 1

    def _requeue(self, visit: Visit, request: Request, reason: str) -> None:
        """Send the same entry back, as the request is now."""
        front = self.config.retry_forefront
        again = Visit(
            None,
            request,
            request.priority,
            is_retry=True,
            forefront=front,
            spider_errors=visit.spider_errors,
            lease=visit.lease,
        )
        if (old := visit.entry) is None:
            self.frontier.keep(again)
            return
        try:
            entry = self.converter.encode(request, old.unique_key, replaced=old)
        except CodecError as error:
            # The request that runs next is the new one; a restart would find the old one.
            self._note_unserializable(request, error)
            entry = old
        else:
            store_spider_errors(entry, visit.spider_errors)
        entry.retry_count = old.retry_count + 1
        entry.error_messages = [*old.error_messages, reason]
        entry.loaded_url = None
        again.entry = entry
        again.size = 2 * entry.size
        self.frontier.update(again)

    def notice(self, notice: Notice) -> None:
        match notice:
            case RateReached(rate):
                logger.info(
                    "The crawl is as fast as its request queue allows: %s. Requests are held back"
                    " until it has taken the acks of those before",
                    rate,
                )
            case LeaseLost(entry, when):
                text = {
                    "waiting": "before it was handed out: left to others",
                    "in flight": "while it was crawled: another worker may crawl it, too",
                    "retried": "before its retry was saved: left to others",
                }
                logger.info("The lease on entry %s (%s) ended %s", entry.id, entry.url, text[when])
            case LeasesKept(lock_secs, error):
                logger.warning(
                    "The leases of this crawl could not be given back (%s); they end by themselves"
                    " within %s seconds (APIFY_RQ_LOCK_SECS)",
                    error or "no answer",
                    lock_secs,
                )
            case OthersSeen(location):
                logger.warning(
                    "Another program uses the request queue %s, too. It may look, add and repair,"
                    " but a second crawl of this queue in single access crawls pages twice: set"
                    " APIFY_RQ_ACCESS = 'shared' for both, or run one at a time",
                    location,
                )
            case Bug(bug):
                logger.error("Bug in scrapy-apify-rq", exc_info=bug)

    def failed(self, error: BackendError) -> None:
        self._log(logging.ERROR, f"{error} The spider is closed ({error.reason}).")
        # Kept, because the event loop itself holds its tasks weakly.
        self._closer = asyncio.create_task(
            self.crawler.engine.close_spider_async(reason=error.reason)
        )


def _retries(request: Request) -> int:
    times = request.meta.get("retry_times")
    return times if isinstance(times, int) else 0  # meta may come from a stranger


def _redirects(request: Request) -> list[str]:
    urls = request.meta.get("redirect_urls")
    return urls if isinstance(urls, list) else []
