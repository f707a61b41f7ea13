"""The async core: everything this process knows of the queue, between Scrapy and the backend.

Entries wait in the outbox until the backend has confirmed them, and in the window until they are
handed out. Here is what connects the two: claims, leases, and whether the crawl is finished.
Invariants, each with a test of its name in tests/test_invariants.py; kept here where nothing else
is said:

 1. The methods that the scheduler calls synchronously touch memory only.
 2. Adds before acks: an ack leaves only after every add made before it is confirmed, so a crash can
    repeat a page but cannot lose its links (``Outbox``).
 3. An entry is acked only when Scrapy has finished with it (the scheduler).
 4. "Nothing pending" needs an empty outbox, an empty window, nothing handed out, and the backend's
    answer "nothing" to a question asked after our last write was confirmed, asked again after the
    backend's lag.
 5. No id is handed out twice at the same time; a lease that lapsed in the window is not used. In
    shared access nothing is handed out without a lease, not even what was added here.
 6. A failure that retries cannot cure closes the spider with its reason; what is unsaved is never
    reported as finished.
 7. ``close()`` flushes, releases what it holds, and leaves unfinished entries pending.
 8. An entry that cannot be decoded is acked with an error message (the scheduler).
 9. What can be kept in the queue takes bounded memory: the window evicts, the outbox holds the
    spider back (``Outbox.room``), and nothing is handed out while too many acks wait. Two things
    grow with the crawl: the set of known ids, and requests that cannot be written (``keep``).
10. An entry added here keeps its live request while it is in the window.
11. Nothing of ours is kept in ``request.meta``: a ``Visit`` holds it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from scrapy_apify_rq.backends.base import Added, Backend, Claim, Claimed, Updated
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.appetite import Appetite
from scrapy_apify_rq.frontier.outbox import Outbox
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from scrapy_apify_rq.frontier.window import Window

if TYPE_CHECKING:
    from scrapy.statscollectors import StatsCollector

    from scrapy_apify_rq.entries.models import Entry

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
_MOST_BLOCKED = 16


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
        self._warned_of_others = False
        self._known: set[bytes] = set()
        """Ids that the backend has confirmed, as bytes: a third less memory than text."""

        self._outbox = Outbox(
            backend,
            limit=outbox,
            added=self._confirm_add,
            updated=self._confirm_update,
            wake=wake,
            in_hurry=lambda: len(self._window) < _ENOUGH,
        )
        # Asked for each link, so not through a method in between.
        self.is_full = self._outbox.is_full
        self.room = self._outbox.room
        self._window = Window()
        self._out: dict[str, Visit] = {}
        """By id, what is handed out."""

        self._more = True
        """The backend may hold pending entries that are neither in the window nor handed out."""
        self._unseen = 0
        """How many pending entries we know of and wait to see in a claim."""
        self._left_at = -math.inf
        """When such an entry last came into being; a lagging ``claim`` may not see it yet."""
        self._left_last = ""
        """The id of that entry."""
        self._settled: dict[str, float] = {}
        """Ids lately acked or requeued, which a lagging ``claim`` may still show as they were."""
        self._refill = asyncio.Event()
        self._claim_turn = asyncio.Lock()
        self._claim_again_at = 0.0
        self._claiming = False

        # These three serve shared access only.
        self._appetite = Appetite(window)
        self._left: OrderedDict[str, Visit] = OrderedDict()
        """Visits to entries that were added or requeued here and that anybody may claim now."""
        self._early: dict[str, Claimed] = {}
        """Claimed before the add or update that made them so was answered."""

        self._drained = False
        self._is_quiet = False
        """The last answer, to a question asked at rest, had nothing for us."""
        self._disturbed = False
        """Something has happened since the last question."""
        self._empty_since: float | None = None
        """When the backend was first asked that has said "nothing pending" since."""
        self._pause = _FIRST_PAUSE
        self._asked_at = 0.0
        self._ask_timer: asyncio.TimerHandle | None = None

    def open(self, *, has_pending: bool = True) -> None:
        self._more = has_pending
        readers = [self._read()] if self._lock_secs is None else [self._read(), self._keep_leases()]
        work = [*self._outbox.work(), *readers]
        self._tasks = [asyncio.create_task(self._guard(each)) for each in work]

    async def close(self) -> None:
        """Send what is unsent, release what is held; unfinished entries stay pending.

        Does nothing if it was never opened.
        """
        if not self._tasks:
            return
        self._closing = True
        await self._outbox.flush()
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
        except (TimeoutError, BackendError) as error:
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
        if ids := self._window.drop_leased():
            await self._backend.unlock(ids)

    @property
    def error(self) -> BackendError | None:
        """Why the backend gave up; None while it works."""
        return self._error

    @property
    def ready(self) -> int:
        """How many requests can be handed out."""
        return len(self._window)

    @property
    def unsaved(self) -> int:
        """Adds, updates and acks that the backend has not confirmed."""
        return len(self._outbox.visits)

    # What the scheduler calls from Scrapy's synchronous methods: memory only.

    def knows(self, id: str) -> bool:
        return id in self._outbox.visits or id.encode() in self._known

    def remember(self, id: str) -> None:
        self._known.add(id.encode())

    def add(self, visit: Visit, entry: Entry, *, forefront: bool) -> None:
        """Put a new entry into the outbox; it can be handed out once it is confirmed."""
        self._outbox.add(visit, entry, forefront=forefront)
        self._note_put()

    def keep(self, visit: Visit, *, forefront: bool) -> None:
        """Put a visit without an entry into the window: it exists in memory only, and there is no
        limit to these."""
        self._disturb()
        self._push(visit, forefront=forefront)

    def next(self) -> Visit | None:
        """The most urgent visit, from now on handed out; None if there is none at present, or if
        the queue does not keep up with the acks or the adds."""
        if self._is_low():
            self._ask_at(self._claim_again_at)
        if self._on_hold or self._outbox.blocked >= _MOST_BLOCKED:
            return None
        if self._outbox.has_too_many_updates():
            self._tell_rate()
            return None
        visit = self._pop()
        if visit is None:
            self._appetite.starve()
        elif visit.entry is not None:
            self._out[visit.entry.id] = visit
        return visit

    def _tell_rate(self) -> None:
        """Say once that the queue holds up the crawl, if its rate is the reason."""
        if not self._has_told_rate and (rate := self._backend.rate_reached) is not None:
            self._has_told_rate = True
            logger.info(
                "The crawl is as fast as its request queue allows: %s. Requests are held back"
                " until it has taken the acks of those before",
                rate,
            )

    def update(self, visit: Visit, entry: Entry, *, forefront: bool = False) -> None:
        """Put what became of a handed-out entry into the outbox: an ack, or a requeue."""
        was = self._out.pop(entry.id, None)
        visit.entry = entry
        visit.lease = None if was is None else was.lease
        if self._has_lapsed(visit) and not entry.is_handled:
            # It is open to others again by now: what they make of it must stand.
            self._lose(visit, entry, "before its retry was saved: left to others")
            return
        self._outbox.update(visit, entry, forefront=forefront)
        self._note_put()

    def _note_put(self) -> None:
        self._disturb()
        self._stats.max_value("apify_rq/outbox_max", len(self._outbox.visits))

    def has_pending(self) -> bool:
        """False once the queue is known to be empty, see invariant 4."""
        if not self._is_at_rest():
            return True
        if self._error is not None or self._on_hold:
            return True  # the spider is being closed or moved; it must not be taken for finished
        self._ask_at(self._asked_at + (self._pause if self._is_quiet else 0))
        return not self._drained

    # What the outbox tells.

    def _confirm_add(self, visit: Visit, answer: Added, forefront: bool) -> None:
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
            elif not answer.was_already_handled and not self._is_here(answer.id):
                self._leave(answer.id)  # made by an earlier run, or by others
        else:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/enqueued")
            self._push_or_leave(visit, claimed, forefront, now=forefront or not self._more)

    def _confirm_update(self, visit: Visit, answer: Updated, forefront: bool) -> None:
        entry = entry_of(visit)
        visit.lease = None
        claimed = self._early.pop(entry.id, None)
        if answer.was_handled:
            self._stats.inc_value("apify_rq/handled_twice")
            self._warn_of_others()
        now = time.monotonic()
        self._settled.pop(entry.id, None)  # so that the oldest stay in front
        self._settled[entry.id] = now
        self._forget_settled(self._asked_at if self._claiming else now)
        if answer.refused and (entry.is_handled or self._lock_secs is not None):
            return  # it stays pending: for the next run, or for whoever claims it next
        if not entry.is_handled:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/retried")
            self._push_or_leave(visit, claimed, forefront, now=True)
            return
        self.remember(entry.id)
        self._stats.inc_value("apify_rq/handled")
        if entry.failed:
            self._stats.inc_value("apify_rq/failed")

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
            self._left[entry_of(visit).id] = visit
            if len(self._left) > self._window_limit:
                self._left.popitem(last=False)
            self._leave(entry_of(visit).id)
            self._claim_again_at = 0.0
        elif now:
            self._push(visit, forefront=forefront)
        else:
            self._leave(entry_of(visit).id)

    # The window.

    def _push(self, visit: Visit, *, forefront: bool) -> None:
        self._window.push(visit, forefront=forefront)
        # Shared access claims no more than fits, and could not leave a lease behind.
        if self._lock_secs is None and len(self._window.stored) > self._window_limit:
            id = self._window.drop_last()  # it stays pending in the backend and is claimed later
            self._settled.pop(id, None)  # a claim that shows it as it was still shows it
            self._leave(id)

    def _leave(self, id: str) -> None:
        """A pending entry that we know of stays out of the window."""
        self._more = True
        self._unseen += 1
        self._left_at = time.monotonic()
        self._left_last = id

    def _pop(self) -> Visit | None:
        while (visit := self._window.pop()) is not None and self._has_lapsed(visit):
            self._lose(visit, entry_of(visit), "before it was handed out: left to others")
        return visit

    def _is_low(self) -> bool:
        if self._lock_secs is not None:
            return self._appetite.is_low(len(self._window.stored))
        # Late, because a head shows what waits here again before it shows anything new.
        return self._more and len(self._window.stored) <= self._window_limit // 4

    def _is_at_rest(self) -> bool:
        return not (self._outbox.visits or self._window or self._out)

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
        here = self._window.stored.keys() | self._out.keys() | self._outbox.visits.keys()
        claim = await self._backend.claim(self._wanted(), here, 16 * 2**20)
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
            return self._window_limit - len(self._window.stored)
        return self._appetite.claim(len(self._window.stored))

    def _plan_next_claim(self, asked_at: float, *, has_news: bool, more: bool) -> None:
        is_rich = has_news and more
        if self._lock_secs is None:
            is_hidden = self._unseen > 0 and self._left_at >= asked_at - self._backend.lag
            self._more = more or is_hidden
            pause = min(self._backend.lag / 4, 1)
        else:
            if has_news:
                self._appetite.feed(is_rich=is_rich)
            elif not self._disturbed:
                self._lengthen_pause()
            # What was left while the question was on its way may not be in its answer.
            pause = self._pause if self._left_at < asked_at else 0
        self._claim_again_at = 0.0 if is_rich else asked_at + pause

    def _is_news(self, claimed: Claimed) -> bool:
        """False for what we have, and for what the answer shows as before our last write."""
        id = claimed.entry.id
        if self._lock_secs is None:
            return not self._is_here(id) and id not in self._settled
        if id in self._outbox.visits:
            self._early[id] = claimed
        elif visit := self._window.stored.get(id) or self._out.get(id):
            visit.lease = claimed.lease  # the one that we had has ended
        return not self._is_here(id)

    def _is_here(self, id: str) -> bool:
        return id in self._window.stored or id in self._out or id in self._outbox.visits

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
            if self._unseen > 0 and entry.id.encode() in self._known:
                self._unseen -= 1
        elif entry.id == self._left_last:
            self._unseen = 0
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
            here = {**self._outbox.visits, **self._window.stored, **self._out}
            due = {id: visit for id, visit in here.items() if visit.lease and visit.lease < until}
            if due:
                await self._prolong(due)

    async def _prolong(self, due: dict[str, Visit]) -> None:
        leases = await self._backend.prolong(due)
        for id, visit in due.items():
            if id in leases:
                visit.lease = leases[id]
            elif self._window.stored.get(id) is visit:
                visit.lease = time.time()  # dropped when its turn comes
            elif self._out.get(id) is visit:
                also = "while it was crawled: another worker may crawl it, too"
                self._lose(visit, entry_of(visit), also)

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

    def _lengthen_pause(self) -> None:
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _note_quiet(self, asked_at: float, claim: Claim) -> None:
        """The backend had nothing for us while nothing was on its way."""
        self._is_quiet = True
        if self._lock_secs is None:
            self._lengthen_pause()
        if claim.leased:  # who holds the lease may add more
            self._empty_since = None
            self._ask_at(asked_at + self._pause)
            return
        if self._empty_since is None:
            self._empty_since = asked_at
        if self._unseen and self._lock_secs is not None:
            await self._look_for_the_last()
            if self._disturbed:
                return
        # Entries that we know of and do not see: the answer lags, or others have taken them.
        wait = max(self._settle_time, self._backend.lag) if self._unseen else self._settle_time
        left = self._empty_since + wait - asked_at
        if left > 0 or claim.entries or claim.more:
            self._ask_at(asked_at + min(self._pause, max(left, _FIRST_PAUSE)))
        elif not self._drained:
            self._drained = True
            self._unseen = 0
            self._wake()

    async def _look_for_the_last(self) -> None:
        """If another worker is done with the newest entry that we left to all, then claims show
        what we wrote before it, too.
        """
        entry = await self._backend.get(self._left_last)
        if entry is None or entry.is_handled:
            self._unseen = 0

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
            self._outbox.fail()
            self._on_failed(error)
