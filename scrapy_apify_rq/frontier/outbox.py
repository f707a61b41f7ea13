"""What the backend has not confirmed yet: adds, and updates (acks and requeues).

Both are sent in the order in which they came, several calls at a time. An update leaves only after
every add made before it is confirmed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from scrapy_apify_rq.backends.base import Added, Backend, Updated
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.frontier.visit import Visit, entry_of


class Outbox:
    """Sends while its ``work`` runs.

    ``added`` and ``updated`` are called with the backend's answer to an add or an update and its
    ``forefront``; ``wake`` after them.
    ``in_hurry`` says whether the crawl waits for what it has added.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        limit: int,
        added: Callable[[Visit, Added, bool], None],
        updated: Callable[[Visit, Updated, bool], None],
        wake: Callable[[], None],
        in_hurry: Callable[[], bool],
    ) -> None:
        self._backend = backend
        self._limit = limit
        self._on_added = added
        self._on_updated = updated
        self._wake = wake
        self._in_hurry = in_hurry

        self.visits: dict[str, Visit] = {}
        """By id, all that is not confirmed."""
        self.blocked = 0
        """How many callbacks wait for room."""
        self._adds: deque[tuple[int, Visit, bool]] = deque()
        self._adds_made = 0
        self._unconfirmed: OrderedDict[int, None] = OrderedDict()
        """The numbers of the adds that are not confirmed, in order."""
        self._updates: deque[tuple[int, Visit, bool]] = deque()
        """With the number of the last add that must be confirmed first."""
        self._has_adds = asyncio.Event()
        self._has_updates = asyncio.Event()
        self._cutting_adds = asyncio.Lock()
        self._cutting_updates = asyncio.Lock()
        self._batch_is_full = asyncio.Event()
        self._has_room = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._is_closing = False
        self._has_failed = False

    def add(self, visit: Visit, entry: Entry, *, forefront: bool) -> None:
        self._adds_made += 1
        self._unconfirmed[self._adds_made] = None
        self._adds.append((self._adds_made, visit, forefront))
        self._put(visit, entry)
        self._has_adds.set()
        if len(self._adds) >= self._backend.batch:
            self._batch_is_full.set()

    def update(self, visit: Visit, entry: Entry, *, forefront: bool) -> None:
        self._updates.append((self._adds_made, visit, forefront))
        self._put(visit, entry)
        self._has_updates.set()

    def _put(self, visit: Visit, entry: Entry) -> None:
        self.visits[entry.id] = visit
        self._flushed.clear()

    def has_too_many_updates(self) -> bool:
        """So many acks wait or are on their way that more would leave too little room for adds, and
        let a kill repeat too many pages."""
        return len(self.visits) - len(self._unconfirmed) > self._limit // 4

    def is_full(self) -> bool:
        """``room`` would wait. During ``flush``, too: only ``start()`` can still ask, and Scrapy
        cancels it.
        """
        return self._is_closing or len(self.visits) >= self._limit

    async def room(self) -> None:
        """Wait until there is room for one more."""
        while self.is_full():
            if self._has_failed:
                # Callbacks must come to their end. One that never waits must not stop the loop.
                await asyncio.sleep(0)
                return
            self._has_room.clear()
            self.blocked += 1
            try:
                await self._has_room.wait()
            finally:
                self.blocked -= 1

    async def flush(self) -> None:
        """Wait until all is confirmed, or nothing can be any more."""
        self._is_closing = True
        self._batch_is_full.set()
        if not self._has_failed:
            await self._flushed.wait()

    def fail(self) -> None:
        """Let go all that wait, since nothing more will be confirmed."""
        self._has_failed = True
        self._has_room.set()
        self._flushed.set()

    # Sending.

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each in a task of its own, so that something is sent."""
        adding = [_repeat(self._send_adds) for _ in range(self._backend.parallel)]
        updating = [_repeat(self._send_updates) for _ in range(self._backend.update_parallel)]
        return adding + updating

    async def _send_adds(self) -> None:
        async with self._cutting_adds:
            await self._has_adds.wait()
            await self._wait_for_company()
            forefront, batch = self._cut_adds()
        if batch:
            entries = [entry_of(visit) for _, visit in batch]
            answers = await self._backend.add(entries, forefront=forefront)
            for (number, visit), answer in zip(batch, answers, strict=True):
                del self._unconfirmed[number]
                del self.visits[answer.id]
                self._on_added(visit, answer, forefront)
            self._confirmed()

    async def _wait_for_company(self) -> None:
        """Let a batch fill while the crawl has enough to do without it."""
        is_urgent = self._is_closing or self._in_hurry()
        if not self._backend.linger or is_urgent or len(self._adds) >= self._backend.batch:
            return
        self._batch_is_full.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._batch_is_full.wait(), self._backend.linger)

    def _cut_adds(self) -> tuple[bool, list[tuple[int, Visit]]]:
        batch: list[tuple[int, Visit]] = []
        forefront = bool(self._adds) and self._adds[0][2]
        while self._adds and self._adds[0][2] == forefront and len(batch) < self._backend.batch:
            number, visit, _ = self._adds.popleft()
            batch.append((number, visit))
        if not self._adds:
            self._has_adds.clear()
        return forefront, batch

    async def _send_updates(self) -> None:
        async with self._cutting_updates:
            await self._has_updates.wait()
            forefront, batch = self._cut_updates()
        if batch:
            entries = [entry_of(visit) for visit in batch]
            answers = await self._backend.update(entries, forefront=forefront)
            for visit, answer in zip(batch, answers, strict=True):
                del self.visits[entry_of(visit).id]
                self._on_updated(visit, answer, forefront)
            self._confirmed()

    def _cut_updates(self) -> tuple[bool, list[Visit]]:
        """Those that need not wait for an add any more."""
        batch: list[Visit] = []
        forefront = bool(self._updates) and self._updates[0][2]
        oldest_add = next(iter(self._unconfirmed), self._adds_made + 1)
        while self._updates and len(batch) < self._backend.update_batch:
            after, visit, to_front = self._updates[0]
            if after >= oldest_add:
                self._has_updates.clear()
                break
            if to_front != forefront:
                break
            self._updates.popleft()
            batch.append(visit)
        if not self._updates:
            self._has_updates.clear()
        return forefront, batch

    def _confirmed(self) -> None:
        self._has_room.set()
        if self._updates:
            self._has_updates.set()
        if not self.visits:
            self._flushed.set()
        self._wake()


async def _repeat(send: Callable[[], Awaitable[None]]) -> None:
    """``send`` is a call of its own, so that what it has sent is let go when it is done."""
    while True:
        await send()
        # The embedded queue answers at once; the crawl must get its turn all the same.
        await asyncio.sleep(0)
