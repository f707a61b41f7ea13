"""Reads the entries that the head names, many in a call: from the list of pending entries.

The platform gives this list in the queue's order (apify-client-js#880), so it is read on where the
last claim stopped. What it does not show there is fetched by id: an entry at the front, say. In
another order, or while it lags, it has little of what the head names. Then it is left alone for a
while.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Final

from scrapy_apify_rq.backends.apify.reader import Reader
from scrapy_apify_rq.entries.models import Entry

# With fewer entries to fetch, a GET for each is as fast, and exact.
_LIST_FROM: Final = 50
# Reading a page holds up the crawl: 3 ms for so many small entries.
_LONGEST_PAGE: Final = 250
# Of one claim: twice as many as a head needs.
_MOST_PAGES: Final = 8
# Seconds until a list that was in another order is looked at again.
_PAUSE: Final = 60.0


class Backlog:
    """Pending entries behind those that were read last."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._cursor: str | None = None
        """Where to read on; None: at the beginning."""
        self._not_before = 0.0
        """When it may be of use again."""

    async def read(
        self, wanted: Collection[str], head: Sequence[str], others: Collection[str]
    ) -> dict[str, Entry]:
        """Read most of the ``wanted`` entries of this head, unless they are few.

        The ``others`` that are listed between them are kept complete, if there is room.
        """
        complete = self._reader.complete
        on_head = set(head)
        missing = {id for id in wanted if id in on_head and id not in complete}
        found: dict[str, Entry] = {}
        for _ in range(_MOST_PAGES):
            if len(missing) < _LIST_FROM or time.monotonic() < self._not_before:
                break
            limit = len(missing)
            if self._cursor is None:  # the list begins with what was claimed before
                limit = max(place for place, id in enumerate(head, 1) if id in missing)
            page = await self._reader.page(min(limit, _LONGEST_PAGE), "pending", self._cursor)
            wasted = 0
            for entry in page.items:
                if entry.id in missing:
                    missing.remove(entry.id)
                    found[entry.id] = entry
                elif entry.id in others and entry.id not in found and entry.id not in complete:
                    wasted += not complete.keep(entry)
            if 2 * sum(entry.id in on_head for entry in page.items) < len(page.items):
                if self._cursor is None:
                    self._not_before = time.monotonic() + _PAUSE
                self._cursor = None
                break
            self._cursor = page.next_cursor
            if self._cursor is None or 2 * wasted >= len(page.items):
                break
        return found
