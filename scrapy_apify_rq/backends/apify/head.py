"""The head of an API's queue, as its only consumer reads it: single access.

A head is a list of ids in the queue's order. It may lag behind what was written, and tells little
of an entry, so here is remembered what each may be without a call: entries in full, for those that
are pending, and what was acked, which the head may go on to show.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol

from scrapy_apify_rq.backends.apify.parallel import together
from scrapy_apify_rq.backends.base import Claim, Claimed
from scrapy_apify_rq.entries.models import Entry

HEAD_LIMIT: Final = 1000

# Complete entries kept so that they need not be fetched again: how many, and their bytes.
_COMPLETE_LIMIT: Final = 10_000
_COMPLETE_BYTES: Final = 32 * 1024 * 1024
# Missing this many complete entries, a list of all pending ones is cheaper than a GET for each.
_LIST_FROM: Final = 50
# Fetched one by one at the very start, so that the first pages need not wait for a long list, and
# so that it shows whether the head lags: a GET by id never does, but a list would like the head.
_FIRST_FETCH: Final = 16


class Queue(Protocol):
    """What is asked of the backend."""

    lag: float
    consistency_delay: float

    @property
    def pending_count(self) -> int:
        """As the API has told it last."""

    async def read_head(self, limit: int) -> Any:
        """The API's answer: ``items`` with their ids, in the queue's order."""

    async def get(self, id: str) -> Entry | None: ...

    def stored(self, states: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """Ids and JSON of all entries in these states, as the API names them, in any order."""


class _Complete:
    """JSON of pending entries by id, within limits, so that claiming them takes no further call."""

    def __init__(self) -> None:
        self._texts: dict[str, bytes] = {}
        self._size = 0

    def __contains__(self, id: str) -> bool:
        return id in self._texts

    def keep(self, id: str, text: bytes) -> bool:
        """False where there is no room: the oldest stay, since they are needed first."""
        self.pop(id)
        full = len(self._texts) >= _COMPLETE_LIMIT or self._size + len(text) > _COMPLETE_BYTES
        if not full:
            self._texts[id] = text
            self._size += len(text)
        return not full

    def pop(self, id: str) -> bytes | None:
        text = self._texts.pop(id, None)
        self._size -= len(text or b"")
        return text


class Head:
    """Claims without leases. The backend tells of each write that the API has confirmed."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._complete = _Complete()
        self._listable = True
        """All pending entries can be kept, as far as we know."""
        self._is_fresh = False
        """What was fetched last is pending, as the head has it."""
        self._acked: OrderedDict[str, float] = OrderedDict()
        """When the acks of late were confirmed; a head that lags shows their entries as pending."""
        self._stale = 0
        """How many of them the last head showed."""
        self._absent: dict[str, float] = {}
        """Since when ids on the head have had no entry."""
        self._alone: bool | None = None
        """Whether the API knows of no client but us; None before it has told."""

    def wrote(self, id: str, text: bytes) -> None:
        """The entry is pending, and this is its JSON."""
        self._acked.pop(id, None)
        self._complete.keep(id, text)

    def acked(self, id: str) -> None:
        self._complete.pop(id)
        self._acked[id] = time.monotonic()
        self._acked.move_to_end(id)
        self._forget_acked()  # not only when it is claimed, which a small queue may not need again

    def deleted(self, ids: Iterable[str]) -> None:
        for id in ids:
            self._complete.pop(id)

    async def claim(self, limit: int, unwanted: set[str]) -> Claim:
        """As ``Backend.claim``, with these ids aside."""
        self._forget_acked()
        unwanted = unwanted - self._acked.keys()
        # One more than wanted, to know whether there are more.
        asked = min(limit + len(unwanted) + 2 * self._stale + 1, HEAD_LIMIT)
        head = await self._queue.read_head(asked)
        others = self._note_clients(head["hadMultipleClients"])
        ids = [item["id"] for item in head["items"]]
        self._stale = sum(id in self._acked for id in ids)
        wanted = [id for id in ids if id not in unwanted and id not in self._acked]
        first = self._first(wanted[:limit])
        more = len(ids) >= asked or len(first) < len(wanted)
        entries = await self._hydrate(first) if first else await self._put_back(ids)
        # An entry that cannot be read yet is pending all the same, but not one that is gone.
        now = time.monotonic()
        more = more or any(now - since < self._queue.lag for since in self._absent.values())
        claimed = [Claimed(entry, None) for entry in entries]
        return Claim(claimed, more, others=others, alone=self._alone is True)

    def _forget_acked(self) -> None:
        oldest = time.monotonic() - self._queue.lag
        while self._acked and self._acked[id := next(iter(self._acked))] < oldest:
            del self._acked[id]

    def _note_clients(self, several: bool) -> bool:
        """Whether somebody else has come; who was there before us may have left long ago."""
        came = several and self._alone is True
        self._alone = not several
        return came

    async def _put_back(self, ids: Sequence[str]) -> list[Entry]:
        """Those on the head that we have acked and others have made pending again since.

        For a while they look like those that the head shows only because it lags. Reading one by
        its id tells, and is worth it before the crawl ends for want of anything else to do.
        """
        before = time.monotonic() - self._queue.consistency_delay
        shown = [id for id in ids if self._acked.get(id, before) < before]
        entries = still_pending(await together(map(self._queue.get, shown[:_FIRST_FETCH])))
        for entry in entries:
            self._acked.pop(entry.id, None)
        return entries

    def _first(self, ids: Sequence[str]) -> Sequence[str]:
        """Only so many that they can be fetched at once, at the start and while the head lags."""
        missing = [n for n, id in enumerate(ids) if id not in self._complete]
        if not self._is_fresh and len(missing) > _FIRST_FETCH:
            ids = ids[: missing[_FIRST_FETCH]]
        return ids

    async def _hydrate(self, ids: Sequence[str]) -> list[Entry]:
        """The complete entries, in this order; those not found yet, or handled, are left out."""
        missing = [id for id in ids if id not in self._complete]
        fits = self._listable and self._queue.pending_count <= _COMPLETE_LIMIT
        if len(missing) >= _LIST_FROM and fits:
            await self._read_list()
            missing = [id for id in ids if id not in self._complete]
        fetched = dict(zip(missing, await together(map(self._queue.get, missing)), strict=True))
        if missing:
            self._is_fresh = len(still_pending(fetched.values())) == len(missing)
        now = time.monotonic()
        self._absent = {
            id: self._absent.get(id, now) for id, entry in fetched.items() if entry is None
        }
        entries: list[Entry | None] = []
        for n, id in enumerate(ids):
            text = None if fetched.get(id) else self._complete.pop(id)
            entries.append(fetched.get(id) if text is None else Entry.from_json(id, text))
            if n % 100 == 99:
                await asyncio.sleep(0)
        return still_pending(entries)

    async def _read_list(self) -> None:
        """Keep all pending entries, or as many as there is room for."""
        async with aclosing(self._queue.stored("pending")) as stored:
            async for id, text in stored:
                # The list may lag: what we have of an entry is newer.
                if id in self._complete or id in self._acked:
                    continue
                if not self._complete.keep(id, text):
                    self._listable = False
                    return


def still_pending(entries: Iterable[Entry | None]) -> list[Entry]:
    """Those that are there and not handled."""
    return [entry for entry in entries if entry is not None and not entry.is_handled]
