"""Drives a frontier with events in any order, and compares it with its model after each.

Hypothesis takes Scrapy's part, the part of other clients and that of fate: it schedules, takes,
finishes and repeats pages, lets time pass, kills the process, or closes it. At the end whatever is
pending must come out again.

Time is virtual, so waiting costs nothing, and what waits for ever is noticed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.notices import LeasesKept
from scrapy_apify_rq.frontier.visit import Visit
from tests.support.frontier_model import HANDLED_AT, Crawl, Model, make_entry
from tests.support.unreliable_backend import SLOW, History, Trouble, UnreliableBackend, Weather
from tests.support.virtual_time import Clock, VirtualLoop

T = TypeVar("T")

PAGES = 30
CONCURRENCY = 4
# Virtual seconds, as all here.
LOCK_SECS = 12
LONG = 2000.0

# Drawn from lists made beforehand: one choice of Hypothesis each, instead of many.
chance = random.Random(0)
pages = st.integers(0, PAGES - 1)
links = st.sampled_from([chance.sample(range(PAGES), n % 7) for n in range(70)])
failures = st.sampled_from(
    [BackendError("down"), ValueError("a bug"), asyncio.CancelledError(), None]
)
HOWS = ["ack", "ack", "retry", "wait"]
hows = st.sampled_from([chance.choices(HOWS, k=n) for n in range(1, 13)])
DELAYS = [[0.0], [0.0, 0.01, 0.3], [0.0, 0.0, SLOW], [0.3]]
weathers = st.tuples(
    st.sampled_from([chance.choices(some, k=n) for some in DELAYS for n in range(1, 7)]),
    st.sampled_from([1.0, 0.5, 0.0]),
)


class FrontierMachine(RuleBasedStateMachine):
    folder: Path
    clock: Clock
    is_shared: bool
    names: Iterator[int]
    loop: VirtualLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self.has_failed = True  # in case it raises
        assert self.loop is not None
        result = self.loop.run_until_complete(work)
        self.has_failed = False
        return result

    def client(self, key: str, lock_secs: int | None) -> dict[str, Any]:
        shared = {"name": self.name, "patience": 30.0, "now": self.clock.time}
        return {"folder": self.folder, "client_key": key, "lock_secs": lock_secs, **shared}

    @initialize(
        window=st.integers(1, 6),
        outbox=st.integers(1, 12),
        memory=st.sampled_from([8_000, 64_000]),
        idle_before_close=st.sampled_from([0.0, 0.0, 5.0]),
        retries_first=st.booleans(),
        lags=st.sampled_from([(10.0, 1.0), (10.0, 10.0), (0.0, 0.0)]),
        batches=st.sampled_from([(3, 3, 1, 3), (3, 3, 1, 3), (25, 1, 25, 1)]),
        weather=weathers,
        has_company=st.booleans(),
        links=links,
    )
    def begin(
        self,
        lags: tuple[float, float],
        batches: tuple[int, int, int, int],
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
        self.lags = lags
        self.batches = batches
        self.weather = Weather()
        self.worst_delay = 0.0
        self.set_weather(*weather)
        self.model = Model(self.clock)
        self.other = SqliteBackend(**self.client("other", LOCK_SECS))
        self.reader = SqliteBackend(**self.client("reader", None))
        self.history = History(self.reader, self.clock)
        self.others_leases: dict[str, float] = {}
        """By id, since when another client has had the entry."""
        self.runs = itertools.count()
        self.steps = 0
        """Of this run."""

        async def work() -> None:
            await self.other.open()
            await self.reader.open()
            await self.open()
            await self.crawl.schedule(links)

        self.run(work())

    async def open(self) -> None:
        self.model.begin_run()
        self.weather.failure, self.weather.hangs = None, False
        self.backend = UnreliableBackend(
            **self.client(f"run{next(self.runs)}", LOCK_SECS if self.is_shared else None),
            history=self.history,
            weather=self.weather,
            model=self.model,
            lags=self.lags,
            batches=self.batches,
        )
        await self.backend.open()
        await self.history.note()
        self.crawl = Crawl(self.backend, self.model, **self.options)
        is_new = not self.model.handled
        self.crawl.frontier.open(has_pending=bool(self.model.pending), is_new=is_new)

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
                if (visit := self.crawl.hand_out()) is None:
                    return
                await self.crawl.check_lease(visit)

        self.run(work())

    @precondition(lambda self: self.crawl.in_flight)
    @rule(data=st.data(), links=links, how=st.sampled_from(HOWS))
    def finish_page(self, data: st.DataObject, links: list[int], how: str) -> None:
        id = data.draw(st.sampled_from(list(self.crawl.in_flight)))

        async def work() -> None:
            await self.crawl.schedule(links)
            self.crawl.finish_page(self.crawl.in_flight[id], how)

        self.run(work())

    @rule(links=links, hows=hows)
    def go_on(self, links: list[int], hows: list[str]) -> None:
        """Crawl for a while."""

        async def work() -> None:
            await self.crawl.schedule(links)
            for how in hows:
                if (visit := self.crawl.hand_out()) is not None:
                    await self.crawl.check_lease(visit)
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

    @rule(weather=weathers, trouble=st.sampled_from(get_args(Trouble)))
    def change_weather(self, weather: tuple[list[float], float], trouble: Trouble) -> None:
        self.set_weather(*weather)
        self.weather.troubles.add(trouble)

    def set_weather(self, delays: list[float], share_of_lag: float) -> None:
        self.weather.delays = list(delays)
        self.weather.lag = share_of_lag * self.lags[0]
        self.worst_delay = max(self.worst_delay, *delays)

    # What other clients do.

    @precondition(lambda self: self.has_company)
    @rule(page=pages)
    def other_adds(self, page: int) -> None:
        async def work() -> None:
            entry = make_entry(page)
            self.backend.has_company = True
            async with self.history.change():
                (answer,) = await self.other.add([entry], forefront=False)
                if not answer.was_already_present:
                    self.model.put(entry.id, is_handled=False)

        self.run(work())

    @precondition(lambda self: self.is_shared and self.has_company)
    @rule(limit=st.integers(1, 3))
    def other_claims(self, limit: int) -> None:
        async def work() -> None:
            self.backend.has_company = True
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
                return
            async with self.history.change():
                entry = await self.reader.get(id)
                assert entry is not None
                entry.handled_at = HANDLED_AT if what == "ack" else None
                await self.other.update([entry], forefront=False)
                self.model.put(id, is_handled=entry.is_handled)

        self.run(work())

    # How a run ends.

    @precondition(lambda self: self.steps > 5)
    @rule(how=st.sampled_from(["crash", "close", "migrate", "fail"]), failure=failures)
    def end(self, how: str, failure: BaseException | None) -> None:
        async def work() -> None:
            if how == "crash":
                await cancel_all()
                await self.backend.close()
            else:
                if how == "migrate":
                    await self.migrate()
                elif how == "fail":
                    await self.fail(failure)
                await self.close()
            await self.open()

        self.steps = 0
        self.run(work())

    async def migrate(self) -> None:
        await self.crawl.frontier.hold()
        assert self.crawl.hand_out() is None
        assert self.crawl.frontier.has_pending()

    async def fail(self, failure: BaseException | None) -> None:
        for visit in list(self.crawl.in_flight.values()):
            self.crawl.finish_page(visit, "ack")
        await self.crawl.schedule(range(PAGES, PAGES + 8))
        await asyncio.sleep(0)
        self.weather.failure, self.weather.hangs = failure, failure is None
        await asyncio.sleep(4 * SLOW)

    async def close(self) -> None:
        frontier = self.crawl.frontier
        async with patience():
            await frontier.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task outlives close()"
        self.check_failures()
        self.check_outbox()
        if frontier.error is None:
            assert not frontier.unsaved_adds, "adds are left unsaved"
            assert not frontier.unsaved_updates, "updates are left unsaved"
            await self.check_queue()
        await self.backend.close()

    async def check_queue(self) -> None:
        stored = {entry.id: entry.is_handled async for entry in self.reader.list()}
        assert stored == self.model.handled
        if not any(isinstance(notice, LeasesKept) for notice in self.crawl.notices):
            for id in stored:
                lock = await self.reader.lock_of(id)
                assert lock is None or lock.client_key != self.backend.client_key, "a lease is left"

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
        failures, error = self.crawl.failures, self.crawl.frontier.error
        assert len(failures) == (error is not None), f"{len(failures)} failures are reported"
        assert not (failures and self.backend.is_healthy), failures

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
        most_bytes = memory / 2 * 5 / 4 + largest * (1 + CONCURRENCY)
        assert len(outbox) <= limit * 5 // 4 + 1 + CONCURRENCY, "the outbox is too long"
        assert size_of(outbox) <= most_bytes, "the outbox is too large"
        # Retries that wait may take as much again as half of it, and what is in flight.
        most_bytes = memory / 4 * 3 / 2 + largest * (1 + CONCURRENCY)
        most = self.options["window"] * 3 // 2 + CONCURRENCY
        assert len(window) <= most, "the window is too long"
        assert size_of(window) <= most_bytes, "the window is too large"

    def check_end(self) -> None:
        """The crawl does not end as long as it has something to do."""
        crawl, model = self.crawl, self.model
        is_over, was_over = not crawl.frontier.has_pending(), crawl.was_over
        crawl.was_over = is_over
        if not is_over or was_over:  # later it need not look
            return
        assert crawl.frontier.error is None
        assert not crawl.in_flight, "the crawl ends with pages in flight"
        assert not crawl.waiting_in_memory, "the crawl ends without what is in memory only"
        assert not model.unsaved_adds, "the crawl ends with unsaved adds"
        assert not model.unsaved_updates, "the crawl ends with unsaved updates"
        # No answer is older, and nothing is hidden for longer.
        asked_at = self.clock.now - 4 * self.worst_delay - 1
        for id in model.pending - self.backend.refused:
            assert id not in model.known, f"the crawl ends without {id}"
            assert model.pending_since[id] > asked_at - 2 * self.lags[0], f"{id} is not found"
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
        for backend in (self.backend, self.other, self.reader):
            await backend.close()


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
