"""The async core: everything this process knows about the queue, between Scrapy and the backend.

Entries wait in the outbox until the backend has confirmed them, and in the window until they are
handed out. This module connects the two, and handles failures. The invariants are in the package's
docstring.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.base import Added, Backend, LooseItems, Updated
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.alarm import Alarm
from scrapy_apify_rq.frontier.idle import Idle
from scrapy_apify_rq.frontier.leases import Leases
from scrapy_apify_rq.frontier.notices import Bug, RateReached
from scrapy_apify_rq.frontier.outbox import Outbox, is_void
from scrapy_apify_rq.frontier.single import Single
from scrapy_apify_rq.frontier.slots import Slots
from scrapy_apify_rq.frontier.supply import Listener, Local, Reader, Supply
from scrapy_apify_rq.frontier.tasks import Tasks
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from scrapy_apify_rq.frontier.window import Window

if TYPE_CHECKING:
    from scrapy.statscollectors import StatsCollector

    from scrapy_apify_rq.entries.models import Entry

__all__ = ["Frontier", "Listener"]

# With this many requests ready, an add may wait a moment until its batch is full.
_ENOUGH: Final = 32
# With this many callbacks waiting for room, more pages would take memory and bring nothing.
_MOST_BLOCKED: Final = 16
# Seconds that close() waits for an answer beyond the time that the backend itself waits.
_FLUSH_PATIENCE: Final = 60


class Frontier:
    """Owns the backend between ``open`` and ``close``.

    ``window`` and ``outbox`` are limits on numbers of visits; ``memory`` is the limit in bytes, of
    which the outbox gets a half and the window a quarter. The rest is for the backend. Without
    ``slots``, requests wait in one line. ``error`` is why the backend gave up, and None while it
    works.
    """

    def __init__(
        self,
        backend: Backend,
        listener: Listener,
        *,
        stats: StatsCollector,
        window: int,
        outbox: int,
        memory: int = 64 * 2**20,
        idle_before_close: float = 0,
        retries_first: bool = True,
        slots: Slots | None = None,
    ) -> None:
        self.error: BackendError | None = None
        self.left = 0
        """How many entries were left pending, for another version of the project."""
        self.refused = 0
        """How many stay pending since the queue refused what became of them."""
        self._backend = backend
        self._listener = listener
        self._stats = stats
        self._outbox = Outbox(backend, limit=outbox, memory=memory // 2)
        self._window = Window(
            limit=window, memory=memory // 4, slots=slots, retries_first=retries_first
        )
        self._local = Local(self._outbox, self._window, listener)
        self._idle = Idle(backend.consistency_delay, idle_before_close)
        self._supply = _supply(backend, self._local, self._idle, stats)
        self._reader = Reader(backend, self._supply, self._local, self._idle, stats)
        self._tasks = Tasks(self._fail)
        self._due = Alarm(listener.wake)
        self._on_hold = False
        self._has_noted_rate = False

    def open(self, *, has_pending: bool, is_new: bool) -> None:
        """``has_pending``: the queue held pending entries when the backend opened it; ``is_new``:
        it held nothing at all, so that nothing older than this crawl can be hidden by a lag.
        """
        self._supply.open(has_pending=has_pending)
        self._idle.open(time.monotonic(), is_new=is_new)
        self._tasks.start(*self._outbox.work(self), self._reader.run(), *self._supply.work())

    async def close(self) -> None:
        """Send what is unsent and release what is held; unfinished entries stay pending.

        Does nothing if the frontier is not open.
        """
        if not self._tasks:
            return
        self._reader.stop()
        self._due.turn_off()
        try:
            await self._tasks.guard(self._flush())
            self._supply.stop()
            if self.error is None:
                await self._tasks.guard(self._supply.release())
        finally:
            await self._tasks.end()

    async def guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what the crawl itself asks of the backend. An error is a failure as any other."""
        await self._tasks.guard(work)

    async def _flush(self) -> None:
        patience = self._backend.patience + _FLUSH_PATIENCE
        try:
            await self._outbox.flush(patience)
        except TimeoutError:
            raise BackendError(
                f"{self._backend.location} has not answered for {patience:g} s. Unfinished requests"
                " stay pending: run the spider again."
            ) from None

    async def hold(self) -> None:
        """Hand nothing out from now on; what was handed out before is still acked."""
        self._on_hold = True
        self._reader.stop()
        self._outbox.send_retries()
        await self._tasks.guard(self._supply.release_window())
        if self._local.claiming.locked():
            async with self._local.claiming:  # it ends, and what it brings is released, too
                await self._tasks.guard(self._supply.release_window())

    @property
    def ready(self) -> int:
        """How many requests can be handed out."""
        return len(self._window)

    @property
    def ready_in_memory(self) -> int:
        """How many of these live in memory only."""
        return len(self._window) - len(self._window.stored)

    @property
    def unsaved_adds(self) -> int:
        """New entries that the backend has not confirmed; the queue may not have them."""
        return self._outbox.unsaved_adds

    @property
    def unsaved_updates(self) -> int:
        """Acks and requeues that the backend has not confirmed; their entries are pending."""
        return self._outbox.unsaved_updates

    # What the scheduler calls from Scrapy's synchronous methods: memory only.

    def knows(self, id: str) -> bool:
        return id in self._outbox.visits or id.encode() in self._local.seen

    def remember(self, id: str) -> None:
        self._local.seen.add(id.encode())

    def refusal(self, entry: Entry, size: int) -> str | None:
        """Why the queue can never take this entry, if that is known before it is sent."""
        return self._backend.refusal(entry, size)

    def add(self, visit: Visit) -> None:
        """Put a new entry into the outbox; it can be handed out once it is confirmed."""
        self._outbox.add(visit)
        self._note_put()

    def keep(self, visit: Visit) -> None:
        """Put a visit without an entry into the window: it exists in memory only, without a limit
        to the number of such visits.
        """
        self._idle.disturb()
        self._window.push(visit)

    def next(self) -> Visit | None:
        """The most urgent visit, which is in flight from now on. None if there is none at present,
        or if the queue does not keep up with the adds or the acks.
        """
        visit = self._pop()
        # Only now is it known whether what waits can be handed out.
        if self._supply.is_low():
            self._reader.ask_at(self._supply.again_at)
        return visit

    def _pop(self) -> Visit | None:
        if self._on_hold or self._outbox.blocked >= _MOST_BLOCKED:
            return None
        if self._outbox.has_too_many_updates():
            self._note_rate()
            return None
        while (visit := self._window.pop(is_all=self._supply.has_all)) is not None:
            if visit.lease is None or visit.lease > clock.now():
                return visit
            self._supply.lost(visit, "waiting")
        self._supply.starve()
        if (due_at := self._window.next_due_at) is not None:
            self._due.set(due_at)
        return None

    def leave(self, visit: Visit) -> None:
        """Leave a visit that ``next`` has returned: its entry stays pending, and this process does
        not want it again.
        """
        self._idle.disturb()
        self.left += 1
        self._backend.leave(entry_of(visit).id)

    def _note_rate(self) -> None:
        if not self._has_noted_rate and (rate := self._backend.rate_reached) is not None:
            self._has_noted_rate = True
            self._listener.notice(RateReached(rate))

    def update(self, visit: Visit) -> None:
        """Put what became of a handed-out entry into the outbox: an ack, or a requeue."""
        if is_void(visit):
            self.lapsed(visit)
            return
        self._outbox.update(visit)
        self._note_put()

    def save(self, items: LooseItems) -> None:
        """Put items into the outbox that are not those of an update, or are sent ahead of it."""
        self._outbox.save(items)

    async def room_for_items(self) -> None:
        await self._outbox.room_for_items()

    def _note_put(self) -> None:
        self._idle.disturb()
        self._stats.max_value("apify_rq/outbox_max", len(self._outbox.visits))

    @property
    def is_over(self) -> bool:
        """The crawl is over, see ``idle``, and has left nothing."""
        is_over = self._local.is_at_rest() and self._idle.is_over
        return is_over and not self.left and not self.refused

    def has_pending(self) -> bool:
        """False once the crawl is over, or has nothing but what it has left."""
        if self.error is not None or self._on_hold:
            return True  # the spider is being closed or moved; it must not be taken for finished
        if not self._local.is_at_rest():
            return True
        self._reader.ask_at(self._idle.next_at)
        return not self._idle.is_over

    def is_full(self) -> bool:
        """``room`` would wait."""
        return self._outbox.is_full()

    async def room(self) -> None:
        """Wait until the outbox has room for one more."""
        await self._outbox.room()

    # What the outbox reports and asks.

    def added(self, visit: Visit, answer: Added) -> None:
        self.remember(answer.id)
        if answer.refused is not None:
            visit.entry = None
            self._listener.refused(visit, answer.refused)
            self._window.push(visit)
        elif answer.was_already_present:
            self._listener.dropped(visit)
            self._supply.found(answer.id, was_handled=answer.was_already_handled)
        else:
            self._stats.inc_value("scheduler/enqueued")
            self._stats.inc_value("apify_rq/enqueued")
            self._supply.stored(visit)

    def updated(self, visit: Visit, answer: Updated) -> None:
        entry = entry_of(visit)
        visit.lease = visit.items = None
        if answer.was_handled:
            self._stats.inc_value("apify_rq/handled_twice")
            self._supply.note_others()
        if not entry.is_handled:
            if self._supply.requeued(visit, refused=answer.refused):
                self._stats.inc_value("scheduler/enqueued")
                self._stats.inc_value("apify_rq/retried")
            elif answer.refused:
                self._note_refused()
            return
        self._supply.acked(entry.id)
        if answer.refused:
            self._note_refused()
        else:
            self.remember(entry.id)
            self._stats.inc_value("apify_rq/handled")
            if entry.failed:
                self._stats.inc_value("apify_rq/failed")

    def _note_refused(self) -> None:
        self.refused += 1
        self._stats.inc_value("apify_rq/refused")

    def lapsed(self, visit: Visit) -> None:
        self._idle.disturb()
        self._supply.lost(visit, "retried")

    def confirmed(self) -> None:
        self._listener.wake()

    def is_starving(self) -> bool:
        return self._window.ready < _ENOUGH

    # Failure.

    def _fail(self, error: Exception) -> None:
        is_first = self.error is None
        is_bug = not isinstance(error, BackendError)
        failure = error if isinstance(error, BackendError) else _bug(error)
        if is_first:
            self.error = failure
            self._outbox.fail()
            self._reader.stop()
        if is_bug:
            self._listener.notice(Bug(error))
        if is_first:
            self._listener.failed(failure)


def _supply(backend: Backend, local: Local, idle: Idle, stats: StatsCollector) -> Supply:
    """What suits the access mode. Nothing else asks which it is."""
    if backend.lock_secs is None:
        return Single(backend, local)
    return Leases(backend, local, idle, stats, lock_secs=backend.lock_secs)


def _bug(error: Exception) -> BackendError:
    text = f"{type(error).__name__}: {error}. The traceback is above."
    return BackendError(text, "apify_rq_error")
