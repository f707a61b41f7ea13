"""Scrapy's feed exports, for a crawl that survives: see ``feeds``.

Scrapy's exporters, filters and storages do the work. Here the items of earlier runs are given to
them first, and what is scraped is saved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import IO, TYPE_CHECKING, Any, Final

from pydispatch.dispatcher import (  # type: ignore[import-untyped]
    getAllReceivers,
    liveReceivers,
)
from pydispatch.robustapply import robustApply  # type: ignore[import-untyped]
from scrapy import signals
from scrapy.extensions.feedexport import FeedExporter, FeedSlot
from scrapy.utils.defer import deferred_from_coro, maybe_deferred_to_future
from twisted.internet.defer import Deferred

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.errors import BackendError

if TYPE_CHECKING:
    from scrapy import Spider
    from scrapy.crawler import Crawler
    from scrapy.http import Response

    from scrapy_apify_rq.crawl.feeds import Feeds

logger = logging.getLogger(__name__)

# Seconds for which items are exported before other work gets its turn.
_TURN: Final = 0.005
_HANDLERS: Final = {
    "open_spider": signals.spider_opened,
    "close_spider": signals.spider_closed,
    "item_scraped": signals.item_scraped,
}


class SavedFeeds(scrapy_private.FeedHooks):
    """The part of it that goes before any ``FeedExporter``, the project's own included."""

    crawler: Crawler
    slots: list[FeedSlot]
    _feeds: Feeds | None = None
    _followers: tuple[SavedFeeds, ...] = ()
    """Other exporters of this crawl, for which Scrapy's signals come here, too."""
    _unstored: set[FeedSlot]
    """All batches that have begun, but for those that are stored."""

    @property
    def _group(self) -> tuple[SavedFeeds, ...]:
        return (self, *self._followers)

    def uri_of_batch(self, feed: str, batch: int, uri: str) -> str:
        return uri if self._feeds is None else self._feeds.uri(feed, batch, uri)

    def batch_begins(self, slot: FeedSlot) -> None:
        if self._feeds is not None:
            self._feeds.begins(slot)
            self._watch(slot)

    def _watch(self, slot: FeedSlot) -> None:
        """Note it when the batch is stored. Scrapy tells of a failure in its log and stats only."""
        store: Callable[[IO[bytes]], Any] = slot.storage.store

        async def watched(file: IO[bytes]) -> None:
            await _finished(store(file))
            self._unstored.discard(slot)

        self._unstored.add(slot)
        slot.storage.store = (  # type: ignore[method-assign]
            lambda file: deferred_from_coro(watched(file))
        )

    async def open_spider(self, spider: Spider) -> None:
        scheduler: Any = scrapy_private.scheduler(self.crawler)
        if getattr(scheduler, "has_failed", False):
            return  # a feed without its items would only be in the way of a complete one
        feeds = getattr(scheduler, "feeds", None)
        for one in self._group:
            one._feeds = feeds
        if feeds is None:
            await self._open_all(spider)
            return
        feeds.opened()
        feeds.has_all = False
        try:
            await self._open_all(spider)
            given = [await one._replay(feeds, spider) for one in self._group]
            feeds.has_all = all(is_all for _, is_all in given)
            feeds.report_replay(given[0][0])
        except OSError as error:
            feeds.fail(
                BackendError(
                    f"The feeds cannot be given the items of earlier runs: {error}. These are still"
                    " saved: fix the cause and run the spider again.",
                    "apify_rq_items",
                )
            )
        except BackendError as error:
            feeds.fail(error)
        finally:
            feeds.are_ready.set()

    async def _open_all(self, spider: Spider) -> None:
        for one in self._group:
            await _finished(one._stock("open_spider", spider=spider))

    async def _replay(self, feeds: Feeds, spider: Spider) -> tuple[int, bool]:
        """Give the feeds the items of earlier runs. Return how many, and whether these are all."""
        own, last = self.slots, 0
        # What each feed's storage has already; greatest last.
        waiting = [
            (feeds.begins_after(slot), slot)
            for slot in own
            if slot.uri_template not in feeds.left_alone
        ]
        waiting.sort(key=lambda one: one[0], reverse=True)
        self.slots = []
        count, is_all = 0, True
        turn_ends = time.monotonic() + _TURN
        async for number, item in feeds.saved():
            if number != last and not self.crawler.crawling:
                is_all = False  # Ctrl-C: the next run does it all again
                break
            last = number
            while waiting and waiting[-1][0] < number:
                self.slots.append(waiting.pop()[1])
            try:
                await self._export(feeds, item, None, spider)
            except (OSError, BackendError):
                raise
            except Exception:  # as Scrapy does with an item that cannot be exported
                logger.error(
                    "Error exporting a saved item", exc_info=True, extra={"spider": spider}
                )
            count += 1
            if time.monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.monotonic() + _TURN
        self.slots += [slot for _, slot in waiting]
        self.slots += [slot for slot in own if slot.uri_template in feeds.left_alone]
        return count, is_all

    async def item_scraped(
        self, item: Any, spider: Spider, response: Response | None = None
    ) -> None:
        feeds = self._feeds
        if feeds is None:
            await self._export_to_all(None, item, response, spider)
        elif await feeds.scraped(item, response):
            await feeds.are_ready.wait()
            try:
                await self._export_to_all(feeds, item, response, spider)
            except BackendError as error:
                feeds.has_all = False
                feeds.fail(error)

    async def _export_to_all(
        self, feeds: Feeds | None, item: Any, response: Response | None, spider: Spider
    ) -> None:
        for one in self._group:
            await one._export(feeds, item, response, spider)

    async def _export(
        self, feeds: Feeds | None, item: Any, response: Response | None, spider: Spider
    ) -> None:
        if feeds is not None and feeds.has_unsaved:
            await feeds.save()
        try:
            await _finished(
                self._stock("item_scraped", item=item, spider=spider, response=response)
            )
            if feeds is not None:
                for slot in self.slots:
                    feeds.written(slot)
        except OSError:  # a full disk, say
            if feeds is not None:
                feeds.has_all = False
            raise

    async def close_spider(self, spider: Spider) -> None:
        feeds = self._feeds
        if feeds is None:
            await self._close_all(spider)
            return
        slots = [slot for one in self._group for slot in one.slots]
        try:
            await self._close_all(spider)
            failed = {
                slot.uri_template
                for one in self._group
                for slot in one._unstored
                if slot.itemcount or (slot.store_empty and slot.batch_id == 1)
            }
            await feeds.stored(slots, failed)
        except BackendError as error:
            feeds.fail(error)
        finally:
            await feeds.let_go()

    async def _close_all(self, spider: Spider) -> None:
        for one in self._group:
            await _finished(one._stock("close_spider", spider=spider))

    def _stock(self, method: str, **arguments: Any) -> Any:
        # A subclass of the project may take fewer arguments, or more.
        return robustApply(getattr(super(), method), **arguments)


async def _finished(result: Any) -> None:
    """Wait for a signal handler of any kind."""
    if isinstance(result, Deferred):
        await maybe_deferred_to_future(result)
    elif isinstance(result, Awaitable):
        await result


def adopt(crawler: Crawler) -> SavedFeeds | None:
    """Put our part before the feed exporter of this crawl. None if it has none that can take it.

    A project may have several: then the first one leads, so that an item is saved once.

    Not by a setting, which would have to name the project's own subclass: to load the modules of
    its extensions while add-ons are loaded could install the wrong reactor.
    """
    assert crawler.extensions is not None
    found = [one for one in crawler.extensions.middlewares if isinstance(one, FeedExporter)]
    adopted = [_adopt(one) for one in found if _disconnect(crawler, one)]
    if not adopted:
        return None
    leader, *others = adopted
    leader._followers = tuple(others)
    for name, signal in _HANDLERS.items():
        crawler.signals.connect(getattr(leader, name), signal)
    return leader


def _disconnect(crawler: Crawler, exporter: FeedExporter) -> bool:
    """Let Scrapy's signals reach it no more. False if they do so in another way than with Scrapy's
    own class: then nothing is changed.
    """
    handlers = [(getattr(exporter, name), signal) for name, signal in _HANDLERS.items()]
    for handler, signal in handlers:
        receivers = getAllReceivers(crawler.signals.sender, signal)
        if handler not in liveReceivers(receivers):
            logger.warning(
                "The feeds of %s do not survive a kill, since it handles Scrapy's signals in its"
                " own way. Let it call the from_crawler() of FeedExporter",
                type(exporter).__qualname__,
            )
            return False
    for handler, signal in handlers:
        crawler.signals.disconnect(handler, signal)
    return True


def _adopt(exporter: FeedExporter) -> SavedFeeds:
    cls = type(exporter)
    saved: Any = type(cls.__name__, (SavedFeeds, cls), {"__module__": cls.__module__})
    exporter.__class__ = saved
    adopted: Any = exporter
    adopted._unstored = set()
    return adopted  # type: ignore[no-any-return]
