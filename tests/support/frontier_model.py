"""What the frontier must do, in a simple form, and Scrapy's part in it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.frontier.notices import Bug, LeaseLost, Notice
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from tests.support.frontier_driver import Driver, now
from tests.support.unreliable_backend import UnreliableBackend
from tests.support.virtual_time import Clock

# Virtual seconds that some retries wait.
BACK_OFF = 3.0
HANDLED_AT = datetime(2026, 1, 1, tzinfo=UTC)


class Model:
    """What the queue must hold, and what this run has sent to it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.handled: dict[str, bool] = {}
        """By id, for each entry of the queue."""
        self.pending_since: dict[str, float] = {}
        self.wrong: list[str] = []
        """What broke an invariant while a task ran."""
        self.begin_run()

    def begin_run(self) -> None:
        self.known = self.pending
        """Ids of entries that this run knows to be in the queue."""
        self.adds: list[str] = []
        self.unsaved_adds: set[str] = set()
        self.unsaved_updates: dict[str, int] = {}
        """By id, how many adds came before."""

    @property
    def pending(self) -> set[str]:
        return {id for id, is_handled in self.handled.items() if not is_handled}

    def add(self, id: str) -> None:
        self.adds.append(id)
        self.unsaved_adds.add(id)

    def update(self, id: str) -> None:
        self.unsaved_updates[id] = len(self.adds)

    # What happens at the backend.

    def sends_update(self, id: str) -> None:
        before = self.adds[: self.unsaved_updates[id]]
        if early := self.unsaved_adds.intersection(before):
            self.wrong.append(f"the update of {id} does not wait for the adds of {sorted(early)}")

    def answered_add(self, id: str, *, is_refused: bool) -> None:
        self.unsaved_adds.remove(id)
        if not is_refused:
            self.known.add(id)

    def put(self, id: str, *, is_handled: bool) -> None:
        self.handled[id] = is_handled
        self.pending_since[id] = self._clock.now


class Crawl(Driver):
    """One run of a crawl, which is compared with the model."""

    def __init__(self, backend: UnreliableBackend, model: Model, **options: Any) -> None:
        super().__init__(backend, **options)
        self.waiting_in_memory: set[Visit] = set()
        self.was_over = False
        self.not_before: dict[str, float] = {}
        """By id, until when a retry must wait."""
        self._model = model

    def refused(self, visit: Visit, reason: str) -> None:
        self.waiting_in_memory.add(visit)

    def notice(self, notice: Notice) -> None:
        super().notice(notice)
        if isinstance(notice, LeaseLost) and notice.while_ == "retried":
            del self._model.unsaved_updates[notice.entry.id]
        if isinstance(notice, Bug) and self.backend.is_healthy:
            self._model.wrong.append(repr(notice.error))

    async def schedule(self, pages: Iterable[int], *, priority: int = 0) -> None:
        for entry in map(make_entry, pages):
            if not (self.frontier.knows(entry.id) or self.frontier.is_full()):
                self._model.add(entry.id)
                forefront = priority > 0
                visit = Visit(entry, priority=priority, forefront=forefront, size=entry.size)
                self.frontier.add(visit)

    def keep(self) -> None:
        visit = Visit(None)
        self.waiting_in_memory.add(visit)
        self.frontier.keep(visit)

    def hand_out(self) -> Visit | None:
        visit = self.frontier.next()
        if visit is None:
            return None
        if visit.entry is None:
            self.waiting_in_memory.remove(visit)
            return visit
        id = visit.entry.id
        assert id not in self.in_flight, f"{id} is handed out twice"
        assert id in self._model.pending, f"{id} is handed out and not pending"
        assert self.not_before.get(id, 0) <= now(), f"{id} is handed out before its time"
        self._model.known.add(id)
        self.in_flight[id] = visit
        return visit

    async def check_lease(self, visit: Visit) -> None:
        if self.backend.lock_secs and visit.entry is not None:
            lock = await self.backend.lock_of(visit.entry.id)
            assert lock is not None, f"{visit.entry.id} is handed out without a lease"
            assert lock.client_key == self.backend.client_key, "another client has it"

    def finish_page(self, visit: Visit, how: str) -> None:
        entry = entry_of(visit).model_copy(deep=True)
        del self.in_flight[entry.id]
        is_retry = how != "ack"
        if is_retry:
            entry.retry_count += 1
        else:
            entry.handled_at = HANDLED_AT
        self._model.update(entry.id)
        forefront = is_retry and entry.retry_count % 2 == 1
        options: Any = {"forefront": forefront, "lease": visit.lease, "size": visit.size}
        if how == "wait":
            self.not_before[entry.id] = options["not_before"] = now() + BACK_OFF
        self.frontier.update(Visit(entry, is_retry=is_retry, **options))

    async def finish(self) -> None:
        """Crawl all there is."""
        for visit in list(self.in_flight.values()):
            self.finish_page(visit, "ack")
        while (taken := await self.next()) is not None:
            await self.check_lease(taken)
            if taken.entry is not None:
                self.finish_page(taken, "ack")


def make_entry(page: int) -> Entry:
    payload = "x" * (3000 if page % 5 == 4 else 0)
    return Entry(id=f"page{page}", unique_key=f"{page}", url=f"http://site/{page}", payload=payload)
