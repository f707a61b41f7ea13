"""Reads complete entries: those with given ids until a number of bytes is used up, or all of them.

An entry can have 9 MB, and a claim asks for up to 1,000 of them. So the reader learns how large the
entries of this queue are, and fetches only as many at a time as probably fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from scrapy_apify_rq.backends.api_models import Page
from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.http import AnswerTooLong
from scrapy_apify_rq.backends.apify.parallel import run_ahead
from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError

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
# Pages in turn without an entry, before we take a list for one without an end.
_MOST_EMPTY: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024
_NONE: Final[Mapping[str, Entry]] = {}


class Complete:
    """Pending entries by id as JSON, within ``memory`` bytes, and their hosts."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.hosts: dict[str, str] = {}
        """By id, in the order in which they came."""
        self._texts: dict[str, bytes] = {}
        self._size = 0

    def __contains__(self, id: str) -> bool:
        return id in self._texts

    def keep(self, entry: Entry, text: bytes | None = None) -> bool:
        """Keep an entry if there is room. The oldest stay, since they are needed first."""
        self.drop(entry.id)
        if len(self._texts) >= MOST_COMPLETE:
            return False
        text = text or entry.to_json().encode()
        if self._size + len(text) > self.memory:
            return False
        self._texts[entry.id] = text
        self.hosts[entry.id] = host_of(entry)
        self._size += len(text)
        return True

    def take(self, id: str) -> Entry | None:
        text = self._texts.get(id)
        self.drop(id)
        return None if text is None else Entry.from_json(id, text)

    def drop(self, id: str) -> None:
        self._size -= len(self._texts.pop(id, b""))
        self.hosts.pop(id, None)


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
    handled: list[str] = field(default_factory=list)
    """Ids that were fetched and are handled."""

    def note_fetched(self, id: str, entry: Entry | None) -> None:
        self.fetched += 1
        if entry is None:
            self.absent.append(id)
        elif entry.is_handled:
            self.handled.append(id)

    def add(self, entry: Entry) -> bool:
        """Add a pending entry if it fits. The first one always does."""
        size = entry.size
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

    async def read(
        self, ids: Sequence[str], size: int, listed: Mapping[str, Entry] = _NONE
    ) -> Read:
        """Read the first of these entries, up to ``size`` bytes. ``listed`` holds some of them.

        At least one pending entry is read, if there is one.
        """
        ids = list(dict.fromkeys(ids))
        missing = {id for id in ids if id not in self.complete and id not in listed}
        calls = (partial(self._fetch, id) for id in ids if id in missing)
        read = Read(size)
        async with aclosing(run_ahead(calls, lambda: self._width(read.left))) as fetched:
            for n, id in enumerate(ids):
                if id not in missing:
                    entry = self.complete.take(id) or listed.get(id)
                elif read.entries and self.fit(read.left, unknown=1) < 1:
                    read.rest = ids[n:]
                    break
                else:
                    entry = await anext(fetched)
                    entry = self.complete.take(id) or entry  # written meanwhile, so newer
                    read.note_fetched(id, entry)
                if entry is None or entry.is_handled:
                    continue
                if not read.add(entry):
                    self.complete.keep(entry)
                    read.rest = ids[n:]
                    break
                await self._pause_after(entry.size)
        return read

    async def _fetch(self, id: str) -> Entry | None:
        entry = await self._api.get_request(id)
        if entry is not None:
            self._learn(entry.size, _WEIGHT)
        return entry

    def _learn(self, size: float, weight: float) -> None:
        before = size if self._average is None else self._average
        self._average = before + (size - before) * weight

    def _width(self, left: int) -> int:
        return max(1, min(self.fit(left, unknown=_PARALLEL_AT_FIRST), _PARALLEL))

    async def _pause_after(self, size: int) -> None:
        self._parsed += size + _PARSING_COST
        if self._parsed > _BYTES_PER_TURN:
            self._parsed = 0
            await asyncio.sleep(0)

    async def list(self, states: str | None) -> AsyncGenerator[Entry, None]:
        """Yield all entries in these states of the API, page by page."""
        cursor: str | None = None
        cursors: set[str] = set()
        empty = 0
        while True:
            page = await self.page(_LONGEST_PAGE, states, cursor)
            for n, entry in enumerate(page.items):
                yield entry
                if n % 100 == 99:
                    await asyncio.sleep(0)
            cursor = page.next_cursor
            if not cursor:
                return
            empty = 0 if page.items else empty + 1
            if cursor in cursors or empty > _MOST_EMPTY:
                raise BackendError(
                    f"The list of requests of {self._api.location} has no end: it begins again, or"
                    " has nothing but empty pages."
                )
            cursors.add(cursor)

    async def page(self, limit: int, states: str | None, cursor: str | None) -> Page:
        """Return a page of up to ``limit`` entries, of fewer if they are large."""
        limit = max(1, min(limit, self.fit(_PAGE_BYTES, unknown=_FIRST_PAGE), _LONGEST_PAGE))
        while True:
            try:
                page = await self._api.list_requests(limit, states=states, cursor=cursor)
            except AnswerTooLong:  # never with a limit of 1
                limit = max(1, limit // 8)
            else:
                if page.items:
                    size = sum(entry.size for entry in page.items) / len(page.items)
                    self._learn(size, 1)
                return page
