"""A model of the frontier.

Hypothesis takes Scrapy's part, the part of other clients and that of fate: it schedules, takes,
finishes and repeats pages, lets time pass, kills the process, or closes it, in any order. After
each step the frontier must agree with ``Model``, which only knows what the queue must hold. At the
end whatever is pending must come out again.

Time is virtual, so waiting costs nothing, and what waits for ever is noticed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, get_args

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scrapy_apify_rq import frontier as package
from scrapy_apify_rq.backends.base import Added, Claim, Updated
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend, connect
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.idle import Idle, Question
from scrapy_apify_rq.frontier.leases import Leases
from scrapy_apify_rq.frontier.notices import Bug, LeaseLost, LeasesKept, Notice
from scrapy_apify_rq.frontier.outbox import Outbox, _Lane
from scrapy_apify_rq.frontier.single import Single
from scrapy_apify_rq.frontier.supply import Local, Reader
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from scrapy_apify_rq.frontier.window import Window
from tests.support.unreliable_backend import SLOW, History, Trouble, UnreliableBackend, Weather
from tests.support.virtual_time import Clock, VirtualLoop, ruling

T = TypeVar("T")

PAGES = 30
CONCURRENCY = 4
# Virtual seconds, as all here.
LOCK_SECS = 12
LONG = 2000.0
HANDLED_AT = datetime(2026, 1, 1, tzinfo=UTC)

pages = st.integers(0, PAGES - 1)
links = st.lists(pages, max_size=6)
failures = st.sampled_from(
    [BackendError("down"), ValueError("a bug"), asyncio.CancelledError(), None]
)
hows = st.sampled_from(["ack", "ack", "retry"])
weathers = st.tuples(
    st.sampled_from([[0.0], [0.0, 0.01, 0.3], [0.0, 0.0, SLOW], [0.3]]).flatmap(
        lambda delays: st.lists(st.sampled_from(delays), min_size=1, max_size=6)
    ),
    st.sampled_from([1.0, 0.5, 0.0]),
)


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
            self.wrong.append(f"the update of {entry.id} does not wait for the adds of {early}")

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


class Crawl:
    """One run of a crawl: Scrapy's part. It listens to the frontier."""

    def __init__(self, backend: UnreliableBackend, model: Model, **options: Any) -> None:
        self.backend = backend
        self.in_flight: dict[str, Visit] = {}
        self.waiting_in_memory: set[Visit] = set()
        self.failures: list[BackendError] = []
        self.notices: list[Notice] = []
        self.woken = asyncio.Event()
        self.was_over = False
        self._model = model
        stats = SimpleNamespace(inc_value=lambda key: None, max_value=lambda key, value: None)
        self.frontier = Frontier(backend, self, stats=stats, **options)  # type: ignore[arg-type]

    def wake(self) -> None:
        self.woken.set()

    def dropped(self, visit: Visit) -> None:
        pass

    def refused(self, visit: Visit, reason: str) -> None:
        self.waiting_in_memory.add(visit)

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        if isinstance(notice, Bug) and self.backend.is_healthy:
            self._model.wrong.append(repr(notice.error))

    def failed(self, error: BackendError) -> None:
        self.failures.append(error)
        self.woken.set()

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

    def take(self) -> Visit | None:
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
        """Crawl all there is, without a heartbeat, so that a lost wake-up makes it hang."""
        while True:
            self.woken.clear()
            for visit in list(self.in_flight.values()):
                self.finish_page(visit, "ack")
            if self.take() is None:
                if not self.frontier.has_pending():
                    return
                await self.woken.wait()


def make_entry(page: int) -> Entry:
    payload = "x" * (3000 if page % 5 == 4 else 0)
    return Entry(id=f"page{page}", unique_key=f"{page}", url=f"http://site/{page}", payload=payload)


class FrontierMachine(RuleBasedStateMachine):
    """``is_far`` puts the queue behind a network."""

    folder: Path
    clock: Clock
    is_far: bool
    is_shared: bool
    names: Iterator[int]
    loop: VirtualLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.has_failed = True  # in case it raises
        assert self.loop is not None
        result = self.loop.run_until_complete(work)
        self.has_failed = False
        return result

    def make_queue(self, client_key: str, lock_secs: int | None) -> SqliteBackend:
        return SqliteBackend(
            self.folder,
            name=self.name,
            client_key=client_key,
            lock_secs=lock_secs,
            now=self.clock.time,
        )

    @initialize(
        window=st.integers(1, 6),
        outbox=st.integers(1, 12),
        memory=st.sampled_from([8_000, 64_000]),
        idle_before_close=st.sampled_from([0.0, 0.0, 5.0]),
        retries_first=st.booleans(),
        lag=st.sampled_from([(10.0, 1.0), (10.0, 10.0), (0.0, 0.0)]),
        weather=weathers,
        has_company=st.booleans(),
        links=links,
    )
    def begin(
        self,
        lag: tuple[float, float],
        weather: tuple[list[float], float],
        has_company: bool,
        links: list[int],
        **options: Any,
    ) -> None:
        self.clock.now = Clock().now
        self.loop = VirtualLoop(self.clock)
        self.name = f"queue{next(self.names)}"
        self.options = options
        self.has_company = has_company
        self.lag, self.consistency_delay = lag if self.is_far else (0.0, 0.0)
        self.lock_secs = LOCK_SECS if self.is_shared else None
        self.weather = Weather()
        self.worst_delay = 0.0
        self.set_weather(*weather)
        self.model = Model(self.clock)
        self.other = self.make_queue("other", LOCK_SECS)
        self.reader = self.make_queue("reader", None)
        self.history = History(self.reader, self.clock)
        self.others_leases: dict[str, float] = {}
        """By id, since when another client has had the entry."""
        self.runs = itertools.count()
        self.steps = 0
        """Of this run."""
        self.run(self.open_queue())
        self.run(self.open())
        self.run(self.crawl.schedule(links))

    async def open_queue(self) -> None:
        await self.other.open()
        await self.reader.open()

    async def open(self) -> None:
        self.model.begin_run()
        self.weather.failure, self.weather.hangs = None, False
        self.queue = self.make_queue(f"run{next(self.runs)}", self.lock_secs)
        await self.queue.open()
        await self.history.note()
        backend = UnreliableBackend(
            self.queue,
            self.history,
            self.weather,
            self.model,
            lag=self.lag,
            consistency_delay=self.consistency_delay,
            is_far=self.is_far,
        )
        self.crawl = Crawl(backend, self.model, **self.options)
        self.model.known |= self.model.pending
        self.crawl.frontier.open(
            has_pending=bool(self.model.pending), is_new=not self.model.handled
        )

    # What Scrapy does.

    @rule(links=links, priority=st.sampled_from([0, 0, -1, 1]), in_memory=st.booleans())
    def schedule(self, links: list[int], priority: int, in_memory: bool) -> None:
        async def work() -> None:
            await self.crawl.schedule(links, priority=priority)
            if in_memory:
                self.crawl.keep()

        self.run(work())

    @rule(most=st.integers(1, CONCURRENCY))
    def take(self, most: int) -> None:
        async def work() -> None:
            for _ in range(min(most, CONCURRENCY - len(self.crawl.in_flight))):
                visit = self.crawl.take()
                if visit is None:
                    return
                if self.is_shared and visit.entry is not None:
                    lock = await self.reader.lock_of(visit.entry.id)
                    assert lock is not None, f"{visit.entry.id} is handed out without a lease"
                    assert lock.client_key == self.queue._leases._client_key, (
                        "another client has it"
                    )

        self.run(work())

    @precondition(lambda self: self.crawl.in_flight)
    @rule(data=st.data(), links=links, how=hows)
    def finish_page(self, data: st.DataObject, links: list[int], how: str) -> None:
        id = data.draw(st.sampled_from(list(self.crawl.in_flight)))

        async def work() -> None:
            await self.crawl.schedule(links)
            self.crawl.finish_page(self.crawl.in_flight[id], how)

        self.run(work())

    @rule(links=links, hows=st.lists(hows, min_size=1, max_size=12))
    def go_on(self, links: list[int], hows: list[str]) -> None:
        """Crawl for a while."""

        async def work() -> None:
            await self.crawl.schedule(links)
            for how in hows:
                self.crawl.take()
                await asyncio.sleep(0.01)
                for visit in list(self.crawl.in_flight.values())[:1]:
                    self.crawl.finish_page(visit, how)

        self.run(work())

    @rule(links=links)
    def crawl_all(self, links: list[int]) -> None:
        """Crawl all there is, and then more, as the handler of a signal may want it."""

        async def work() -> None:
            await self.come_to_end()
            await self.crawl.schedule(links)

        self.run(work())

    # What time and the network do.

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.3, 2.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.is_far)
    @rule(weather=weathers, trouble=st.sampled_from(get_args(Trouble)))
    def change_weather(self, weather: tuple[list[float], float], trouble: Trouble) -> None:
        self.set_weather(*weather)
        self.weather.troubles.add(trouble)

    def set_weather(self, delays: list[float], lag: float) -> None:
        if self.is_far:
            self.weather.delays = delays
            self.weather.lag = lag * self.lag
            self.worst_delay = max(self.worst_delay, *delays)

    # What other clients do.

    @precondition(lambda self: self.has_company)
    @rule(page=pages)
    def other_adds(self, page: int) -> None:
        async def work() -> None:
            entry = make_entry(page)
            self.crawl.backend.has_company = True
            async with self.history.change():
                (answer,) = await self.other.add([entry], forefront=False)
                if not answer.was_already_present:
                    self.model.put(entry.id, is_handled=False)

        self.run(work())

    @precondition(lambda self: self.is_shared and self.has_company)
    @rule(limit=st.integers(1, 3))
    def other_claims(self, limit: int) -> None:
        async def work() -> None:
            self.crawl.backend.has_company = True
            for entry, _ in (await self.other.claim(limit, (), 2**40)).entries:
                self.others_leases[entry.id] = self.clock.now

        self.run(work())

    @precondition(lambda self: self.others_leases)
    @rule(what=st.sampled_from(["prolong", "ack", "requeue"]))
    def other_goes_on(self, what: str) -> None:
        async def work() -> None:
            id = next(iter(self.others_leases))
            del self.others_leases[id]
            if not await self.other.prolong([id]):
                return
            if what == "prolong":
                self.others_leases[id] = self.clock.now
            else:
                async with self.history.change():
                    entry = await self.reader.get(id)
                    assert entry is not None
                    entry.handled_at = HANDLED_AT if what == "ack" else None
                    await self.other.update([entry], forefront=False)
                    self.model.put(id, is_handled=entry.is_handled)

        self.run(work())

    # How a run ends.

    @precondition(lambda self: self.steps > 5)
    @rule(how=st.sampled_from(["crash", "close", "migrate", "fail"]), data=st.data())
    def end(self, how: str, data: st.DataObject) -> None:
        self.steps = 0
        if how == "crash":
            self.run(self.crash())
        elif how == "migrate":
            self.run(self.migrate())
        elif how == "fail" and self.is_far:
            self.run(self.fail(data.draw(failures)))
        else:
            self.run(self.close())
        self.run(self.open())

    async def crash(self) -> None:
        await cancel_all()
        await self.queue.close()

    async def migrate(self) -> None:
        await self.crawl.frontier.hold()
        assert self.crawl.take() is None
        assert self.crawl.frontier.has_pending()
        await self.close()

    async def fail(self, failure: BaseException | None) -> None:
        for visit in list(self.crawl.in_flight.values()):
            self.crawl.finish_page(visit, "ack")
        await self.crawl.schedule(range(PAGES, PAGES + 8))
        await asyncio.sleep(0)
        self.weather.failure, self.weather.hangs = failure, failure is None
        await asyncio.sleep(4 * SLOW)
        await self.close()

    async def close(self) -> None:
        frontier = self.crawl.frontier
        async with patience():
            await frontier.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task outlives close()"
        self.check_failures()
        self.check_outbox()
        if frontier.error is None:
            assert not frontier.unsaved_adds
            assert not frontier.unsaved_updates
            await self.check_queue()
        await self.queue.close()

    async def check_queue(self) -> None:
        stored = {entry.id: entry.is_handled async for entry in self.reader.list()}
        assert stored == self.model.handled
        if not any(isinstance(notice, LeasesKept) for notice in self.crawl.notices):
            for id in stored:
                lock = await self.reader.lock_of(id)
                assert lock is None or lock.client_key != self.queue._leases._client_key, (
                    "a lease is left"
                )

    # What must always be so.

    @invariant()
    def agrees(self) -> None:
        self.steps += 1

        async def work() -> None:
            assert not self.model.wrong, self.model.wrong[0]
            self.check_failures()
            self.check_outbox()
            self.check_limits()
            self.check_end()

        self.run(work())

    def check_failures(self) -> None:
        crawl = self.crawl
        assert len(crawl.failures) == (crawl.frontier.error is not None)
        assert not (crawl.failures and crawl.backend.is_healthy), crawl.failures

    def check_outbox(self) -> None:
        """What is not confirmed is counted, and only that."""
        model, frontier = self.model, self.crawl.frontier
        assert frontier.unsaved_adds == len(model.unsaved_adds)
        assert frontier.unsaved_updates == len(model.unsaved_updates)
        assert frontier._outbox.visits.keys() == model.unsaved_adds | model.unsaved_updates.keys()

    def check_limits(self) -> None:
        """One entry always fits, and what is in flight may come back to the outbox."""
        largest = make_entry(4).size
        outbox, window = self.crawl.frontier._outbox.visits, self.crawl.frontier._window.stored
        limit, memory = self.options["outbox"], self.options["memory"]
        assert len(outbox) <= limit * 5 // 4 + 1 + CONCURRENCY
        assert size_of(outbox) <= memory / 2 * 5 / 4 + largest * (1 + CONCURRENCY)
        assert len(window) <= self.options["window"]
        assert size_of(window) <= memory / 4 + largest

    def check_end(self) -> None:
        """The crawl does not end as long as it has something to do."""
        crawl, model = self.crawl, self.model
        is_over, was_over = not crawl.frontier.has_pending(), crawl.was_over
        crawl.was_over = is_over
        if not is_over or was_over:  # later it need not look
            return
        assert crawl.frontier.error is None
        assert not (crawl.in_flight)
        assert not (crawl.waiting_in_memory)
        assert not (model.unsaved_adds)
        assert not (model.unsaved_updates)
        # No answer is older, and nothing is hidden for longer.
        asked_at = self.clock.now - 4 * self.worst_delay - 1
        for id in model.pending - crawl.backend.refused:
            assert id not in model.known, f"the crawl ends without {id}"
            assert model.pending_since[id] > asked_at - 2 * self.lag, f"{id} is not found"
        for id, since in self.others_leases.items():
            is_held = id in model.pending and self.clock.now < since + LOCK_SECS
            assert since > asked_at or not is_held, f"another client is at work on {id}"

    def teardown(self) -> None:
        if self.loop is None:
            return
        try:
            if not self.has_failed:
                self.run(self.finish())
        finally:
            self.run(self.abandon())
            self.loop.close()

    async def finish(self) -> None:
        """This run ends by itself. One after it crawls whatever is left by then."""
        self.weather.troubles.clear()
        await self.finish_run()
        await self.open()
        await self.finish_run()
        assert not self.model.pending

    async def finish_run(self) -> None:
        await self.come_to_end()
        await self.close()
        assert not self.model.wrong, self.model.wrong[0]

    async def come_to_end(self) -> None:
        # Otherwise no lease may last until its entry has come.
        self.weather.delays = [min(delay, 0.3) for delay in self.weather.delays]
        async with patience():
            await self.crawl.frontier.room()
            await self.crawl.finish()
        self.check_end()

    async def abandon(self) -> None:
        await cancel_all()
        for queue in (self.queue, self.other, self.reader):
            await queue.close()


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(LONG):
            yield
    except TimeoutError:
        raise AssertionError("it does not end") from None


async def cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def size_of(visits: dict[str, Visit]) -> int:
    return sum(visit.size for visit in visits.values())


def check(folder: Path, *, is_far: bool, is_shared: bool, **options: Any) -> None:
    clock = Clock()
    values = {"folder": folder, "clock": clock, "is_far": is_far, "is_shared": is_shared}
    machine = type("Machine", (FrontierMachine,), {**values, "names": itertools.count()})
    # As long as somebody has the file open, SQLite need not tidy it up after each example.
    with closing(connect(folder)), ruling(clock, package, Leases.__init__):
        run_state_machine_as_test(
            machine,
            settings=settings(
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                **options,
            ),
        )


@pytest.mark.parametrize("is_shared", [False, True], ids=["single", "shared"])
@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far"])
def test_the_frontier_agrees_with_the_model(tmp_path: Path, is_far: bool, is_shared: bool) -> None:
    check(tmp_path, is_far=is_far, is_shared=is_shared, max_examples=60, stateful_step_count=40)


# Faults put in on purpose, each with the mode in which it shows.


def forget_adds_before_acks(patch: pytest.MonkeyPatch) -> None:
    cut = _Lane.cut
    patch.setattr(_Lane, "cut", lambda self, most, before: cut(self, most, math.inf))


def forget_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Local, "ids", lambda self: {*self.window.stored, *self.outbox.visits})
    patch.setattr(Local, "confirmed", lambda self, id: self.window.stored.get(id))


def end_without_asking_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Idle, "disturb", lambda self: None)


def forget_what_is_evicted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Single, "_grow_backlog", lambda self, id: None)


def end_before_the_lag_is_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Single, "hidden_until", -math.inf)


def forget_acks_that_a_claim_may_miss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Single, "acked", lambda self, id: None)


def keep_a_window_of_any_size(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Window, "evict", lambda self, last_size=0: [])


def believe_in_leases_for_ever(patch: pytest.MonkeyPatch) -> None:
    receive = Leases.receive

    def receive_for_ever(self: Leases, claim: Claim) -> int:
        entries = [claimed._replace(lease=math.inf) for claimed in claim.entries]
        return receive(self, claim._replace(entries=entries))

    patch.setattr(Leases, "receive", receive_for_ever)


def keep_leases_at_close(patch: pytest.MonkeyPatch) -> None:
    async def release(self: Leases) -> None:
        pass

    patch.setattr(Leases, "release", release)


def leave_while_others_work(patch: pytest.MonkeyPatch) -> None:
    receive_claim = Reader._consider_the_end

    async def consider(self: Reader, question: Question, claim: Claim) -> None:
        await receive_claim(self, question, claim._replace(leased=False))

    patch.setattr(Reader, "_consider_the_end", consider)


def wake_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Frontier, "confirmed", lambda self: None)


def close_without_flushing(patch: pytest.MonkeyPatch) -> None:
    async def flush(self: Outbox, patience: float) -> None:
        pass

    patch.setattr(Outbox, "flush", flush)


def report_each_failure(patch: pytest.MonkeyPatch) -> None:
    fail = Frontier._fail

    def fail_again(self: Frontier, error: Exception) -> None:
        self.error = None
        fail(self, error)

    patch.setattr(Frontier, "_fail", fail_again)


@pytest.mark.parametrize(
    ("put_in", "is_shared"),
    [
        (forget_adds_before_acks, False),
        (forget_what_is_in_flight, False),
        (end_without_asking_again, False),
        (forget_what_is_evicted, False),
        (end_before_the_lag_is_over, False),
        (forget_acks_that_a_claim_may_miss, False),
        (keep_a_window_of_any_size, False),
        (wake_nobody, False),
        (close_without_flushing, False),
        (report_each_failure, False),
        (believe_in_leases_for_ever, True),
        (keep_leases_at_close, True),
        (leave_while_others_work, True),
    ],
)
def test_the_model_finds_a_fault(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    put_in: Callable[[pytest.MonkeyPatch], None],
    is_shared: bool,
) -> None:
    put_in(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        check(
            tmp_path,
            is_far=True,
            is_shared=is_shared,
            max_examples=200,
            stateful_step_count=40,
            phases=[Phase.generate],
        )
