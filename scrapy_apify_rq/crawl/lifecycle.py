"""How the queue of a crawl opens, what happens when it fails, and how it closes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

from scrapy import Request, Spider, signals
from scrapy.exceptions import CloseSpider
from scrapy.utils.python import global_object_name

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.actor.events import RunEvents
from scrapy_apify_rq.actor.run_status import RunStatus
from scrapy_apify_rq.backends import backend_for
from scrapy_apify_rq.backends.base import Info
from scrapy_apify_rq.crawl.duplicates import Duplicates
from scrapy_apify_rq.crawl.exporter import adopt
from scrapy_apify_rq.crawl.feeds import Feeds, History
from scrapy_apify_rq.crawl.flight import describe
from scrapy_apify_rq.crawl.inflight import InFlight
from scrapy_apify_rq.crawl.items import Items
from scrapy_apify_rq.crawl.progress import Progress
from scrapy_apify_rq.crawl.report import Report
from scrapy_apify_rq.crawl.resume import begin, remember_foreign_starts
from scrapy_apify_rq.crawl.slots import slots_of
from scrapy_apify_rq.crawl.state import State
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.saved_items import ItemCodec
from scrapy_apify_rq.errors import BackendError, ConfigError
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.notices import Bug, Notice
from scrapy_apify_rq.frontier.visit import Visit

if TYPE_CHECKING:
    from scrapy.crawler import Crawler
    from scrapy.settings import BaseSettings

    from scrapy_apify_rq.config import Config

# Seconds between two looks for finished requests while the engine, busy downloading, asks for none.
_SETTLE_INTERVAL: Final = 0.02
# The closing reasons of a crawl that could not read all that is pending, or could not ack all.
_MISSING: Final = "apify_rq_missing"
_REFUSED: Final = "apify_rq_refused"
# CPython 3.12 freezes some objects by itself.
_FROZEN_AT_START: Final = gc.get_freeze_count() if hasattr(gc, "freeze") else 0


class Lifecycle:
    """Makes the parts of one crawl, and opens and closes them.

    It is also the frontier's ``Listener``: what happens to the queue is passed on to Scrapy here.
    """

    def __init__(self, crawler: Crawler, config: Config) -> None:
        self._crawler = crawler
        self._config = config
        self._backend = backend_for(config, crawler.stats.inc_value)
        self.report = Report(crawler, self._backend, config.arguments)
        self.converter = RequestConverter.from_config(cast("Spider", crawler.spider), config)
        self.frontier = Frontier(
            self._backend,
            self,
            stats=crawler.stats,
            window=config.window,
            outbox=config.outbox,
            memory=config.memory,
            idle_before_close=config.idle_before_close,
            retries_first=config.retry_forefront,
            slots=slots_of(crawler),
        )
        self.duplicates = Duplicates(crawler, config, self.frontier)
        self.inflight = InFlight(crawler, config, self.frontier, self.converter, self.report)
        self._exporter = adopt(crawler)
        self.feeds: Feeds | None = None  # once open, where the backend saves items
        self.start_has_ended = False
        self._progress = Progress(crawler, self._backend, self.report)
        self.state = State(crawler, config, self._backend, self.converter, self.report)
        self._run_events = RunEvents(crawler, config, self._hold)
        self._run_status = RunStatus(
            config,
            describe=self._progress.describe,
            limit_reached=self.charge_limit_reached,
            inc_stat=crawler.stats.inc_value,
        )
        self._opened: AsyncExitStack | None = None  # closes what is open
        self._close_reason = "shutdown"  # Scrapy's word for a spider that could not be opened
        self.failure: BackendError | None = None  # why the spider has to be closed
        self._is_out_of_money = False
        self._settler: asyncio.Task[None] | None = None
        self._saver: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises RuntimeError if Scrapy is not one that we know, ConfigError if the queue cannot be
        used. If it cannot be reached, the spider is closed as soon as the engine runs.
        """
        scrapy_private.verify(self._crawler.engine)
        self.state.provide()
        async with AsyncExitStack() as opened:
            await self.duplicates.open()
            opened.push_async_callback(lambda: self.duplicates.close(self._close_reason))
            opened.push_async_callback(self._close_backend)
            opened.push_async_callback(self._progress.stop)
            opened.push_async_callback(self._run_status.stop)
            try:
                await self._open_queue()
            except BackendError as error:
                # Raised from here, it would be buried under errors of an engine that is half up.
                self.failed(error)
            self._run_status.start()
            if self._config.gc_freeze:
                _freeze_garbage(opened)
            self._opened = opened.pop_all()

    async def _open_queue(self) -> None:
        """Open the backend, and start everything that works with it."""
        await self._backend.open()
        await self._backend.occupy(alone=self._config.access == "single")
        if self._config.access == "shared" and self._config.client_key is not None:
            await self._backend.unlock()  # what a run before us held, with the same key
        if folder := self._crawler.settings["JOBDIR"]:
            self.report.job_directory(folder)
        self.report.vague_arguments()
        history = await History.read(self._backend.items)
        beginning = await begin(self._backend, self._config, self.report, history)
        if not beginning.is_new:
            await self.duplicates.resume(self._backend, self.converter)
        await remember_foreign_starts(self._backend, self._config, self.frontier)
        await self.state.open()
        self.frontier.open(has_pending=beginning.has_pending, is_new=beginning.is_new)
        await self._open_items(history if beginning.is_continued else History(None, {}))
        self._settler = asyncio.create_task(self._settle_regularly())
        self._crawler.signals.connect(self._on_idle, signals.spider_idle)
        self._saver = asyncio.create_task(self.frontier.guard(self._save_regularly()))
        # Behind the handlers of the spider and of Scrapy's extension.
        self._crawler.signals.connect(self._save_late, signals.spider_closed)
        self._progress.start()
        self._run_events.open()

    async def _open_items(self, history: History) -> None:
        """``history`` is that of this crawl: empty if this is its first run."""
        store, is_saving = self._backend.items, self._saves_items()
        if store is None:
            if is_saving:
                self.report.items_not_saved()
            return
        if not is_saving and history.crawl is None and self._config.backend == "apify":
            return  # each note is a call, and nothing could be noted but that nothing is saved
        await store.discard_spilled()
        codec, items = ItemCodec(self.converter.names), None
        if is_saving:
            crawl = history.crawl
            if crawl is not None and crawl.has_gaps:
                self.report.has_gaps()
            items = Items(
                codec,
                set() if crawl is None else await store.keys(crawl.after),
                inflight=self.inflight,
                frontier=self.frontier,
                report=self.report,
                stats=self._crawler.stats,
            )
        feeds = Feeds(store, codec, self.report, items, history=history, fail=self.failed)
        await feeds.open()
        if self._exporter is not None:
            if is_saving and self._config.access == "shared" and self._config.client_key is None:
                self.report.unnamed_worker()
        elif is_saving:
            self._crawler.signals.connect(feeds.scraped, signals.item_scraped)
        else:
            await feeds.save()  # nothing else waits for the note that items are not saved
        self.feeds = feeds

    def _saves_items(self) -> bool:
        if self._config.items != "auto":
            return self._config.items
        has_dataset = self._config.backend == "apify" and self._config.dataset is not None
        settings = self._crawler.settings
        if has_dataset and not settings["APIFY_RQ_DATASET"] and (pipeline := _pushing(settings)):
            self.report.pushed_already(pipeline)
            return False
        return has_dataset or self._exporter is not None

    async def close(self, reason: str) -> None:
        if self._opened is None:
            return
        opened, self._opened = self._opened, None
        self._close_reason = reason
        if reason in (_MISSING, _REFUSED):
            scrapy_private.fail_command()
        async with opened:
            self.settle()
            if self._settler is not None:
                self._settler.cancel()
                await asyncio.wait([self._settler])
            await self._run_events.close()
            self.state.stop()
            if self._saver is not None:
                await asyncio.wait([self._saver])
            await self.frontier.close()
            info, _ = await asyncio.gather(self._info(), self._save_state())
            given_up = self.inflight.given_up()
            self.report.given_up(given_up)
            if given_up.lost:
                scrapy_private.fail_command()
            text = await self._closing_line(info) + self.report.memory(given_up)
            self.report.close(text)
            is_left = isinstance(info, BackendError) or info.pending > 0
            if is_left and (self._is_out_of_money or self._run_events.is_out_of_time):
                scrapy_private.fail_command()  # ended too early, by the platform or its user
            await self._end_crawl(info)
            await self._run_status.end(text)

    async def _info(self) -> Info | BackendError:
        """What the queue holds, after everything is sent."""
        if self._settler is None or self.frontier.error is not None:
            return self.frontier.error or BackendError("The queue is not open")
        try:
            return await self._backend.info()
        except BackendError as error:
            return error

    async def _end_crawl(self, info: Info | BackendError) -> None:
        """Note it if nothing is left to do but to store the feeds."""
        if self.feeds is None or self.frontier.error is not None or self.failure is not None:
            return
        try:
            if isinstance(info, BackendError):
                raise info
            # Counts that lag may be of before the acks, or of before the links were added.
            is_over = self.frontier.is_over or not (info.pending or self._backend.lag)
            self.feeds.is_complete = is_over and self.start_has_ended
            if self._exporter is None:
                await self.feeds.end()
        except BackendError as error:
            self.report.failed(error)

    async def _close_backend(self) -> None:
        # Until the feeds are stored, nobody else may take the queue.
        if self.feeds is None or not self.feeds.wait_for(self._save_and_close):
            await self._backend.close()

    async def _closing_line(self, info: Info | BackendError) -> str:
        if self._settler is None:
            return self.report.not_opened(self.failure)
        if (error := self.frontier.error) is not None:
            if error.reason == "apify_rq_gone":
                return self.report.gone()
            return self.report.unsaved(self.frontier.unsaved_adds, self.frontier.unsaved_updates)
        return await self.report.summary(info, self.state.all_totals)

    async def _hold(self) -> None:
        await self.frontier.hold()
        await self._save_state()

    async def _save_regularly(self) -> None:
        if self.feeds is not None:
            await self.feeds.save()
        await self.state.run()

    async def _save_state(self) -> None:
        if self._saver is not None and self.frontier.error is None:
            await self.frontier.guard(self.state.save())

    async def _save_late(self) -> None:
        """Save what the spider has put into its state when it was closed, as Scrapy does."""
        if self.feeds is None or not self.feeds.is_waited_for:
            await self._save_and_close(is_closed=True)

    async def _save_and_close(self, *, is_closed: bool = False) -> None:
        try:
            if self.frontier.error is None and self.state.has_new_values():
                if is_closed:
                    await self._backend.open()
                    await self._backend.occupy(alone=self._config.access == "single")
                await self.state.save()
        except (BackendError, ConfigError) as error:
            self.report.not_kept(f"spider.state as closed() has left it is not saved: {error}")
        finally:
            await self._backend.close()

    def _on_idle(self) -> None:
        """All is crawled, but not all need be handled."""
        if self.frontier.left:
            raise CloseSpider(_MISSING)
        if self.frontier.refused:
            raise CloseSpider(_REFUSED)

    # When Scrapy has finished with a request.

    async def _settle_regularly(self) -> None:
        while self.failure is None:
            await asyncio.sleep(_SETTLE_INTERVAL)
            self.settle()

    def settle(self) -> None:
        """Ack or requeue what Scrapy has finished. An error here closes the spider."""
        try:
            self.inflight.settle()
        except Exception as error:  # of a stats collector of the project, say, or a bug here
            self.notice(Bug(error))
            text = f"{describe(error)}. The traceback is above."
            self.failed(BackendError(text, "apify_rq_error"))

    # What the frontier reports: see frontier.Listener.

    @property
    def in_flight(self) -> Mapping[str, Visit]:
        return self.inflight.visits

    def wake(self) -> None:
        scrapy_private.wake(self._crawler.engine)

    def dropped(self, visit: Visit) -> None:
        request = cast("Request", visit.request)
        self.duplicates.log(request)
        self._crawler.signals.send_catch_log(
            signals.request_dropped, request=request, spider=self._crawler.spider
        )

    def refused(self, visit: Visit, reason: str) -> None:
        self.unwritable(visit, reason)
        self.inflight.adopt_late(visit)

    def unwritable(self, visit: Visit, reason: str) -> None:
        """The queue cannot hold the request: it goes on in memory."""
        self.report.unserializable(cast("Request", visit.request), reason)
        self._crawler.stats.inc_value("scheduler/enqueued")
        self._crawler.stats.inc_value("scheduler/enqueued/memory")

    def notice(self, notice: Notice) -> None:
        self.report.notice(notice)

    def failed(self, error: BackendError) -> None:
        if self.failure is None:
            self.failure = error
            self.report.failed(error)
            scrapy_private.fail_command()
            self.has_to_end()

    def charge_limit_reached(self, limit: Decimal) -> None:
        """The user wants to pay no more for this run: finish what is in flight, and end it."""
        if self.failure is None:
            self._is_out_of_money = True
            text = self.report.out_of_money(limit)
            self.failure = BackendError(text, "apify_rq_charge_limit")
            self.report.stopping(text)
            self.has_to_end()

    def has_to_end(self) -> bool:
        """Whether the crawl must not go on; it is ended as soon as the engine runs.

        The scheduler asks whenever the engine asks it for a request.
        """
        engine = self._crawler.engine
        if self.failure is None and self._crawler.crawling:
            return False
        if engine.running and self._closer is None:
            if self.failure is not None:
                end = engine.close_spider_async(reason=self.failure.reason)
            else:
                # Crawler.stop_async() was called before the engine ran, and Scrapy forgets that.
                end = engine.stop_async()
            # Kept, because the event loop itself holds its tasks weakly.
            self._closer = asyncio.create_task(end)
        return True


def _pushing(settings: BaseSettings) -> str | None:
    """The item pipeline of Apify's SDK that pushes what is scraped to the dataset of the run."""
    for component, order in settings.getwithbase("ITEM_PIPELINES").items():
        name = component if isinstance(component, str) else global_object_name(component)
        if order is not None and name.endswith(".ActorDatasetPushPipeline"):
            return name
    return None


def _freeze_garbage(opened: AsyncExitStack) -> None:
    """Keep what was made before the crawl from the garbage collector, until the crawl is closed.

    A full collection looks at every object, 80,000 of Scrapy's own among them, and holds up the
    crawl meanwhile. A project that has frozen objects by itself knows what it does.
    """
    if hasattr(gc, "freeze") and gc.get_freeze_count() <= _FROZEN_AT_START:  # PyPy has no freeze
        gc.collect()
        gc.freeze()
        opened.callback(gc.unfreeze)
