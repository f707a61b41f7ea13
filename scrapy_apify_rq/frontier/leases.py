"""Shared access: one of many consumers of a queue. What is handed out is leased to this worker.

What a worker adds can be claimed by any worker, itself included, so an entry of its own goes into
its window only with a lease, too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.base import Backend, Claim, Claimed
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.appetite import Appetite
from scrapy_apify_rq.frontier.idle import Idle, Question
from scrapy_apify_rq.frontier.notices import LeaseLost, LeasesKept
from scrapy_apify_rq.frontier.supply import Amount, Local
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from scrapy_apify_rq.frontier.window import Window

if TYPE_CHECKING:
    from scrapy.statscollectors import StatsCollector

# Leases are looked at so many times while they last, and prolonged when this share of them is over.
_LOOKS: Final = 16
_PROLONG_AT: Final = 1 / 4
# Seconds that close() spends on giving the leases back. They also end by themselves.
_RELEASE_PATIENCE: Final = 10


class Leases:
    """Claims entries with leases, and keeps the leases on what it holds."""

    def __init__(
        self,
        backend: Backend,
        local: Local,
        idle: Idle,
        stats: StatsCollector,
        *,
        lock_secs: int,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self._backend = backend
        self._local = local
        self._window = local.window
        self._idle = idle
        self._stats = stats
        # If hosts can be chosen, one that never answers must leave room for others.
        part = 2 if backend.chooses_hosts else 1
        most = max(local.window.limit // part, 1)
        self._appetite = Appetite(most, chooses_hosts=backend.chooses_hosts)
        self._memory = local.window.memory // part
        """Bytes that may wait, of whatever host."""
        self._offers = Offers(local.window)
        self._keeper = Keeper(backend, lock_secs, local=local, lost=self.lost, now=now)
        self._claimed_ahead: dict[str, Claimed] = {}
        """By id, claims of entries whose add or update is not confirmed yet."""
        self._asked_at = -math.inf
        self._is_rich = True
        """The last claim brought something, and there was more."""
        self._was_for_others = False
        """It left out the hosts that had the most waiting here."""
        self._left = 0
        """How many entries are pending for another version of the project, by the last claim."""
        self._counts: tuple[int, int] | None = None
        """How many entries the queue had in all, and how many handled, at the last question."""

    @property
    def again_at(self) -> float:
        # An entry offered after the question was asked may be missing from its answer.
        if self._is_rich or self._offers.last_at >= self._asked_at:
            return 0.0
        if self._was_for_others and (self._needs_any(self._waiting()) or self._window.ran_dry):
            return 0.0  # what it left out is wanted now
        return self._asked_at + self._idle.pause

    @property
    def hidden_until(self) -> float:
        return -math.inf  # others_are_working() finds out

    def open(self, *, has_pending: bool) -> None:
        pass

    def work(self) -> list[Coroutine[Any, Any, None]]:
        return [self._keeper.run()]

    def stop(self) -> None:
        self._keeper.stop()

    # What became of our writes.

    def stored(self, visit: Visit) -> None:
        claimed = self._claimed_ahead.pop(entry_of(visit).id, None)
        if claimed is None:
            self._offers.add(visit)
        else:
            visit.lease = claimed.lease
            self._window.push(visit)

    def found(self, id: str, *, was_handled: bool) -> None:
        if (claimed := self._claimed_ahead.pop(id, None)) is not None:
            self._take(claimed)
        elif not (was_handled or self._local.holds(id)):
            self._offers.note(id)

    def requeued(self, visit: Visit, *, refused: bool) -> bool:
        if refused:  # it stays pending, for any worker that can do better
            self._claimed_ahead.pop(entry_of(visit).id, None)
            return False
        self.stored(visit)
        return True

    def acked(self, id: str) -> None:
        self._claimed_ahead.pop(id, None)

    # Claims.

    def is_low(self) -> bool:
        window, waiting = self._window, self._waiting()
        if self._looks_past_hosts:
            return waiting.entries < window.limit and waiting.size < window.memory
        return self._needs_any(waiting, busy_hosts=window.busy_slots)

    def _needs_any(self, waiting: Amount, *, busy_hosts: int = 0) -> bool:
        """Too little waits here. Without ``busy_hosts`` it does not matter which hosts are busy."""
        return waiting.size <= self._memory // 2 and self._appetite.is_low(
            waiting.entries, busy_hosts=busy_hosts, is_stuck=self._window.is_stuck
        )

    @property
    def _looks_past_hosts(self) -> bool:
        """Nothing that waits here can be handed out, and a claim can bring what is for others.

        A host that never answers must not keep the worker from them, however much of it waits here.
        """
        return self._window.is_stuck and self._backend.chooses_hosts

    @property
    def has_all(self) -> bool:
        return not self._window.by_host  # nobody knows what others add

    def _waiting(self) -> Amount:
        """What is in the window, or will be once its add or update is confirmed."""
        ahead = self._claimed_ahead.values()
        return Amount(
            len(self._window.stored) + len(ahead),
            self._window.size + sum(claimed.entry.size for claimed in ahead),
        )

    def starve(self) -> None:
        if not self._window.is_stuck:
            self._appetite.starve()

    def begin_claim(self, asked_at: float) -> Amount:
        self._asked_at = asked_at
        window, waiting = self._window, self._waiting()
        # More of a host that never answers would keep out all others.
        for_others = self._looks_past_hosts and not self._needs_any(waiting)
        if for_others:
            entries = min(self._appetite.claim(0), window.limit - waiting.entries)
        else:
            entries = self._appetite.claim(waiting.entries, busy_hosts=window.busy_slots)
        self._was_for_others, window.ran_dry = for_others, False
        memory = window.memory if for_others else self._memory
        return Amount(
            max(entries, 1),
            max(memory - waiting.size, 1),
            self._local.share(for_others=for_others),
        )

    def receive(self, claim: Claim) -> int:
        new = [claimed for claimed in claim.entries if self._is_new(claimed)]
        for claimed in new:
            self._take(claimed)
        self._left = claim.left
        self._is_rich = bool(new) and claim.more
        if new:
            self._appetite.feed(is_rich=self._is_rich)
        return len(new)

    def _is_new(self, claimed: Claimed) -> bool:
        id = claimed.entry.id
        if self._local.is_unconfirmed(id):
            self._claimed_ahead[id] = claimed
            return False
        if (visit := self._local.confirmed(id)) is not None:
            visit.lease = claimed.lease  # the one that we had has ended
            return False
        return True

    def _take(self, claimed: Claimed) -> None:
        visit = self._offers.take(claimed.entry)
        visit.lease = claimed.lease
        self._local.seen.add(claimed.entry.id.encode())
        self._window.push(visit)

    def lost(self, visit: Visit, while_: Literal["waiting", "in flight", "retried"]) -> None:
        entry = entry_of(visit)
        if visit.lease:  # it has not been reported
            visit.lease = 0.0
            self._stats.inc_value("apify_rq/leases_lost")
            self._local.listener.notice(LeaseLost(entry, while_))
            self._offers.note(entry.id)
        # It may have come again while its update waited in the outbox.
        if (claimed := self._claimed_ahead.pop(entry.id, None)) is not None:
            self._take(claimed)

    def note_others(self) -> None:
        pass  # they are welcome

    async def others_are_working(self, question: Question) -> bool:
        if (id := self._offers.newest) is not None:
            entry = await self._backend.get(id)  # this does not lag, as a claim may
            if entry is not None and not entry.is_handled:
                self._idle.wait_for_others(question)
                return True
            self._offers.forget(id)
        info = await self._backend.info()
        pending = info.pending - self._left
        counts, self._counts = self._counts, (info.total, info.handled)
        if pending > 0 and counts is not None and counts != self._counts:
            self._idle.wait_for_others(question)
            return True
        # The counts may lag, too, or be wrong for ever: if they stand still, they are not believed
        # for ever.
        return pending > 0 and self._idle.quiet_for(question) < self._backend.lag

    async def release_window(self) -> None:
        if ids := self._window.drop_leased():
            await self._backend.unlock(ids)

    async def release(self) -> None:
        try:
            # A claim under way ends first, so that its leases are released, too.
            async with asyncio.timeout(_RELEASE_PATIENCE), self._local.claiming:
                await self._backend.unlock()
        except (TimeoutError, BackendError) as error:
            self._local.listener.notice(LeasesKept(self._keeper.lock_secs, str(error)))


class Offers:
    """Entries that this worker has added or requeued and that any worker may claim.

    Their visits are kept, within the window's limits, because the worker that claims one may be
    this one, which then hands out the live request.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._size = 0
        self.newest: str | None = None
        """Id of the newest one, until it is claimed here or found handled."""
        self.last_at = -math.inf
        """When there was a new one, by the monotonic clock."""

    def add(self, visit: Visit) -> None:
        id = entry_of(visit).id
        self._drop(id)
        self._visits[id] = visit
        self._size += visit.size
        while len(self._visits) > self._window.limit or (
            self._size > self._window.memory - self._window.size and len(self._visits) > 1
        ):
            self._drop(next(iter(self._visits)))
        self.note(id)

    def note(self, id: str) -> None:
        """Any worker may claim this entry, of which no visit is kept."""
        self.newest = id
        self.last_at = time.monotonic()

    def take(self, entry: Entry) -> Visit:
        """The visit of an entry that was claimed here."""
        self.forget(entry.id)
        visit = self._drop(entry.id)
        return Visit.of(entry) if visit is None or visit.entry != entry else visit

    def forget(self, id: str) -> None:
        if self.newest == id:
            self.newest = None

    def _drop(self, id: str) -> Visit | None:
        if (visit := self._visits.pop(id, None)) is not None:
            self._size -= visit.size
        return visit


class Keeper:
    """Prolongs the leases on all that this process holds."""

    def __init__(
        self,
        backend: Backend,
        lock_secs: int,
        *,
        local: Local,
        lost: Callable[[Visit, Literal["in flight"]], None],
        now: Callable[[], float],
    ) -> None:
        self.lock_secs = lock_secs
        self._backend = backend
        self._local = local
        self._lost = lost
        self._now = now
        self._is_stopped = asyncio.Event()

    def stop(self) -> None:
        self._is_stopped.set()

    async def run(self) -> None:
        """Ends by itself after ``stop``."""
        while not self._is_stopped.is_set():
            if due := self._local.leased(self._now() + self.lock_secs * (1 - _PROLONG_AT)):
                await self._prolong(due)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.lock_secs / _LOOKS):
                    await self._is_stopped.wait()

    async def _prolong(self, due: dict[str, Visit]) -> None:
        leases = await self._backend.prolong(due)
        if self._is_stopped.is_set():
            return
        for id, visit in due.items():
            if id in leases:
                visit.lease = leases[id]
            elif self._local.confirmed(id) is visit:
                self._end(visit)

    def _end(self, visit: Visit) -> None:
        if self._local.is_in_flight(entry_of(visit).id):
            self._lost(visit, "in flight")
        else:
            visit.lease = self._now()  # it is dropped when its turn comes
