"""What a crawl scrapes, saved so that it survives the process.

An item belongs to the request in flight on whose behalf it is scraped, and is saved with that
request's verdict: a page that a crash repeats has left no items. It is written at once, because
items are mutable.

Items without a request are saved by themselves, each under a key that is the same in every run:
those of ``start()`` by what it yields, any others by what they are, both with the number of their
equals before them. So a later run neither saves them again nor exports them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from scrapy_apify_rq.backends.base import LooseItems
from scrapy_apify_rq.crawl.flight import Flight
from scrapy_apify_rq.crawl.inflight import InFlight, Origin, StartItem, mark_start_item
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from scrapy.http import Response
    from scrapy.statscollectors import StatsCollector

    from scrapy_apify_rq.crawl.report import Report
    from scrapy_apify_rq.entries.saved_items import ItemCodec
    from scrapy_apify_rq.frontier.frontier import Frontier

# A request with more items than this, or more characters of them, sends them ahead.
_MOST_ITEMS: Final = 256
_MOST_SIZE: Final = 2**18


class Items:
    """``saved`` are the keys of the items without a request that earlier runs have saved."""

    def __init__(
        self,
        codec: ItemCodec,
        saved: AbstractSet[str],
        *,
        inflight: InFlight,
        frontier: Frontier,
        report: Report,
        stats: StatsCollector,
    ) -> None:
        self._codec = codec
        self._saved = saved
        self._inflight = inflight
        self._frontier = frontier
        self._report = report
        self._stats = stats
        self._equals: Counter[str] = Counter()
        """How many there were of each content. Grows by about 150 bytes for an item without a
        request."""

    def begin_start_item(self, item: Any) -> bool:
        """``start()`` yields this item. Return False if an earlier run has saved it."""
        try:
            key = self._key("start", self._codec.write(item))
        except CodecError:
            return True  # its pipelines may make one of it that can be written
        if key in self._saved:
            self._stats.inc_value("apify_rq/items_known")
            return False
        mark_start_item(StartItem(key))
        return True

    async def scraped(self, item: Any, response: Response | None = None) -> bool:
        """Save the item in time. Return False if an earlier run has saved it already."""
        try:
            text = self._codec.write(item)
        except CodecError as error:
            self._report.unsaved_item(item, error)
            return True
        holder = self._inflight.holder(response)
        if isinstance(holder, Flight):
            self._add(holder, text)
        elif holder is Origin.START:
            return True  # the next run scrapes it again, since the queue has not got its request
        elif holder is Origin.NOTHING:
            self._frontier.save(LooseItems([text], secrets.token_hex(8)))
        else:
            key = holder.next_key() if holder is not None else self._key("other", text)
            if key in self._saved:
                self._stats.inc_value("apify_rq/items_known")
                return False
            self._frontier.save(LooseItems([text], key))
        self._stats.inc_value("apify_rq/items")
        await self._frontier.room_for_items()
        return True

    def _add(self, flight: Flight, text: str) -> None:
        flight.items.append(text)
        flight.items_size += len(text)
        if len(flight.items) > _MOST_ITEMS or flight.items_size > _MOST_SIZE:
            if flight.spill is None:
                flight.spill = secrets.token_hex(8)
            entry = flight.visit.entry
            assert isinstance(entry, Entry)
            ahead = LooseItems(flight.items, flight.spill, entry.id, entry.retry_count)
            self._frontier.save(ahead)
            flight.items, flight.items_size = [], 0

    def _key(self, kind: str, text: str) -> str:
        content = hashlib.sha256(text.encode()).hexdigest()[:24]
        self._equals[f"{kind}:{content}"] += 1
        return f"{kind}:{content}:{self._equals[f'{kind}:{content}']}"
