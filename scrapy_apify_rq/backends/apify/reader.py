"""Reads complete entries: those with given ids until a number of bytes is used up, or all of them.

An entry can have 9 MB, and a claim asks for up to 1,000 of them. So the reader learns how large the
entries of this queue are, and fetches only as many at a time as probably fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from scrapy_apify_rq.backends.apify.answers import Listed, Page
from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.http import AnswerTooLong
from scrapy_apify_rq.backends.apify.parallel import run_ahead
from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.entries.models import Entry

# Entries that are fetched at a time: at most, and while their size is unknown.
_PARALLEL: Final = 64
_PARALLEL_AT_FIRST: Final = 16
# How much one entry counts in the average size.
_WEIGHT: Final = 1 / 8
# How many entries are kept complete, at most.
MOST_COMPLETE: Final = 10_000
# The event loop gets a turn after this many bytes were parsed. Parsing an entry takes as long as
# some more bytes would.
_BYTES_PER_TURN: Final = 256 * 1024
_PARSING_COST: Final = 2048
# Entries in the first page of a list, while their size is unknown: each can have 9 MB.
_FIRST_PAGE: Final = 10
# The API would give 10,000 entries in one answer, which would block the event loop for seconds.
_LONGEST_PAGE: Final = 1000
_MOST_EMPTY: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024


class Complete:
    """The JSON of pending entries by id, within ``memory`` bytes, and their hosts."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.hosts: dict[str, str] = {}
        """By id, in the order in which they came."""
        self._texts: dict[str, bytes] = {}
        self._size = 0

    def __contains__(self, id: str) -> bool:
        return id in self._texts

    def keep(self, id: str, text: bytes, host: str) -> bool:
        """Keep an entry if there is room. The oldest stay, since they are needed first."""
        self.pop(id)
        fits = len(self._texts) < MOST_COMPLETE and self._size + len(text) <= self.memory
        if fits:
            self._texts[id] = text
            self.hosts[id] = host
            self._size += len(text)
        return fits

    def pop(self, id: str) -> bytes | None:
        text = self._texts.pop(id, None)
        self.hosts.pop(id, None)
        self._size -= len(text or b"")
        return text


@dataclass(slots=True)
class Read:
    """What ``Reader.read`` found, and how many bytes are ``left`` for more."""

    left: int
    entries: list[Entry] = field(default_factory=list)
    """The pending ones, in order."""
    rest: Sequence[str] = ()
    """Ids that were not read because no more bytes fit."""
    absent: list[str] = field(default_factory=list)
    """Ids that were fetched and do not exist."""
    fetched: int = 0
    outdated: int = 0
    """How many of the fetched ones are absent or handled."""

    def note_fetched(self, id: str, entry: Entry | None) -> None:
        self.fetched += 1
        if entry is None:
            self.absent.append(id)
        self.outdated += entry is None or entry.is_handled

    def add(self, entry: Entry, size: int) -> bool:
        """Add a pending entry if it fits. The first one always does."""
        fits = not self.entries or size <= self.left
        if fits:
            self.entries.append(entry)
            self.left -= size
        return fits


class Reader:
    """Reads entries from ``complete``, which keeps up to ``memory`` bytes, or from the API."""

    def __init__(self, api: Endpoints, memory: int) -> None:
        self._api = api
        self.complete = Complete(memory)
        self._average: float | None = None
        """The average size of the entries fetched lately, None before the first."""
        self._parsed = 0

    def fit(self, size: int, *, unknown: int) -> int:
        """Guess how many entries fit into ``size`` bytes; ``unknown`` if there is no way to."""
        return unknown if self._average is None else int(size / max(self._average, 1))

    async def read(self, ids: Sequence[str], size: int) -> Read:
        """Read the first of these entries, up to ``size`` bytes.

        At least one pending entry is read, if there is one.
        """
        ids = list(dict.fromkeys(ids))
        missing = {id for id in ids if id not in self.complete}
        calls = (partial(self._fetch, id) for id in ids if id in missing)
        read = Read(size)
        async with aclosing(run_ahead(calls, lambda: self._width(read.left))) as fetched:
            for n, id in enumerate(ids):
                if id not in missing:
                    text = self.complete.pop(id)
                elif read.entries and self.fit(read.left, unknown=1) < 1:
                    read.rest = ids[n:]
                    break
                else:
                    text = await anext(fetched)
                    text = self.complete.pop(id) or text  # written meanwhile, so newer
                entry = None if text is None else Entry.from_json(id, text)
                if id in missing:
                    read.note_fetched(id, entry)
                if text is None or entry is None or entry.is_handled:
                    continue
                if not read.add(entry, len(text)):
                    self.complete.keep(id, text, host_of(entry))
                    read.rest = ids[n:]
                    break
                await self._pause_after(len(text))
        return read

    async def _fetch(self, id: str) -> bytes | None:
        text = await self._api.get_request(id)
        if text is None:
            return None
        before = len(text) if self._average is None else self._average
        self._average = before + (len(text) - before) * _WEIGHT
        return text

    def _width(self, left: int) -> int:
        return max(1, min(self.fit(left, unknown=_PARALLEL_AT_FIRST), _PARALLEL))

    async def _pause_after(self, size: int) -> None:
        self._parsed += size + _PARSING_COST
        if self._parsed > _BYTES_PER_TURN:
            self._parsed = 0
            await asyncio.sleep(0)

    async def list(self, states: str | None) -> AsyncGenerator[Listed, None]:
        """Yield all entries in these states of the API, page by page."""
        limit = self.fit(_PAGE_BYTES, unknown=_FIRST_PAGE)
        cursor: str | None = None
        cursors: set[str] = set()
        empty = 0
        while True:
            page = await self._page(limit, states, cursor)
            size = 0
            for n, item in enumerate(page.items):
                size += len(item.text)
                yield item
                if n % 100 == 99:
                    await asyncio.sleep(0)
            empty = 0 if page.items else empty + 1
            # A list that begins anew, or has nothing but empty pages, would never end.
            if not page.next_cursor or page.next_cursor in cursors or empty > _MOST_EMPTY:
                return
            cursors.add(cursor := page.next_cursor)
            limit = _PAGE_BYTES * len(page.items) // max(size, 1)

    async def _page(self, limit: int, states: str | None, cursor: str | None) -> Page:
        """Return a page of up to ``limit`` entries, or of fewer if they are too long for one."""
        limit = max(1, min(limit, _LONGEST_PAGE))
        while True:
            try:
                return await self._api.list_requests(limit, states=states, cursor=cursor)
            except AnswerTooLong:  # never with a limit of 1
                limit = max(1, limit // 8)
