"""What the backend has not confirmed yet: adds, updates (acks and requeues), and items.

All are sent in the order in which they came, several calls at a time. An update takes the items of
its request with it, and leaves only after every add made before it is confirmed, and all items that
were sent ahead.

The update of a retry ends its lease, so that any worker could try it again at once. In shared
access the update therefore waits for the retry's time, while the lease is kept; a kill meanwhile
loses the count of one try. ``close`` sends it before.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.base import Added, Backend, LooseItems, Updated
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.frontier.alarm import Alarm
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from scrapy_apify_rq.frontier.waiting import Waiting

T = TypeVar("T")

# Bytes sent in one call, unless one entry alone has more: a call needs its entries' texts, too.
_CALL_SIZE: Final = 4 * 2**20
# Groups of items sent ahead that may wait, of which one call takes all: about 256 KB each.
_MOST_ITEMS: Final = 4
# More updates than this share of the limits, and nothing is handed out: adds need room, too, and a
# kill repeats every page whose ack still waits.
_UPDATES_SHARE: Final = 4


def is_void(update: Visit) -> bool:
    """It is a requeue whose lease has ended: other workers may have the entry by now, and what they
    make of it must stand.
    """
    has_lapsed = update.lease is not None and update.lease <= clock.now()
    return has_lapsed and not entry_of(update).is_handled


class Owner(Protocol):
    """What the outbox reports to, and what it asks."""

    def added(self, visit: Visit, answer: Added) -> None: ...
    def updated(self, visit: Visit, answer: Updated) -> None: ...
    def lapsed(self, visit: Visit) -> None:
        """A requeue is not sent, because its lease has ended."""

    def confirmed(self) -> None:
        """The answers of one call have been reported."""

    def is_starving(self) -> bool:
        """The crawl waits for what it adds."""


class _Lane:
    """Visits of one kind that wait to be sent, each with a number."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Visit]] = deque()
        self.ready = asyncio.Event()
        """The first one may be sent, or there will be nothing more to send."""
        self.turn = asyncio.Lock()
        """Held while a batch is cut."""

    def put(self, number: int, visit: Visit) -> None:
        self.waiting.append((number, visit))
        self.ready.set()

    def cut(self, most: int, before: float) -> list[tuple[int, Visit]]:
        """The next batch: the visits at the head that have numbers below ``before`` and go to the
        same end of the queue.
        """
        batch: list[tuple[int, Visit]] = []
        size = 0
        while self.waiting and len(batch) < most:
            number, visit = self.waiting[0]
            size += visit.size
            if number >= before:
                self.ready.clear()
                break
            if batch and (size > _CALL_SIZE or visit.forefront != batch[0][1].forefront):
                break
            batch.append(self.waiting.popleft())
        if not self.waiting:
            self.ready.clear()
        return batch


class Outbox:
    """Sends while its ``work`` runs. ``limit`` counts visits, ``memory`` their bytes."""

    def __init__(self, backend: Backend, *, limit: int, memory: int) -> None:
        self._backend = backend
        self._limit = limit
        self._memory = memory
        self.visits: dict[str, Visit] = {}
        """By id, all that is not confirmed."""
        self.blocked = 0
        """How many callbacks wait for room."""
        self._size = 0
        self._updates_size = 0
        self._adds = _Lane()
        """The numbers count the adds, and the items sent ahead."""
        self._adds_made = 0
        self._unconfirmed: OrderedDict[int, None] = OrderedDict()
        """The numbers of these that are not confirmed, in order."""
        self._items: dict[int, LooseItems] = {}
        """By number, the items sent ahead that are not confirmed."""
        self._items_ready = asyncio.Event()
        self._updates = _Lane()
        """The number is that of the last add that must be confirmed first."""
        self._retries = Waiting()
        """Those whose time has not come."""
        self._retry_is_due = Alarm(self._send_due_retries)
        self._is_hurried = False
        self._batch_is_full = asyncio.Event()
        self._changed = asyncio.Event()
        """Set at each confirmation and at the failure."""
        self._is_closing = False
        self._has_failed = False

    def add(self, visit: Visit) -> None:
        self._adds_made += 1
        self._unconfirmed[self._adds_made] = None
        self._put(visit)
        self._adds.put(self._adds_made, visit)
        if len(self._adds.waiting) >= self._backend.batch:
            self._batch_is_full.set()

    def update(self, visit: Visit) -> None:
        self._put(visit)
        is_early = visit.lease is not None and visit.not_before > time.monotonic()
        if is_early and not self._is_hurried:
            self._retries.add(visit)
            self._retry_is_due.set(visit.not_before)
        else:
            self._send_update(visit)

    def _send_update(self, visit: Visit) -> None:
        if visit.lease is not None:
            visit.not_before = 0.0  # it has waited here, and must not wait again in the window
        self._updates_size += visit.size
        self._updates.put(self._adds_made, visit)

    def save(self, items: LooseItems) -> None:
        """Send items ahead of an update, or items that belong to none."""
        self._adds_made += 1
        self._unconfirmed[self._adds_made] = None
        self._items[self._adds_made] = items
        self._items_ready.set()

    async def room_for_items(self) -> None:
        """Wait until few items sent ahead are waiting."""
        while len(self._items) >= _MOST_ITEMS and not (self._has_failed or self._is_closing):
            self._changed.clear()
            await self._changed.wait()

    def send_retries(self) -> None:
        """Send those of retries before their time, too, from now on."""
        self._is_hurried = True
        self._retry_is_due.turn_off()
        for visit in self._retries.due(math.inf):
            self._send_update(visit)

    def _send_due_retries(self) -> None:
        for visit in self._retries.due(time.monotonic()):
            self._send_update(visit)
        if (next_at := self._retries.next_at) is not None:
            self._retry_is_due.set(next_at)

    def _put(self, visit: Visit) -> None:
        self.visits[entry_of(visit).id] = visit
        self._size += visit.size

    @property
    def unsaved_adds(self) -> int:
        return len(self._unconfirmed) - len(self._items)

    @property
    def unsaved_updates(self) -> int:
        return len(self.visits) - self.unsaved_adds

    def has_too_many_updates(self) -> bool:
        """So many acks wait that nothing more should be handed out."""
        return (
            self.unsaved_updates - len(self._retries) > self._limit // _UPDATES_SHARE
            or self._updates_size > self._memory // _UPDATES_SHARE
        )

    def is_full(self) -> bool:
        """``room`` would wait. So it does during ``flush``, when only ``start()`` can still ask,
        which Scrapy cancels.
        """
        return len(self.visits) >= self._limit or self._size >= self._memory or self._is_closing

    async def room(self) -> None:
        """Wait until there is room for one more."""
        while self.is_full():
            if self._has_failed:
                # Callbacks must come to their end. One that never waits must not stop the loop.
                await asyncio.sleep(0)
                return
            self._changed.clear()
            self.blocked += 1
            try:
                await self._changed.wait()
            finally:
                self.blocked -= 1

    async def flush(self, patience: float) -> None:
        """Wait until all is confirmed, or nothing can be any more.

        Raises TimeoutError if nothing is confirmed for so many seconds.
        """
        self._is_closing = True
        self.send_retries()
        self._batch_is_full.set()
        while not self.is_done:
            self._changed.clear()
            async with asyncio.timeout(patience):
                await self._changed.wait()
        self._end_work()

    def fail(self) -> None:
        """Send nothing more, and let go all that wait."""
        self._has_failed = True
        self._retry_is_due.turn_off()
        self._end_work()

    @property
    def is_done(self) -> bool:
        """There is nothing to send any more."""
        return self._has_failed or (self._is_closing and not self.visits and not self._items)

    def _end_work(self) -> None:
        for event in (
            self._changed,
            self._batch_is_full,
            self._adds.ready,
            self._updates.ready,
            self._items_ready,
        ):
            event.set()

    # Sending.

    def work(self, owner: Owner) -> list[Coroutine[Any, Any, None]]:
        """What has to run, each in a task of its own. Each ends by itself when all is done."""
        adding = [self._repeat(self._send_adds, owner) for _ in range(self._backend.parallel)]
        updating = [
            self._repeat(self._send_updates, owner) for _ in range(self._backend.update_parallel)
        ]
        return [*adding, *updating, self._repeat(self._send_items, owner)]

    async def _repeat(self, send: Callable[[Owner], Awaitable[None]], owner: Owner) -> None:
        """Repeat ``send``, a call of its own so that what it has sent is let go afterwards."""
        while not self.is_done:
            await send(owner)
            # The embedded queue answers at once; the crawl must get its turn all the same.
            await asyncio.sleep(0)

    async def _send_adds(self, owner: Owner) -> None:
        async with self._adds.turn:
            await self._adds.ready.wait()
            await self._wait_for_company(owner)
            if self.is_done:
                return
            batch = self._adds.cut(self._backend.batch, self._adds_made + 1)
        if batch:
            answers = await _send(self._backend.add, [visit for _, visit in batch])
            for (number, visit), answer in zip(batch, answers, strict=True):
                del self._unconfirmed[number]
                self._remove(visit)
                owner.added(visit, answer)
            self._confirmed(owner)

    async def _wait_for_company(self, owner: Owner) -> None:
        """Let a batch fill up while the crawl has enough to do without it."""
        is_urgent = self._is_closing or self._has_failed or owner.is_starving()
        is_full = len(self._adds.waiting) >= self._backend.batch
        if not self._backend.linger or is_urgent or is_full:
            return
        self._batch_is_full.clear()
        with suppress(TimeoutError):
            # Not wait_for(), which in Python 3.11 may swallow the cancellation of its task.
            async with asyncio.timeout(self._backend.linger):
                await self._batch_is_full.wait()

    async def _send_updates(self, owner: Owner) -> None:
        async with self._updates.turn:
            await self._updates.ready.wait()
            if self.is_done:
                return
            oldest_add = next(iter(self._unconfirmed), self._adds_made + 1)
            batch = self._updates.cut(self._backend.update_batch, oldest_add)
        if not batch:
            return
        for place in [place for place in batch if is_void(place[1])]:
            batch.remove(place)
            self._note_sent(place[1])
            owner.lapsed(place[1])
        if batch:
            visits = [visit for _, visit in batch]
            items = {entry_of(visit).id: visit.items for visit in visits if visit.items is not None}
            update = partial(self._backend.update, items=items) if items else self._backend.update
            answers = await _send(update, visits)
            for (_, visit), answer in zip(batch, answers, strict=True):
                self._note_sent(visit)
                owner.updated(visit, answer)
        self._confirmed(owner)

    def _note_sent(self, update: Visit) -> None:
        self._updates_size -= update.size
        self._remove(update)

    async def _send_items(self, owner: Owner) -> None:
        await self._items_ready.wait()
        self._items_ready.clear()
        items = self._backend.items
        if not self._items or items is None or self.is_done:
            return
        batch = dict(islice(self._items.items(), _MOST_ITEMS))
        await items.save(list(batch.values()))
        for number in batch:
            del self._items[number], self._unconfirmed[number]
        if self._items:
            self._items_ready.set()
        self._confirmed(owner)

    def _remove(self, visit: Visit) -> None:
        del self.visits[entry_of(visit).id]
        self._size -= visit.size

    def _confirmed(self, owner: Owner) -> None:
        self._changed.set()
        if self._updates.waiting:
            self._updates.ready.set()
        if self.is_done:
            self._end_work()
        owner.confirmed()


class _Call(Protocol[T]):
    async def __call__(self, entries: Sequence[Entry], *, forefront: bool) -> list[T]: ...


async def _send(call: _Call[T], batch: list[Visit]) -> list[T]:
    """Send a batch to one end of the queue and return its answers, in its order.

    Each entry goes to the very front, so the last one is sent first.
    """
    forefront = batch[0].forefront
    step = -1 if forefront else 1
    answers = await call([entry_of(visit) for visit in batch[::step]], forefront=forefront)
    return answers[::step]
