"""How entries come from the backend: the protocol of the two access modes, and the loop that asks.

``Single`` is for the only consumer of a queue, ``Leases`` for one of many.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from scrapy_apify_rq.backends.base import Backend, Claim
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.alarm import Alarm
from scrapy_apify_rq.frontier.idle import Idle, Question
from scrapy_apify_rq.frontier.notices import Notice
from scrapy_apify_rq.frontier.outbox import Outbox
from scrapy_apify_rq.frontier.visit import Visit
from scrapy_apify_rq.frontier.window import Window

if TYPE_CHECKING:
    from scrapy.statscollectors import StatsCollector


class Listener(Protocol):
    """What the frontier needs of the crawl, and what it reports to it."""

    @property
    def in_flight(self) -> Mapping[str, Visit]:
        """By entry id, what Scrapy has been given and has not finished."""

    def wake(self) -> None:
        """There is something new to hand out, or the crawl is over."""

    def dropped(self, visit: Visit) -> None:
        """The queue had this entry already."""

    def refused(self, visit: Visit, reason: str) -> None:
        """The queue will never take this entry; ``visit.entry`` is None by now, and the visit goes
        on in memory.
        """

    def notice(self, notice: Notice) -> None:
        """Something that people should know."""

    def failed(self, error: BackendError) -> None:
        """The backend gave up. Called once."""


class Local:
    """The part of the queue that this process knows."""

    def __init__(self, outbox: Outbox, window: Window, listener: Listener) -> None:
        self.outbox = outbox
        self.window = window
        self.listener = listener
        self.seen: set[bytes] = set()
        """Ids that the backend has confirmed, as bytes: a third less memory than text."""
        self.claiming = asyncio.Lock()
        """Held during a claim, when its entries are on their way to us."""

    def holds(self, id: str) -> bool:
        """The entry is in the window, in the outbox or in flight."""
        return self.is_unconfirmed(id) or self.confirmed(id) is not None

    def is_unconfirmed(self, id: str) -> bool:
        """The entry is in the outbox."""
        return id in self.outbox.visits

    def confirmed(self, id: str) -> Visit | None:
        """The visit, if it is in the window or in flight."""
        return self.window.stored.get(id) or self.listener.in_flight.get(id)

    def is_in_flight(self, id: str) -> bool:
        return id in self.listener.in_flight

    def ids(self) -> AbstractSet[str]:
        """Of all entries that are in the window, in the outbox or in flight."""
        in_flight = self.listener.in_flight.keys()
        return self.window.stored.keys() | self.outbox.visits.keys() | in_flight

    def leased(self, until: float) -> dict[str, Visit]:
        """By id, all visits whose leases end before that time and are not lost."""
        visits = {**self.outbox.visits, **self.window.stored, **self.listener.in_flight}
        return {id: visit for id, visit in visits.items() if visit.lease and visit.lease < until}

    def share(self, *, for_others: bool) -> int | None:
        """``Window.share`` for a claim, which counts what a host has in flight, too."""
        share = self.window.share(for_others=for_others)
        if share is None or not for_others:
            return share
        in_flight = Counter(visit.slot for visit in self.listener.in_flight.values())
        return share + max(in_flight.values(), default=0)

    def is_at_rest(self) -> bool:
        """Nothing waits here, and nothing is in flight."""
        return not (self.outbox.visits or len(self.window) or self.listener.in_flight)


class Amount(NamedTuple):
    entries: int
    size: int
    """Bytes."""
    share: int | None = None
    """The most entries of one host, those that are here included; None: hosts do not matter."""


class Supply(Protocol):
    """What depends on the access mode."""

    @property
    def again_at(self) -> float:
        """The earliest time for the next claim while the window is low."""

    @property
    def hidden_until(self) -> float:
        """Until when the backend may not show pending entries that we know of."""

    def open(self, *, has_pending: bool) -> None:
        """``has_pending``: the queue held pending entries when it was opened."""

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run besides, each in a task of its own, until ``stop``."""

    def stop(self) -> None: ...

    # What became of our writes.

    def stored(self, visit: Visit) -> None:
        """The queue has taken a new entry that this process has added."""

    def found(self, id: str, *, was_handled: bool) -> None:
        """The queue had the entry already."""

    def requeued(self, visit: Visit, *, refused: bool) -> bool:
        """A retry is in the queue, or, if it is ``refused``, the entry as it was before. False if
        it will not be tried again by this run.
        """

    def acked(self, id: str) -> None:
        """The queue has the ack, or has refused it."""

    # Claims.

    def is_low(self) -> bool:
        """The window has room, and the queue may have entries for it."""

    @property
    def has_all(self) -> bool:
        """No entries are pending but those that are here."""

    def starve(self) -> None:
        """There was nothing to hand out."""

    def begin_claim(self, asked_at: float) -> Amount:
        """How much to claim."""

    def receive(self, claim: Claim) -> int:
        """Put what is new into the window; return how many that were."""

    def lost(self, visit: Visit, while_: Literal["waiting", "in flight", "retried"]) -> None:
        """The lease on it has ended."""

    def note_others(self) -> None:
        """There is a sign of other clients that change the queue."""

    async def others_are_working(self, question: Question) -> bool:
        """Others have work, or may have. Asked only when the crawl would end otherwise."""

    async def release_window(self) -> None:
        """Leave to others what waits in the window."""

    async def release(self) -> None:
        """Leave everything to others, at close."""


class Reader:
    """Claims entries: when the window is low, and to learn whether the crawl is over."""

    def __init__(
        self,
        backend: Backend,
        supply: Supply,
        local: Local,
        idle: Idle,
        stats: StatsCollector,
    ) -> None:
        self._backend = backend
        self._supply = supply
        self._local = local
        self._idle = idle
        self._stats = stats
        self._is_due = asyncio.Event()
        self._alarm = Alarm(self._is_due.set)
        self._is_stopped = False

    def ask_at(self, when: float) -> None:
        """Claim at this time, unless a claim is due by then anyway."""
        if self._is_stopped:
            return
        if when <= time.monotonic():
            self._is_due.set()
        else:
            self._alarm.set(when)

    def stop(self) -> None:
        """Begin no more claims."""
        self._is_stopped = True
        self._is_due.set()
        self._alarm.turn_off()

    async def run(self) -> None:
        """Ends by itself after ``stop``."""
        while True:
            await self._is_due.wait()
            if self._is_stopped:
                return
            self._is_due.clear()
            if self._supply.is_low() or self._local.is_at_rest():
                async with self._local.claiming:
                    await self._claim()

    async def _claim(self) -> None:
        question = self._idle.ask(time.monotonic(), at_rest=self._local.is_at_rest())
        wanted = self._supply.begin_claim(question.asked_at)
        claim = await self._backend.claim(
            wanted.entries, self._local.ids(), wanted.size, wanted.share
        )
        if claim.others:
            self._supply.note_others()
        if self._supply.receive(claim):
            self._idle.disturb()
            self._stats.inc_value("apify_rq/window_refills")
            self._local.listener.wake()
            return
        self._idle.came_empty(question)
        if question.at_rest and not self._idle.is_void(question):
            await self._consider_the_end(question, claim)
        elif self._supply.is_low():
            self.ask_at(self._supply.again_at)

    async def _consider_the_end(self, question: Question, claim: Claim) -> None:
        """The backend had nothing for us while nothing was left here."""
        if claim.leased:
            self._idle.wait_for_others(question)
        elif self._idle.can_end(
            question,
            # Entries that are not new to us are our own, shown as they were before we acked them.
            found_nothing=not claim.more and (claim.alone or not claim.entries),
            alone=claim.alone,
            hidden_until=self._supply.hidden_until,
        ):
            if self._idle.is_over:
                return  # has_pending() goes on asking as long as the spider is kept open
            are_working = await self._supply.others_are_working(question)
            if not are_working and not self._idle.is_void(question):
                self._idle.end()
                self._local.listener.wake()
                return
        self.ask_at(self._idle.next_at)
