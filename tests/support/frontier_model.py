"""What the frontier must do, in a simple form, and Scrapy's part in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from scrapy_apify_rq.backends.base import Added, Updated
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.frontier.notices import Bug, LeaseLost, Notice
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from tests.support.frontier_driver import Driver
from tests.support.unreliable_backend import UnreliableBackend
from tests.support.virtual_time import Clock

HANDLED_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Model:
    """What the queue must hold, and what this run has sent to it."""

    clock: Clock
    handled: dict[str, bool] = field(default_factory=dict)
    """By id, for each entry of the queue."""
    pending_since: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What broke an invariant while a task ran."""

    def __post_init__(self) -> None:
        self.begin_run()

    def begin_run(self) -> None:
        self.known: set[str] = set()
        """Ids of entries that this run knows to be in the queue."""
        self.adds: list[str] = []
        self.unsaved_adds: set[str] = set()
        self.unsaved_updates: dict[str, int] = {}
        """By id, how many adds came before."""

    @property
    def pending(self) -> set[str]:
        return {id for id, is_handled in self.handled.items() if not is_handled}

    # What the crawl does.

    def add(self, entry: Entry) -> None:
        self.adds.append(entry.id)
        self.unsaved_adds.add(entry.id)

    def update(self, entry: Entry) -> None:
        self.unsaved_updates[entry.id] = len(self.adds)

    # What happens at the backend.

    def sends_update(self, entry: Entry) -> None:
        before = self.adds[: self.unsaved_updates[entry.id]]
        if early := self.unsaved_adds.intersection(before):
            self.wrong.append(
                f"the update of {entry.id} does not wait for the adds of {sorted(early)}"
            )

    def stored(self, entry: Entry) -> None:
        self.put(entry.id, is_handled=False)

    def written(self, entry: Entry) -> None:
        self.put(entry.id, is_handled=entry.is_handled)

    def put(self, id: str, *, is_handled: bool) -> None:
        self.handled[id] = is_handled
        self.pending_since[id] = self.clock.now

    def answered(self, id: str, answer: Added | Updated) -> None:
        if isinstance(answer, Updated):
            del self.unsaved_updates[id]
        else:
            self.unsaved_adds.remove(id)
            if answer.refused is None:
                self.known.add(id)


class Crawl(Driver):
    """One run of a crawl, which is compared with the model."""

    def __init__(self, backend: UnreliableBackend, model: Model, **options: Any) -> None:
        super().__init__(backend, **options)
        self.waiting_in_memory: set[Visit] = set()
        self.was_over = False
        self._model = model

    def refused(self, visit: Visit, reason: str) -> None:
        self.waiting_in_memory.add(visit)

    def notice(self, notice: Notice) -> None:
        super().notice(notice)
        if isinstance(notice, Bug) and self.backend.is_healthy:
            self._model.wrong.append(repr(notice.error))

    # What Scrapy does.

    async def schedule(self, pages: Iterable[int], *, priority: int = 0) -> None:
        for entry in map(make_entry, pages):
            if not (self.frontier.knows(entry.id) or self.frontier.is_full()):
                self._model.add(entry)
                self.frontier.add(
                    Visit(entry, priority=priority, forefront=priority > 0, size=entry.size)
                )

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
        self._model.known.add(id)
        self.in_flight[id] = visit
        return visit

    def finish_page(self, visit: Visit, how: str) -> None:
        entry = entry_of(visit).model_copy(deep=True)
        del self.in_flight[entry.id]
        if how == "retry":
            entry.retry_count += 1
        else:
            entry.handled_at = HANDLED_AT
        self._model.update(entry)
        self.frontier.update(
            Visit(
                entry,
                is_retry=how == "retry",
                forefront=how == "retry" and entry.retry_count % 2 == 1,
                lease=visit.lease,
                size=visit.size,
            )
        )
        match self.notices[-1:]:
            case [LeaseLost(lost, "retried")] if lost is entry:
                self._model.unsaved_updates.pop(entry.id)

    async def finish(self) -> None:
        """Crawl all there is."""
        for visit in list(self.in_flight.values()):
            self.finish_page(visit, "ack")
        while (taken := await self.next()) is not None:
            if taken.entry is not None:
                self.finish_page(taken, "ack")


def make_entry(page: int) -> Entry:
    payload = "x" * (3000 if page % 5 == 4 else 0)
    return Entry(id=f"page{page}", unique_key=f"{page}", url=f"http://site/{page}", payload=payload)
