"""The async core: everything this process knows of the queue, between Scrapy and the backend.

Entries wait in the *outbox* until the backend has confirmed them, and in the *window* until they
are handed out. Invariants, each with a test of its name in tests/test_invariants.py:

 1. The methods that the scheduler calls synchronously touch memory only.
 2. Adds before acks: an ack leaves only after every add made before it is confirmed, so a crash can
    repeat a page but cannot lose its links.
 3. An entry is acked only when Scrapy has finished with it (the scheduler sees to that).
 4. "Nothing pending" needs an empty outbox, an empty window, nothing handed out, and the backend's
    answer "nothing" to a question asked after our last write was confirmed, asked again after the
    backend's lag.
 5. No id is handed out twice at the same time; a lease that lapsed in the window is not used.
 6. A failure that retries cannot cure closes the spider with its reason; what is unsaved is never
    reported as finished.
 7. ``close()`` flushes, releases what it holds, and leaves unfinished entries pending.
 8. An entry that cannot be decoded is acked with an error message (the scheduler sees to that).
 9. Memory is bounded: window and outbox have limits; ``room()`` holds the spider back, and nothing
    is handed out while too many acks wait.
10. An entry added here keeps its live request while it is in the window.
11. Nothing of ours is kept in ``request.meta``: a ``Visit`` holds it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scrapy_apify_rq.backends.base import Added, Backend, Claimed
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.visits import Visit

if TYPE_CHECKING:
    from scrapy.statscollectors import StatsCollector

    from scrapy_apify_rq.models import Entry

logger = logging.getLogger(__name__)

# Seconds between two questions to a queue that has nothing for us: doubling, from and to.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0
# With this many requests ready, an add may wait a moment until its batch is full.
_ENOUGH = 32
# With this many callbacks waiting for room, more pages would take memory and bring nothing.
_HELD_BACK = 16


class Frontier:
    """Owns the backend between ``open`` and ``close``.

    ``wake`` is called when there is something new to hand out or the queue is found empty;
    ``dropped`` for a visit whose entry the queue had already; ``failed`` once, when the backend
    gives up; ``refused`` for a visit that the queue will never take, with the reason. ``urgency``
    ranks an entry, see ``Visit.urgency``.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        stats: StatsCollector,
        window: int,
        outbox: int,
        idle_before_close: float,
        urgency: Callable[[Entry], tuple[bool, int]],
        wake: Callable[[], None],
        dropped: Callable[[Visit], None],
        refused: Callable[[Visit, str], None],
        failed: Callable[[BackendError], None],
    ) -> None:
        self._backend = backend
        self._stats = stats
        self._window_limit = window
        self._outbox_limit = outbox
        self._settle_time = max(backend.consistency_delay, idle_before_close)
        self._urgency = urgency
        self._wake = wake
        self._on_dropped = dropped
        self._on_refused = refused
        self._on_failed = failed

        self._tasks: list[asyncio.Task[None]] = []
        self._error: BackendError | None = None
        self._closing = False
        self._on_hold = False
        self._has_told_rate = False
        self._known: set[bytes] = set()
        """Ids that the backend has confirmed, as bytes: a third less memory than text."""

        self._adds: deque[tuple[int, Visit, bool]] = deque()
        self._adds_made = 0
        self._unconfirmed: OrderedDict[int, None] = OrderedDict()
        """The numbers of the adds that are not confirmed, in order."""
        self._updates: deque[tuple[int, Visit, bool]] = deque()
        """With the number of the last add that must be confirmed first."""
        self._sending: dict[str, Visit] = {}
        """By id, all that the outbox holds."""
        self._has_adds = asyncio.Event()
        self._has_updates = asyncio.Event()
        self._cutting_adds = asyncio.Lock()
        self._cutting_updates = asyncio.Lock()
        self._batch_is_full = asyncio.Event()
        self._has_room = asyncio.Event()
        self._held_back = 0
        """How many wait for room."""
        self._flushed = asyncio.Event()
        self._flushed.set()

        self._window: list[Visit] = []
        """Sorted; the next one to hand out is the last."""
        self._waiting: dict[str, Visit] = {}
        """By id, those of the window that are in the backend, too; they count against its limit."""
        self._orders = 0
        self._more = True
        """The backend may hold pending entries that are neither in the window nor handed out."""
        self._behind = 0
        """How many pending entries we know of and wait to see in a claim."""
        self._left_at = -math.inf
        """When such an entry last came into being; a lagging ``claim`` may not see it yet."""
        self._claim_again_at = 0.0
        self._claiming = False
        self._out: dict[str, Visit] = {}
        self._refill = asyncio.Event()
        self._settled: dict[str, float] = {}
        """Ids lately acked or requeued, which a lagging ``claim`` may still show as they were."""

        self._drained = False
        self._quiet_since: float | None = None
        self._pause = _FIRST_PAUSE
        self._asked_at = 0.0
        self._ask_timer: asyncio.TimerHandle | None = None

    async def open(self, *, has_pending: bool = True) -> None:
        self._more = has_pending
        workers = [self._send_adds, self._send_updates] * self._backend.parallel
        self._tasks = [asyncio.create_task(self._guard(work())) for work in (*workers, self._read)]

    async def close(self) -> None:
        """Send what is unsent, release what is held; unfinished entries stay pending."""
        self._closing = True
        if self._tasks and self._error is None:
            self._batch_is_full.set()
            await self._flushed.wait()
        if self._ask_timer is not None:
            self._ask_timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        held = (*self._window, *self._out.values())
        if self._error is None and any(visit.lease is not None for visit in held):
            await self._backend.unlock()

    async def hold(self) -> None:
        """Hand nothing out from now on; what was handed out before is still acked."""
        self._on_hold = True

    @property
    def error(self) -> BackendError | None:
        """Why the backend gave up; None while it works."""
        return self._error

    @property
    def waiting(self) -> int:
        """Requests ready to be handed out."""
        return len(self._window)

    @property
    def unsaved(self) -> int:
        """Adds, updates and acks that the backend has not confirmed."""
        return len(self._sending)

    # What the scheduler calls from Scrapy's synchronous methods: memory only.

    def knows(self, id: str) -> bool:
        return id in self._sending or id.encode() in self._known

    def remember(self, id: str) -> None:
        self._known.add(id.encode())

    def add(self, visit: Visit, entry: Entry, *, forefront: bool) -> None:
        """Put a new entry into the outbox; it can be handed out once it is confirmed."""
        self._adds_made += 1
        self._unconfirmed[self._adds_made] = None
        self._adds.append((self._adds_made, visit, forefront))
        self._put(visit, entry)
        self._has_adds.set()
        if len(self._adds) >= self._backend.batch:
            self._batch_is_full.set()

    def keep(self, visit: Visit, *, forefront: bool) -> None:
        """Put a visit without an entry into the window: it exists in memory only."""
        self._disturb()
        self._push(visit, forefront=forefront)

    def next(self) -> Visit | None:
        """The most urgent visit, from now on handed out; None if there is none at present, or if
        the queue does not keep up with the acks or the adds."""
        if self._is_low():
            self._ask_at(self._claim_again_at)
        if self._on_hold or self._held_back >= _HELD_BACK or self._is_behind():
            return None
        visit = self._pop()
        if visit is not None and visit.entry is not None:
            self._out[visit.entry.id] = visit
        return visit

    def _is_behind(self) -> bool:
        """So many acks wait or are on their way that more would leave no room for adds."""
        if len(self._sending) - len(self._unconfirmed) <= self._outbox_limit // 2:
            return False
        if not self._has_told_rate and (rate := self._backend.rate_reached) is not None:
            self._has_told_rate = True
            logger.info(
                "The crawl is as fast as its request queue allows: %s. Requests are held back"
                " until it has taken the acks of those before",
                rate,
            )
        return True

    def update(self, visit: Visit, entry: Entry, *, forefront: bool = False) -> None:
        """Put what became of a handed-out entry into the outbox: an ack, or a requeue."""
        self._out.pop(entry.id, None)
        visit.entry = entry
        self._updates.append((self._adds_made, visit, forefront))
        self._put(visit, entry)
        self._has_updates.set()

    def has_pending(self) -> bool:
        """False once the queue is known to be empty, see invariant 4."""
        if self._sending or self._window or self._out:
            return True
        if self._error is not None or self._on_hold:
            return True  # the spider is being closed or moved; it must not be taken for finished
        pause = self._pause if self._drained or self._quiet_since is not None else 0
        self._ask_at(self._asked_at + pause)
        return not self._drained

    def is_full(self) -> bool:
        """``room`` would wait. During ``close``, too: only ``start()`` can still ask, and Scrapy
        cancels it.
        """
        return self._closing or len(self._sending) >= self._outbox_limit

    async def room(self) -> None:
        """Wait until the outbox has room for one more."""
        while self.is_full():
            if self._error is not None:
                # Callbacks must come to their end. One that never waits must not stop the loop.
                await asyncio.sleep(0)
                return
            self._has_room.clear()
            self._held_back += 1
            try:
                await self._has_room.wait()
            finally:
                self._held_back -= 1

    # The outbox.

    def _put(self, visit: Visit, entry: Entry) -> None:
        self._disturb()
        self._sending[entry.id] = visit
        self._stats.max_value("apify_rq/outbox_max", len(self._sending))
        self._flushed.clear()

    async def _send_adds(self) -> None:
        while True:
            async with self._cutting_adds:
                await self._has_adds.wait()
                await self._wait_for_company()
                forefront, batch = self._cut_adds()
            if batch:
                entries = [_entry(visit) for _, visit in batch]
                answers = await self._backend.add(entries, forefront=forefront)
                for (number, visit), answer in zip(batch, answers, strict=True):
                    del self._unconfirmed[number]
                    self._confirm_add(visit, answer, forefront)
                self._confirmed()
            # The embedded queue answers at once; the crawl must get its turn all the same.
            await asyncio.sleep(0)

    async def _wait_for_company(self) -> None:
        """Let a batch fill while the crawl has enough to do without it."""
        in_hurry = self._closing or len(self._window) < _ENOUGH
        if not self._backend.linger or in_hurry or len(self._adds) >= self._backend.batch:
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

    def _confirm_add(self, visit: Visit, answer: Added, forefront: bool) -> None:
        del self._sending[answer.id]
        self.remember(answer.id)
        if answer.refused is not None:
            visit.entry = None
            self._on_refused(visit, answer.refused)
            self._push(visit, forefront=forefront)
        elif answer.was_already_present:
            if not answer.was_already_handled and not self._is_held(answer.id):
                self._leave()  # made by an earlier run, or by others
            self._on_dropped(visit)
        else:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/enqueued")
            if forefront or not self._more:
                self._push(visit, forefront=forefront)
            else:
                self._leave()  # its turn comes after those that are not in the window yet

    async def _send_updates(self) -> None:
        while True:
            async with self._cutting_updates:
                await self._has_updates.wait()
                forefront, batch = self._cut_updates()
            if batch:
                entries = [_entry(visit) for visit in batch]
                await self._backend.update(entries, forefront=forefront)
                for visit in batch:
                    self._confirm_update(visit, forefront)
                self._confirmed()
            await asyncio.sleep(0)

    def _cut_updates(self) -> tuple[bool, list[Visit]]:
        """Those that need not wait for an add any more."""
        batch: list[Visit] = []
        forefront = bool(self._updates) and self._updates[0][2]
        oldest_add = next(iter(self._unconfirmed), self._adds_made + 1)
        while self._updates and len(batch) < self._backend.batch:
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

    def _confirm_update(self, visit: Visit, forefront: bool) -> None:
        entry = _entry(visit)
        del self._sending[entry.id]
        now = time.monotonic()
        self._settled.pop(entry.id, None)  # so that the oldest stay in front
        self._settled[entry.id] = now
        self._forget_settled(self._asked_at if self._claiming else now)
        if entry.handled_at is None:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/retried")
            self._push(visit, forefront=forefront)
            return
        self.remember(entry.id)
        self._stats.inc_value("apify_rq/handled")
        if entry.failed:
            self._stats.inc_value("apify_rq/failed")

    def _confirmed(self) -> None:
        self._has_room.set()
        if self._updates:
            self._has_updates.set()
        if not self._sending:
            self._flushed.set()
        self._wake()

    # The window.

    def _push(self, visit: Visit, *, forefront: bool) -> None:
        self._orders += 1
        visit.order = self._orders if forefront else -self._orders
        insort(self._window, visit, key=_rank)
        if visit.entry is not None:
            self._waiting[visit.entry.id] = visit
            if len(self._waiting) > self._window_limit:
                self._evict()

    def _evict(self) -> None:
        """Forget the least urgent entry; it stays pending in the backend and is claimed later."""
        index, entry = next(
            (i, visit.entry) for i, visit in enumerate(self._window) if visit.entry is not None
        )
        del self._window[index]
        del self._waiting[entry.id]
        self._settled.pop(entry.id, None)  # a claim that shows it as it was still shows it
        self._leave()

    def _leave(self) -> None:
        """A pending entry that we know of stays out of the window."""
        self._more = True
        self._behind += 1
        self._left_at = time.monotonic()

    def _pop(self) -> Visit | None:
        while self._window:
            visit = self._window.pop()
            if visit.entry is not None:
                del self._waiting[visit.entry.id]
            if visit.lease is None or visit.lease > time.time():
                return visit
            self._stats.inc_value("apify_rq/leases_lost")
            self._leave()
        return None

    def _is_low(self) -> bool:
        # Late, because a head shows what waits here again before it shows anything new.
        return self._more and len(self._waiting) <= self._window_limit // 4

    def _is_at_rest(self) -> bool:
        return not (self._sending or self._window or self._out)

    async def _read(self) -> None:
        while True:
            await self._refill.wait()
            self._refill.clear()
            if self._is_low() or self._is_at_rest():
                self._claiming = True
                await self._claim()
                self._claiming = False

    async def _claim(self) -> None:
        at_rest = self._is_at_rest()
        self._disturbed = False
        self._asked_at = asked_at = time.monotonic()
        room = self._window_limit - len(self._waiting)
        held = self._waiting.keys() | self._out.keys() | self._sending.keys()
        claim = await self._backend.claim(room, held)
        self._forget_settled(asked_at)
        new = [claimed for claimed in claim.entries if self._is_news(claimed.entry.id)]
        for claimed in new:
            self._take(claimed)
        is_unseen = self._behind > 0 and self._left_at >= asked_at - self._backend.lag
        self._more = claim.more or is_unseen
        is_rich = bool(new) and claim.more
        self._claim_again_at = 0.0 if is_rich else asked_at + min(self._backend.lag / 4, 1)
        if new:
            self._stats.inc_value("apify_rq/window_refills")
            self._wake()
        elif at_rest and not self._disturbed:
            self._note_quiet(asked_at, conclusive=not (claim.entries or claim.more))
        elif self._backend.lag and self._is_low():
            self._ask_at(self._claim_again_at)

    def _is_news(self, id: str) -> bool:
        """False for an entry that the answer shows as it was before our last write."""
        return not self._is_held(id) and id not in self._settled

    def _is_held(self, id: str) -> bool:
        return id in self._waiting or id in self._out or id in self._sending

    def _forget_settled(self, asked_at: float) -> None:
        """Forget those that no answer to a question asked then, or later, can show as they were."""
        while self._settled:
            oldest = next(iter(self._settled))
            if self._settled[oldest] >= asked_at - self._backend.lag:
                return
            del self._settled[oldest]

    def _take(self, claimed: Claimed) -> None:
        entry = claimed.entry
        if self._behind and entry.id.encode() in self._known:
            self._behind -= 1
        visit = Visit(entry, lease=claimed.lease, urgency=self._urgency(entry))
        self._disturb()
        self.remember(entry.id)
        self._push(visit, forefront=False)

    # Finished?

    def _disturb(self) -> None:
        """Something happened: what was found out about an empty queue holds no more."""
        self._disturbed = True
        self._drained = False
        self._quiet_since = None
        self._pause = _FIRST_PAUSE

    def _note_quiet(self, asked_at: float, *, conclusive: bool) -> None:
        """The backend had nothing for us while nothing was on its way."""
        if self._quiet_since is None:
            self._quiet_since = asked_at
        # Entries that we know of and do not see: the answer lags, or others have taken them.
        wait = max(self._settle_time, self._backend.lag) if self._behind else self._settle_time
        left = self._quiet_since + wait - asked_at
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if left > 0 or not conclusive:
            self._ask_at(asked_at + min(self._pause, max(left, _FIRST_PAUSE)))
        elif not self._drained:
            self._drained = True
            self._behind = 0
            self._wake()

    def _ask_at(self, when: float) -> None:
        """Ask the backend at this time, unless a question is due by then."""
        loop = asyncio.get_running_loop()
        seconds = when - time.monotonic()
        if seconds <= 0:
            self._refill.set()
            return
        if self._ask_timer is not None:
            if self._ask_timer.when() <= loop.time() + seconds:
                return
            self._ask_timer.cancel()
        self._ask_timer = loop.call_later(seconds, self._ask)

    def _ask(self) -> None:
        self._ask_timer = None
        self._refill.set()

    # Failure.

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BackendError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("Bug in scrapy-apify-rq")
            self._fail(BackendError(f"{type(error).__name__}: {error}", "apify_rq_error"))

    def _fail(self, error: BackendError) -> None:
        if self._error is None:
            self._error = error
            self._has_room.set()
            self._flushed.set()
            self._on_failed(error)


def _entry(visit: Visit) -> Entry:
    assert visit.entry is not None  # the outbox holds no others
    return visit.entry


def _rank(visit: Visit) -> tuple[bool, int, int]:
    return (*visit.urgency, visit.order)
