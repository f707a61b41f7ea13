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
 5. No id is handed out twice at the same time; a lease that lapsed in the window is not used. In
    shared access nothing is handed out without a lease, not even what was added here.
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

from scrapy_apify_rq.appetite import Appetite
from scrapy_apify_rq.backends.base import Added, Backend, Claim, Claimed
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.visits import Visit

if TYPE_CHECKING:
    from scrapy.statscollectors import StatsCollector

    from scrapy_apify_rq.models import Entry

logger = logging.getLogger(__name__)

# Seconds between two questions to a queue that has nothing for us: doubling, from and to.
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
# With this many requests ready, an add may wait a moment until its batch is full.
_ENOUGH = 32
# Leases are looked at so many times while they last, and prolonged from this share of them on.
_LOOKS = 16
_PROLONG_AT = 1 / 4
# Seconds for which the end of a crawl waits to give its leases back; they end by themselves, too.
_UNLOCK_PATIENCE = 10
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
        self._lock_secs = backend.lock_secs
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

        # Shared access only.
        self._appetite = Appetite(window)
        self._left: OrderedDict[str, Visit] = OrderedDict()
        """Visits to entries that were added or requeued here and that anybody may claim now."""
        self._early: dict[str, Claimed] = {}
        """Claimed before the add or update that made them so was answered."""
        self._left_last = ""
        """The id of the newest one that was left."""
        self._claim_turn = asyncio.Lock()

        self._drained = False
        self._is_quiet = False
        """The last answer, to a question asked at rest, had nothing for us."""
        self._empty_since: float | None = None
        """When the backend was first asked that has said "nothing pending" since."""
        self._warned_of_others = False
        self._pause = _FIRST_PAUSE
        self._asked_at = 0.0
        self._ask_timer: asyncio.TimerHandle | None = None

    async def open(self, *, has_pending: bool = True) -> None:
        self._more = has_pending
        workers = [self._send_adds, self._send_updates] * self._backend.parallel
        readers = [self._read] if self._lock_secs is None else [self._read, self._keep_leases]
        self._tasks = [asyncio.create_task(self._guard(work())) for work in (*workers, *readers)]

    async def close(self) -> None:
        """Send what is unsent, release what is held; unfinished entries stay pending."""
        self._closing = True
        if self._tasks and self._error is None:
            self._batch_is_full.set()
            await self._flushed.wait()
        if self._lock_secs is not None and self._error is None:
            await self._end_leases()
        if self._ask_timer is not None:
            self._ask_timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end_leases(self) -> None:
        async def unlock() -> None:
            async with self._claim_turn:  # what a claim under way brings is given back, too
                await self._backend.unlock()

        try:
            await asyncio.wait_for(unlock(), _UNLOCK_PATIENCE)
        except (BackendError, asyncio.TimeoutError) as error:
            logger.warning(
                "The leases of this crawl could not be given back (%s); they end by themselves"
                " within %s seconds (APIFY_RQ_LOCK_SECS)",
                str(error) or "no answer",
                self._lock_secs,
            )

    async def hold(self) -> None:
        """Hand nothing out from now on; what was handed out before is still acked."""
        self._on_hold = True
        await self._guard(self._give_back())

    async def _give_back(self) -> None:
        """End the leases on what is in the window."""
        ids = [id for id, visit in self._waiting.items() if visit.lease]
        if ids:
            self._window = [visit for visit in self._window if not visit.lease]
            for id in ids:
                del self._waiting[id]
            await self._backend.unlock(ids)

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
        if visit is None:
            self._appetite.starve()
        elif visit.entry is not None:
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
        was = self._out.pop(entry.id, None)
        visit.entry = entry
        visit.lease = None if was is None else was.lease
        if self._has_lapsed(visit) and entry.handled_at is None:
            # It is open to others again by now: what they make of it must stand.
            self._lose(visit, entry, "before its retry was saved: left to others")
            return
        self._updates.append((self._adds_made, visit, forefront))
        self._put(visit, entry)
        self._has_updates.set()

    def has_pending(self) -> bool:
        """False once the queue is known to be empty, see invariant 4."""
        if self._sending or self._window or self._out:
            return True
        if self._error is not None or self._on_hold:
            return True  # the spider is being closed or moved; it must not be taken for finished
        self._ask_at(self._asked_at + (self._pause if self._is_quiet else 0))
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
        claimed = self._early.pop(answer.id, None)
        if answer.refused is not None:
            visit.entry = None
            self._on_refused(visit, answer.refused)
            self._push(visit, forefront=forefront)
        elif answer.was_already_present:
            self._on_dropped(visit)
            if claimed is not None:
                self._take(claimed)
            elif not answer.was_already_handled and not self._is_held(answer.id):
                self._leave(answer.id)  # made by an earlier run, or by others
        else:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/enqueued")
            self._push_or_leave(visit, claimed, forefront, now=forefront or not self._more)

    async def _send_updates(self) -> None:
        while True:
            async with self._cutting_updates:
                await self._has_updates.wait()
                forefront, batch = self._cut_updates()
            if batch:
                entries = [_entry(visit) for visit in batch]
                answers = await self._backend.update(entries, forefront=forefront)
                for visit, was_handled in zip(batch, answers, strict=True):
                    self._confirm_update(visit, forefront, was_handled)
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

    def _confirm_update(self, visit: Visit, forefront: bool, was_handled: bool) -> None:
        entry = _entry(visit)
        del self._sending[entry.id]
        visit.lease = None
        claimed = self._early.pop(entry.id, None)
        if was_handled:
            self._stats.inc_value("apify_rq/handled_twice")
            self._warn_of_others()
        now = time.monotonic()
        self._settled.pop(entry.id, None)  # so that the oldest stay in front
        self._settled[entry.id] = now
        self._forget_settled(self._asked_at if self._claiming else now)
        if entry.handled_at is None:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/retried")
            self._push_or_leave(visit, claimed, forefront, now=True)
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

    def _push_or_leave(
        self, visit: Visit, claimed: Claimed | None, forefront: bool, *, now: bool
    ) -> None:
        """The queue has it: hand it out ``now``, or after those that are not in the window yet.

        In shared access it is anybody's, and has to be claimed first.
        """
        if claimed is not None:
            visit.lease = claimed.lease
            self._push(visit, forefront=forefront)
        elif self._lock_secs is not None:
            self._left[_entry(visit).id] = visit
            if len(self._left) > self._window_limit:
                self._left.popitem(last=False)
            self._leave(_entry(visit).id)
            self._claim_again_at = 0.0
        elif now:
            self._push(visit, forefront=forefront)
        else:
            self._leave(_entry(visit).id)

    # The window.

    def _push(self, visit: Visit, *, forefront: bool) -> None:
        self._orders += 1
        visit.order = self._orders if forefront else -self._orders
        insort(self._window, visit, key=_rank)
        if visit.entry is not None:
            self._waiting[visit.entry.id] = visit
            # Shared access claims no more than fits, and could not leave a lease behind.
            if self._lock_secs is None and len(self._waiting) > self._window_limit:
                self._evict()

    def _evict(self) -> None:
        """Forget the least urgent entry; it stays pending in the backend and is claimed later."""
        index, entry = next(
            (i, visit.entry) for i, visit in enumerate(self._window) if visit.entry is not None
        )
        del self._window[index]
        del self._waiting[entry.id]
        self._settled.pop(entry.id, None)  # a claim that shows it as it was still shows it
        self._leave(entry.id)

    def _leave(self, id: str) -> None:
        """A pending entry that we know of stays out of the window."""
        self._more = True
        self._behind += 1
        self._left_at = time.monotonic()
        self._left_last = id

    def _pop(self) -> Visit | None:
        while self._window:
            visit = self._window.pop()
            if visit.entry is not None:
                del self._waiting[visit.entry.id]
            if not self._has_lapsed(visit):
                return visit
            self._lose(visit, _entry(visit), "before it was handed out: left to others")
        return None

    def _is_low(self) -> bool:
        if self._lock_secs is not None:
            return self._appetite.is_low(len(self._waiting))
        # Late, because a head shows what waits here again before it shows anything new.
        return self._more and len(self._waiting) <= self._window_limit // 4

    def _is_at_rest(self) -> bool:
        return not (self._sending or self._window or self._out)

    async def _read(self) -> None:
        while True:
            await self._refill.wait()
            self._refill.clear()
            async with self._claim_turn:
                if not self._may_claim():
                    continue
                self._claiming = True
                await self._claim()
                self._claiming = False
            if self._on_hold:
                await self._give_back()

    def _may_claim(self) -> bool:
        if self._on_hold or (self._closing and self._lock_secs is not None):
            return False
        return self._is_low() or self._is_at_rest()

    async def _claim(self) -> None:
        at_rest = self._is_at_rest()
        self._disturbed = False
        self._asked_at = asked_at = time.monotonic()
        held = self._waiting.keys() | self._out.keys() | self._sending.keys()
        claim = await self._backend.claim(self._wanted(), held)
        if claim.others:
            self._warn_of_others()
        self._forget_settled(asked_at)
        new = [claimed for claimed in claim.entries if self._is_news(claimed)]
        for claimed in new:
            self._take(claimed)
        self._plan_next_claim(asked_at, has_news=bool(new), more=claim.more)
        if new:
            self._stats.inc_value("apify_rq/window_refills")
            self._wake()
        elif at_rest and not self._disturbed:
            await self._note_quiet(asked_at, claim)
        elif (self._backend.lag or self._lock_secs is not None) and self._is_low():
            self._ask_at(self._claim_again_at)

    def _wanted(self) -> int:
        if self._lock_secs is None:
            return self._window_limit - len(self._waiting)
        return self._appetite.claim(len(self._waiting))

    def _plan_next_claim(self, asked_at: float, *, has_news: bool, more: bool) -> None:
        is_rich = has_news and more
        if self._lock_secs is None:
            is_unseen = self._behind > 0 and self._left_at >= asked_at - self._backend.lag
            self._more = more or is_unseen
            pause = min(self._backend.lag / 4, 1)
        else:
            if has_news:
                self._appetite.feed(is_rich=is_rich)
            elif not self._disturbed:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            # What was left while the question was on its way may not be in its answer.
            pause = self._pause if self._left_at < asked_at else 0
        self._claim_again_at = 0.0 if is_rich else asked_at + pause

    def _is_news(self, claimed: Claimed) -> bool:
        """False for what we have, and for what the answer shows as before our last write."""
        id = claimed.entry.id
        if self._lock_secs is None:
            return not self._is_held(id) and id not in self._settled
        if id in self._sending:
            self._early[id] = claimed
        elif visit := self._waiting.get(id) or self._out.get(id):
            visit.lease = claimed.lease  # the one that we had has ended
        return not self._is_held(id)

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
        if self._lock_secs is None:
            self._behind -= self._behind > 0 and entry.id.encode() in self._known
        elif entry.id == self._left_last:
            self._behind = 0
        visit = self._left.pop(entry.id, None)
        if visit is None or visit.entry != entry:
            visit = Visit(entry, urgency=self._urgency(entry))
        visit.lease = claimed.lease
        self._disturb()
        self.remember(entry.id)
        self._push(visit, forefront=False)

    # Leases.

    async def _keep_leases(self) -> None:
        assert self._lock_secs is not None
        while True:
            await asyncio.sleep(self._lock_secs / _LOOKS)
            until = time.time() + self._lock_secs * (1 - _PROLONG_AT)
            held = {**self._sending, **self._waiting, **self._out}
            due = {id: visit for id, visit in held.items() if visit.lease and visit.lease < until}
            if due:
                await self._prolong(due)

    async def _prolong(self, due: dict[str, Visit]) -> None:
        leases = await self._backend.prolong(due)
        for id, visit in due.items():
            if id in leases:
                visit.lease = leases[id]
            elif self._waiting.get(id) is visit:
                visit.lease = time.time()  # dropped when its turn comes
            elif self._out.get(id) is visit:
                also = "while it was crawled: another worker may crawl it, too"
                self._lose(visit, _entry(visit), also)

    def _has_lapsed(self, visit: Visit) -> bool:
        return visit.lease is not None and visit.lease <= time.time()

    def _lose(self, visit: Visit, entry: Entry, when: str) -> None:
        """Another worker may have the entry by now."""
        if visit.lease:
            visit.lease = 0.0
            self._stats.inc_value("apify_rq/leases_lost")
            logger.info("The lease on entry %s (%s) ended %s", entry.id, entry.url, when)
            self._leave(entry.id)

    # Finished?

    def _disturb(self) -> None:
        """Something happened: what was found out about an empty queue holds no more."""
        self._disturbed = True
        self._drained = False
        self._is_quiet = False
        self._empty_since = None
        self._pause = _FIRST_PAUSE

    async def _note_quiet(self, asked_at: float, claim: Claim) -> None:
        """The backend had nothing for us while nothing was on its way."""
        self._is_quiet = True
        if self._lock_secs is None:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        if claim.leased:  # who holds the lease may add more
            self._empty_since = None
            self._ask_at(asked_at + self._pause)
            return
        if self._empty_since is None:
            self._empty_since = asked_at
        if self._behind and self._lock_secs is not None:
            await self._look_for_the_last()
            if self._disturbed:
                return
        # Entries that we know of and do not see: the answer lags, or others have taken them.
        wait = max(self._settle_time, self._backend.lag) if self._behind else self._settle_time
        left = self._empty_since + wait - asked_at
        if left > 0 or claim.entries or claim.more:
            self._ask_at(asked_at + min(self._pause, max(left, _FIRST_PAUSE)))
        elif not self._drained:
            self._drained = True
            self._behind = 0
            self._wake()

    async def _look_for_the_last(self) -> None:
        """If another worker is done with the newest entry that we left to all, then claims show
        what we wrote before it, too.
        """
        entry = await self._backend.get(self._left_last)
        if entry is None or entry.handled_at is not None:
            self._behind = 0

    def _warn_of_others(self) -> None:
        if self._lock_secs is None and not self._warned_of_others:
            self._warned_of_others = True
            logger.warning(
                "Another program uses the request queue %s, too. It may look, add and repair, but a"
                " second crawl of this queue in single access crawls pages twice: set"
                " APIFY_RQ_ACCESS = 'shared' for both, or run one at a time",
                self._backend.location,
            )

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
