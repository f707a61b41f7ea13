"""The invariants of ``frontier.py``, one by one.

Where a crawl can show an invariant, a real one does. Where the interleaving is the subject, the
test takes Scrapy's part and drives a real ``Frontier`` over the embedded queue.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.backends.base import Added, Backend, Claim, Claimed, Updated
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.notices import Notice, RateReached
from scrapy_apify_rq.frontier.visit import Visit
from tests.project import QUEUE, SPIDER, Project
from tests.support.api_calls import error, serving
from tests.support.frontier_driver import Stats
from tests.support.waiting import run_async
from tests.support.website import Hit, Page, Site, links

T = TypeVar("T")

# ru_maxrss is in kilobytes, on macOS in bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024

# How long a test waits for something that comes at once unless the code is broken.
PATIENCE = 5.0

# What the addon sets, for a project that brings its own subclass of the scheduler.
WITHOUT_ADDON = {
    "ADDONS": {},
    "DOWNLOADER_MIDDLEWARES": {"scrapy_apify_rq.DownloaderMiddleware": 10_000},
    "SPIDER_MIDDLEWARES": {"scrapy_apify_rq.SpiderMiddleware": 10_000},
}


def put_module(project: Project, name: str, source: str) -> None:
    (project.folder / "project" / f"{name}.py").write_text(source)


def lock(project: Project) -> sqlite3.Connection:
    """Do what a foreign program may do: hold the file locked until the connection is closed."""
    file = project.folder / "storage" / FILE_NAME
    db = sqlite3.connect(file, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    db.execute("BEGIN EXCLUSIVE")
    return db


# The frontier without Scrapy.


@dataclass
class Call:
    name: str
    ids: tuple[str, ...]
    asked: float
    ended: float | None = None


@dataclass
class Gate:
    """``reached`` when a call has come to it; the call goes on when it is ``opened``."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


class SlowBackend(SqliteBackend):
    """The embedded queue, which records its calls, can be held up, can lag and can fail.

    With a ``lag``, ``claim`` sees the queue as it was so many seconds before.
    """

    def __init__(self, folder: Path, *, lag: float = 0, **options: Any) -> None:
        super().__init__(folder, name=QUEUE, **options)
        self.lag = self.consistency_delay = lag
        self.calls: list[Call] = []
        self.gates: dict[str, Gate] = {}
        self.fault: BackendError | None = None
        self.round_trip: Callable[[], float] | None = None
        self._past: list[tuple[float, list[Claimed]]] = []

    def hold(self, moment: str) -> Gate:
        """Stop the next call at ``"before add"``, ``"after claim"`` and so on."""
        self.gates[moment] = Gate()
        return self.gates[moment]

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        answer = super().add(entries, forefront=forefront)
        return await self._call("add", [entry.id for entry in entries], answer)

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        answer = super().update(entries, forefront=forefront)
        return await self._call("update", [entry.id for entry in entries], answer)

    async def claim(self, limit: int, known: Collection[str], size: int) -> Claim:
        return await self._call("claim", (), self._claim(limit, known, size))

    async def _claim(self, limit: int, known: Collection[str], size: int) -> Claim:
        if not self.lag:
            return await super().claim(limit, known, size)
        seen = [past for at, past in self._past if at <= time.monotonic() - self.lag]
        found = [old for old in (seen[-1] if seen else []) if old.entry.id not in known]
        copies = [Claimed(old.entry.model_copy(deep=True), old.lease) for old in found[:limit]]
        return Claim(copies, len(found) > limit)

    async def _call(self, name: str, ids: Sequence[str], work: Coroutine[Any, Any, T]) -> T:
        call = Call(name, tuple(ids), time.monotonic())
        self.calls.append(call)
        with closing(work):  # it is never begun if the call fails or is cancelled
            await self._pass(f"before {name}")
            if self.fault is not None:
                raise self.fault
            answer = await work
        if self.lag and name != "claim":
            self._past.append((time.monotonic(), (await super().claim(10_000, (), 2**24)).entries))
        await self._pass(f"after {name}")
        call.ended = time.monotonic()
        return answer

    async def _pass(self, moment: str) -> None:
        if self.round_trip is not None:
            await asyncio.sleep(self.round_trip() / 2)
        if (gate := self.gates.pop(moment, None)) is not None:
            gate.reached.set()
            await gate.opened.wait()


class Driver:
    """Scrapy's part: takes visits when woken, as the engine does, and finishes them.

    It has no heartbeat, so that a lost wake-up makes it hang.
    """

    def __init__(self, backend: Backend, **options: Any) -> None:
        self.stats = Stats()
        self.woken = asyncio.Event()
        self.failures: list[BackendError] = []
        self.in_flight: dict[str, Visit] = {}
        self.notices: list[Notice] = []
        values = {"window": 1000, "outbox": 1000, **options}
        self.frontier = Frontier(backend, self, stats=self.stats, **values)  # type: ignore[arg-type]

    def wake(self) -> None:
        self.woken.set()

    def dropped(self, visit: Visit) -> None:
        pass

    def refused(self, visit: Visit, reason: str) -> None:
        pass

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)

    def failed(self, error: BackendError) -> None:
        self.failures.append(error)
        self.woken.set()

    def add(self, path: str, *, forefront: bool = False) -> bool:
        entry = make_entry(path)
        if self.frontier.knows(entry.id):
            return False
        self.frontier.add(Visit(entry, forefront=forefront, size=entry.size))
        return True

    def hand_out(self) -> Visit | None:
        visit = self.frontier.next()
        if visit is not None and visit.entry is not None:
            self.in_flight[visit.entry.id] = visit
        return visit

    @property
    def unsaved(self) -> int:
        return self.frontier.unsaved_adds + self.frontier.unsaved_updates

    async def next(self) -> Visit | None:
        """The next visit, or None when the crawl is finished."""
        while True:
            self.woken.clear()
            if (visit := self.hand_out()) is not None:
                return visit
            if not self.frontier.has_pending():
                return None
            await asyncio.wait_for(self.woken.wait(), PATIENCE)

    async def rest(self) -> AsyncIterator[Visit]:
        while (visit := await self.next()) is not None:
            yield visit
            self.ack(visit)

    def ack(self, visit: Visit) -> None:
        assert visit.entry is not None
        visit.entry.handled_at = datetime.now(UTC)
        del self.in_flight[visit.entry.id]
        self.frontier.update(visit)

    def requeue(self, visit: Visit, *, forefront: bool = True) -> None:
        assert visit.entry is not None
        entry = visit.entry.model_copy(update={"retry_count": visit.entry.retry_count + 1})
        del self.in_flight[entry.id]
        self.frontier.update(
            Visit(entry, is_retry=True, forefront=forefront, lease=visit.lease, size=visit.size)
        )


def make_entry(path: str) -> Entry:
    return Entry(id=request_id(path), unique_key=path, url=f"http://localhost{path}")


def path_of(visit: Visit | None) -> str:
    assert visit is not None
    assert visit.entry is not None
    return visit.entry.unique_key


@asynccontextmanager
async def driving(backend: SlowBackend, *pending: str, **options: Any) -> AsyncIterator[Driver]:
    """A frontier over a queue that holds these paths already."""
    await backend.open()
    await backend.add([make_entry(path) for path in pending], forefront=False)
    await asyncio.sleep(backend.lag)
    backend.calls.clear()
    driver = Driver(backend, **options)
    driver.frontier.open(has_pending=bool(pending), is_new=not pending)
    try:
        yield driver
    finally:
        for gate in backend.gates.values():
            gate.opened.set()
        await asyncio.wait_for(driver.frontier.close(), PATIENCE)
        await backend.close()


async def many_turns() -> None:
    """Let everything happen that can happen without time going by."""
    for _ in range(100):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0)


async def reached(gate: Gate) -> None:
    await asyncio.wait_for(gate.reached.wait(), PATIENCE)


def run(work: Awaitable[None]) -> None:
    async def main() -> None:
        await work

    run_async(main())


# 2. Adds before acks.


@pytest.mark.parametrize("moment", ["before add", "after add"])
def test_invariant_2_adds_before_acks(tmp_path: Path, moment: str) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, "/page") as driver:
            page = await driver.next()
            assert path_of(page) == "/page"
            gate = backend.hold(moment)
            for n in range(60):
                driver.add(f"/link{n}")
            driver.ack(page)
            await reached(gate)
            await many_turns()
            assert backend.named("update") == []
            gate.opened.set()
        links_saved_at = max(call.ended for call in backend.named("add") if call.ended)
        (ack,) = backend.named("update")
        assert sum(len(call.ids) for call in backend.named("add")) == 60
        assert ack.asked >= links_saved_at

    run(work())


def test_invariant_2_an_ack_does_not_wait_for_adds_made_after_it(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, "/page") as driver:
            driver.ack(await driver.next())
            for n in range(60):
                driver.add(f"/later{n}")
        (ack,) = backend.named("update")
        last = backend.named("add")[-1]
        assert ack.asked < last.asked

    run(work())


# 4. Nothing pending needs the backend's answer.


def test_invariant_4_asked_only_after_the_last_write_is_confirmed(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, "/page") as driver:
            page = await driver.next()
            await many_turns()
            asked_before = len(backend.named("claim"))
            gate = backend.hold("after update")
            driver.ack(page)
            await reached(gate)
            for _ in range(10):
                assert driver.frontier.next() is None
                assert driver.frontier.has_pending()
                await many_turns()
            assert len(backend.named("claim")) == asked_before
            gate.opened.set()
            assert await driver.next() is None
            assert len(backend.named("claim")) > asked_before

    run(work())


def test_invariant_4_asked_again_after_the_lag(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path, lag=0.7)
        async with driving(backend) as driver:
            driver.add("/page")  # the head shows nothing of it for as long as this test runs
            driver.ack(await driver.next())
            assert await driver.next() is None
            (ack,) = backend.named("update")
            assert ack.ended is not None
            assert backend.named("claim")[-1].asked >= ack.ended + backend.lag

    run(work())


def test_invariant_4_an_entry_that_others_add_to_an_idle_crawl_is_crawled(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, "/page", idle_before_close=1) as driver:
            driver.ack(await driver.next())
            finding = asyncio.create_task(driver.next())
            # It has been told that nothing is left.
            await until(lambda: len(backend.named("claim")) >= 2)
            other = SqliteBackend(tmp_path, name=QUEUE)
            await other.open()
            await other.add([make_entry("/late")], forefront=False)
            await other.close()
            late = await finding
            assert path_of(late) == "/late"
            driver.ack(late)
            assert await driver.next() is None

    run(work())


def test_invariant_4_what_a_lagging_head_hides_is_found_while_a_page_runs(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path, lag=0.3)
        async with driving(backend, "/slow", window=2) as driver:
            slow = await driver.next()
            for n in range(6):
                driver.add(f"/{n}")
            found = [await driver.next() for _ in range(6)]
            assert {path_of(visit) for visit in found} == {f"/{n}" for n in range(6)}
            for visit in (slow, *found):
                driver.ack(visit)

    run(work())


# 5. No id twice at the same time.


def test_invariant_5_a_late_claim_shows_a_running_entry(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend) as driver:
            assert await driver.next() is None
            gate = backend.hold("before claim")
            driver.frontier._reader.ask_at(0)  # the timer would take its time
            await reached(gate)
            driver.add("/page")
            page = await driver.next()
            gate.opened.set()
            await many_turns()
            assert driver.frontier.next() is None
            driver.ack(page)
            assert await driver.next() is None

    run(work())


def test_invariant_5_a_late_claim_shows_an_entry_acked_meanwhile(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend) as driver:
            assert await driver.next() is None
            gates = backend.hold("before claim"), backend.hold("after claim")
            driver.frontier._reader.ask_at(0)
            await reached(gates[0])
            driver.add("/page")
            page = await driver.next()
            gates[0].opened.set()
            await reached(gates[1])
            driver.ack(page)
            await until(lambda: not driver.unsaved)
            gates[1].opened.set()
            assert await driver.next() is None

    run(work())


@pytest.mark.parametrize("seed", range(3))
def test_invariant_5_late_answers_and_a_lagging_head(tmp_path: Path, seed: int) -> None:
    """A crawl of 100 pages that link to each other at random; some are retried once."""
    chance = random.Random(seed)
    linked = {f"/{n}": [f"/{chance.randrange(100)}" for _ in range(4)] for n in range(100)}
    retried = {path for path in linked if chance.random() < 0.1}
    began: Counter[str] = Counter()
    running: set[str] = set()

    async def crawl(driver: Driver, visit: Visit) -> None:
        path = path_of(visit)
        assert path not in running
        running.add(path)
        began[path] += 1
        await asyncio.sleep(chance.random() * 0.01)
        for link in linked[path]:
            await driver.frontier.room()
            driver.add(link)
        running.remove(path)
        if path in retried and began[path] == 1:
            driver.requeue(visit, forefront=chance.random() < 0.5)
        else:
            driver.ack(visit)

    async def work() -> None:
        backend = SlowBackend(tmp_path, lag=0.05)
        backend.round_trip = lambda: chance.random() * 0.01
        async with driving(backend, "/0", "/1", "/2", window=5, outbox=10) as driver:
            pages: list[asyncio.Task[None]] = []
            while (visit := await driver.next()) is not None:
                pages.append(asyncio.create_task(crawl(driver, visit)))
                if len(running) >= 8:
                    await asyncio.wait(pages[-8:], return_when=asyncio.FIRST_COMPLETED)
            assert not running
            await asyncio.gather(*pages)
            assert driver.failures == []
            info = await backend.info()
            assert info.pending == 0
            assert info.handled == len(began)

    run(work())
    reachable = {"/0", "/1", "/2"}
    while more := {link for path in reachable for link in linked[path]} - reachable:
        reachable |= more
    assert began == Counter({path: 1 + (path in retried) for path in reachable})


def test_invariant_5_a_page_of_an_earlier_run_linked_while_it_runs(tmp_path: Path) -> None:
    """Both its second add and its ack are on their way at once if it is not known for old."""

    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, "/a", "/b") as driver:
            a, b = await driver.next(), await driver.next()
            driver.add("/a")
            driver.add("/b")
            driver.ack(a)
            driver.ack(b)
            assert await driver.next() is None
            assert driver.failures == []
            assert (await backend.info()).handled == 2

    run(work())


def test_invariant_5_a_lapsed_lease_is_dropped_and_counted(tmp_path: Path) -> None:
    async def work() -> None:
        skew = -100.0
        backend = SlowBackend(tmp_path, lock_secs=10, now=lambda: time.time() + skew)
        async with driving(backend, "/page") as driver:
            assert driver.frontier.next() is None
            await until(lambda: driver.frontier.ready == 1)
            assert driver.frontier.next() is None
            assert driver.stats["apify_rq/leases_lost"] == 1
            skew = 0.0
            again = await driver.next()
            assert path_of(again) == "/page"
            assert again is not None
            assert again.lease is not None
            assert again.lease > time.time()
            driver.ack(again)

    run(work())


# 1. The three synchronous methods touch memory only.

TRACED = """
import socket, sqlite3, sys, time
from scrapy_apify_rq import Scheduler

METHODS = ("enqueue_request", "next_request", "has_pending_requests")
FORBIDDEN = (sqlite3.Connection, sqlite3.Cursor, socket.socket)
inside = None
calls = {}
violations = {}

def note(what):
    violations[f"{inside}: {what}"] = violations.get(f"{inside}: {what}", 0) + 1

def profile(frame, event, function):
    if event == "c_call" and inside:
        owner = getattr(function, "__self__", None)
        module = getattr(function, "__module__", None) or ""
        if isinstance(owner, FORBIDDEN) or "sqlite3" in module or function is time.sleep:
            note(function.__qualname__)

def audit(event, args):
    if inside and event.startswith(("sqlite3.", "socket.", "open", "subprocess.")):
        note(event)

def trace(name):
    def method(self, *args):
        global inside
        inside = name
        calls[name] = calls.get(name, 0) + 1
        sys.setprofile(profile)
        try:
            return getattr(super(self.traced, self), name)(*args)
        finally:
            sys.setprofile(None)
            inside = None
    return method

def traced(scheduler):
    cls = type("Traced" + scheduler.__name__, (scheduler,), {name: trace(name) for name in METHODS})
    cls.traced = cls
    return cls

class Wrong(Scheduler):
    def enqueue_request(self, request):
        self._life._backend._database.connection.execute("SELECT 1").fetchone()
        return super().enqueue_request(request)

    def next_request(self):
        socket.socket().close()
        return super().next_request()

    def has_pending_requests(self):
        time.sleep(0)
        open(__file__).close()
        return super().has_pending_requests()

TracedScheduler = traced(Scheduler)
TracedWrong = traced(Wrong)

class Report:
    @classmethod
    def from_crawler(cls, crawler):
        from scrapy import signals
        sys.addaudithook(audit)
        crawler.signals.connect(cls.write, signals.spider_closed, weak=False)
        cls.stats = crawler.stats
        return cls()

    @classmethod
    def write(cls):
        cls.stats.set_value("violations", violations)
        cls.stats.set_value("calls", calls)
"""

EVERYTHING = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for path in ("/a", "/a", "/again", "/moved", "/500"):
            yield response.follow(path, callback=self.parse_page)
        yield response.follow("/a", callback=self.parse_page, dont_filter=True, priority=1)
        yield response.follow("/memory", callback=lambda response: None)

    def parse_page(self, response):
        yield {"url": response.url}
"""


def traced_crawl(folder: Path, scheduler: str) -> dict[str, Any]:
    pages = {
        "/": "a page",
        "/a": "a page",
        "/again": [503, "a page"],
        "/moved": Page(status=302, headers={"Location": "/target"}),
        "/500": 500,
    }
    settings = {
        **WITHOUT_ADDON,
        "SCHEDULER": f"project.traced.{scheduler}",
        "EXTENSIONS": {"project.stats.StatsFile": 0, "project.traced.Report": 0},
    }
    with Site(pages, default="a page") as site:
        project = Project(folder, EVERYTHING, site=site.url, settings=settings)
        put_module(project, "traced", TRACED)
        put_undecodable(project, '{"id": "x", "url": 5}')
        stats = project.crawl().stats
    assert stats["apify_rq/retried"] == 3
    assert stats["apify_rq/undecodable"] == 1
    assert stats["dupefilter/filtered"] == 1
    assert stats["scheduler/unserializable"] == 1
    return stats


def put_undecodable(project: Project, *texts: str) -> None:
    """Store texts that no client of ours would write as pending entries."""
    project.add(*(make_entry(f"/undecodable{n}") for n in range(len(texts))))
    with closing(sqlite3.connect(project.folder / "storage" / FILE_NAME)) as db, db:
        for n, text in enumerate(texts):
            id = request_id(f"/undecodable{n}")
            db.execute("UPDATE requests SET json = ? WHERE id = ?", (text, id))


def test_invariant_1_memory_only(tmp_path: Path) -> None:
    stats = traced_crawl(tmp_path, "TracedScheduler")
    assert min(stats["calls"].values()) >= 3
    assert len(stats["calls"]) == 3
    assert stats["violations"] == {}


def test_invariant_1_the_tracer_sees_violations(tmp_path: Path) -> None:
    violations = traced_crawl(tmp_path, "TracedWrong")["violations"]
    assert {
        "enqueue_request: Connection.execute",
        "enqueue_request: Cursor.fetchone",
        "next_request: socket.__new__",
        "has_pending_requests: sleep",
        "has_pending_requests: open",
    } <= violations.keys()


# 2, 3 and 6 to 11 in crawls.

DYING = """
import os, signal
from scrapy_apify_rq import Scheduler

class DyingScheduler(Scheduler):
    def __init__(self, crawler, config):
        super().__init__(crawler, config)
        name, _, count = os.environ.get("DIE_AT", "").partition(" ")
        if name:
            self.left = int(count)
            self.call = getattr(self._life._backend, name)
            setattr(self._life._backend, name, self.die)

    async def die(self, *args, **options):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return await self.call(*args, **options)
"""


@pytest.mark.parametrize("die_at", ["add 3", "update 1", "update 4"])
def test_invariant_2_killed_between_adds_and_acks_nothing_is_lost(
    tmp_path: Path, die_at: str
) -> None:
    paths = [f"/{n}" for n in range(60)]
    settings = {**WITHOUT_ADDON, "SCHEDULER": "project.dying.DyingScheduler"}
    with Site({"/": links(*paths)}, default="a page") as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        put_module(project, "dying", DYING)
        killed = project.run("crawl", "spider", env={"DIE_AT": die_at})
        assert killed.returncode == -9
        unfinished = {entry.url for entry in project.entries() if entry.handled_at is None}
        project.crawl("-s", "USER_AGENT=resumed")
    assert set(site.paths) == {"/", *paths}
    # By name and not by time: what a killed process has sent may be read after its end.
    again = Counter(hit.path for hit in site.hits if ("User-Agent", "resumed") in hit.headers)
    assert {f"{site.url}{path}" for path in again} >= unfinished
    assert max(again.values()) == 1
    info = project.info()
    assert (info.total, info.pending) == (61, 0)


WAITING = """
import asyncio, os

class Pipeline:
    async def process_item(self, item):
        if "WAIT" in os.environ:
            print("waiting", flush=True)
            await asyncio.Event().wait()
        return item
"""


def test_invariant_3_acked_only_when_the_pipelines_are_done(tmp_path: Path) -> None:
    settings = {"ITEM_PIPELINES": {"project.waiting.Pipeline": 1}}
    with Site({"/": links("/a"), "/a": "a"}) as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        put_module(project, "waiting", WAITING)
        process = project.start("crawl", "spider", env={"WAIT": "1"})
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            eventually(lambda: project.entry("/").handled_at is not None)
            assert project.entry("/a").handled_at is None
            process.kill()
        crawl = project.crawl()
    assert site.paths == ["/", "/a", "/a"]
    assert crawl.stats["item_scraped_count"] == 1
    assert project.entry("/a").handled_at is not None


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    give_up_at = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


RETRYING = """
import asyncio
from scrapy.downloadermiddlewares.retry import get_retry_request

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]
    running = 0

    async def parse(self, response):
        self.running += 1
        self.crawler.stats.max_value("running", self.running)
        if not response.meta.get("retry_times"):
            yield get_retry_request(response.request, spider=self, reason="once more")
            self.crawler.engine._slot.nextcall.schedule()
            await asyncio.sleep(0.3)
        self.running -= 1
"""


def test_invariant_5_a_retry_waits_for_the_callback_that_asked_for_it(tmp_path: Path) -> None:
    with Site({"/": "a page"}) as site:
        project = Project(tmp_path, RETRYING, site=site.url)
        crawl = project.crawl()
    assert site.paths == ["/", "/"]
    assert crawl.stats["running"] == 1
    assert project.entry("/").retry_count == 1


def test_invariant_5_a_start_request_of_an_earlier_run_is_not_added_again(tmp_path: Path) -> None:
    """The queue hands it out while ``start()`` still has to yield it."""
    spider = """
    import asyncio

    class Spider(scrapy.Spider):
        name = "spider"

        async def start(self):
            await asyncio.sleep(float(self.wait))
            yield scrapy.Request(SITE + "/", dont_filter=True)

        async def parse(self, response):
            await asyncio.sleep(0.4)
    """
    settings = {**WITHOUT_ADDON, "SCHEDULER": "project.dying.DyingScheduler"}
    with Site({"/": "a page"}) as site:
        project = Project(tmp_path, spider, site=site.url, settings=settings)
        put_module(project, "dying", DYING)
        project.run("crawl", "spider", "-a", "wait=0", env={"DIE_AT": "update 1"})
        crawl = project.crawl("-a", "wait=0.2")
    assert site.paths == ["/", "/"]
    assert crawl.stats["dupefilter/filtered"] == 1
    assert "apify_rq/enqueued" not in crawl.stats
    assert (project.info().total, project.info().pending) == (1, 0)


# 6. Failure.


def test_invariant_6_a_queue_locked_for_too_long_closes_the_spider(tmp_path: Path) -> None:
    paths = [f"/{n}" for n in range(40)]
    locks: list[sqlite3.Connection] = []

    def lock_up(hit: Hit) -> Page:
        if not locks:
            locks.append(lock(project))
        return Page("a page")

    settings = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5}
    with Site({"/": links(*paths), "/20": lock_up}, default="a page") as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        failed = project.crawl()
        locks[0].close()
        pending = project.info().pending
        hits_before = len(site.paths)
        again = project.crawl()
    assert failed.stats["finish_reason"] == "apify_rq_unavailable"
    assert failed.log.count("The spider is closed (apify_rq_unavailable)") == 1
    assert "Not saved: " in failed.log
    assert "Traceback" not in failed.log
    assert pending > 0
    assert len(site.paths) - hits_before == pending == again.stats["apify_rq/handled"]
    assert set(site.paths) == {"/", *paths}
    assert again.stats["finish_reason"] == "finished"
    assert project.info().pending == 0


def test_invariant_6_a_flush_that_fails_is_reported(tmp_path: Path) -> None:
    locks: list[sqlite3.Connection] = []

    def lock_up(hit: Hit) -> Page:
        locks.append(lock(project))
        return Page(links("/a", "/b"))

    settings = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5, "CLOSESPIDER_PAGECOUNT": 1}
    with Site({"/": lock_up}) as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        failed = project.crawl()
        locks[0].close()
    assert failed.stats["finish_reason"] == "closespider_pagecount"
    assert "Not saved: 1 requests that were finished or retried" in failed.log
    assert "and 2 new requests, which are not in the queue" in failed.log
    assert "never retrieved" not in failed.log
    assert project.entry("/").handled_at is None


TICKER = """
import asyncio, time
from scrapy import signals

class Ticker:
    @classmethod
    def from_crawler(cls, crawler):
        self = cls()
        self.stats = crawler.stats
        crawler.signals.connect(self.start, signals.spider_opened)
        return self

    def start(self):
        self.task = asyncio.create_task(self.tick())

    async def tick(self):
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            last, before = time.monotonic(), last
            self.stats.max_value("longest_stall", last - before)
"""


def test_invariant_6_a_shorter_lock_is_waited_for(tmp_path: Path) -> None:
    paths = [f"/{n}" for n in range(40)]
    held = 1.5

    def lock_up(hit: Hit) -> Page:
        db = lock(project)
        threading.Timer(held, db.close).start()
        return Page("a page")

    extensions = {"project.stats.StatsFile": 0, "project.ticker.Ticker": 0}
    with Site({"/": links(*paths), "/20": lock_up}, default="a page") as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings={"EXTENSIONS": extensions})
        put_module(project, "ticker", TICKER)
        crawl = project.crawl()
    assert crawl.stats["elapsed_time_seconds"] > held
    assert crawl.stats["longest_stall"] < held / 2
    assert crawl.stats["finish_reason"] == "finished"
    assert sorted(site.paths) == sorted(["/", *paths])
    assert crawl.stats["apify_rq/handled"] == 41


@pytest.mark.parametrize(("access", "retried"), [("single", 1), ("shared", 0)])
def test_invariant_6_what_the_queue_refuses_is_not_reported_as_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str, retried: int
) -> None:
    monkeypatch.setattr(ApifyBackend, "lag", 0.1)
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 0.1)

    async def work() -> None:
        async with serving(tmp_path) as api:
            lock_secs = 1 if access == "shared" else None
            backend = ApifyBackend(
                api.url, None, name=QUEUE, lock_secs=lock_secs, inc_stat=lambda stat: None
            )
            await backend.open()
            await backend.add([make_entry("/acked"), make_entry("/retried")], forefront=False)
            api.before = lambda call: error(400) if call.method == "PUT" else None
            driver = Driver(backend)
            driver.frontier.open(has_pending=True, is_new=False)
            acked, again = await driver.next(), await driver.next()
            assert (path_of(acked), path_of(again)) == ("/acked", "/retried")
            driver.ack(acked)
            driver.requeue(again)
            # A retry that nobody else can claim is made from memory.
            visits = [visit async for visit in driver.rest()]
            assert [path_of(visit) for visit in visits] == ["/retried"] * retried
            await driver.frontier.close()
            assert (await backend.info()).pending == 2
            await backend.close()
        assert driver.stats["apify_rq/handled"] == 0
        assert driver.stats["apify_rq/retried"] == retried

    run(work())


# 7. close() flushes.

COUNTING = """
import sqlite3
from scrapy import signals

class QueueAtClose:
    @classmethod
    def from_crawler(cls, crawler):
        self = cls()
        self.stats = crawler.stats
        crawler.signals.connect(self.count, signals.spider_closed)
        return self

    def count(self):
        db = sqlite3.connect("storage/request_queues.sqlite")
        counts = db.execute("SELECT total, handled FROM queues").fetchone()
        db.close()
        self.stats.set_value("queue_at_close", counts)
"""
COUNTING_SETTINGS = {
    "EXTENSIONS": {"project.stats.StatsFile": 0, "project.counting.QueueAtClose": 0}
}


def test_invariant_7_close_flushes_and_leaves_the_rest_pending(tmp_path: Path) -> None:
    """The queue is locked while the spider closes, so that nothing can be saved at once."""
    paths = [f"/{n}" for n in range(300)]

    def lock_up(hit: Hit) -> Page:
        threading.Timer(0.7, lock(project).close).start()
        return Page(links(*paths))

    settings = {"CLOSESPIDER_PAGECOUNT": 1, **COUNTING_SETTINGS}
    with Site({"/": lock_up}, default="a page") as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        put_module(project, "counting", COUNTING)
        crawl = project.crawl()
    assert crawl.stats["finish_reason"] == "closespider_pagecount"
    assert crawl.stats["queue_at_close"] == [301, len(set(site.paths))]
    assert project.entry("/").handled_at is not None
    pending = {entry.url for entry in project.entries() if entry.handled_at is None}
    assert pending == {f"{site.url}{path}" for path in {"/", *paths} - set(site.paths)}


ENDLESS = """
class Spider(scrapy.Spider):
    name = "spider"

    async def start(self):
        n = 0
        while True:
            yield scrapy.Request(f"{SITE}/{n}")
            n += 1

    def parse(self, response):
        pass
"""


def test_invariant_7_close_does_not_wait_for_a_start_without_end(tmp_path: Path) -> None:
    settings = {"CLOSESPIDER_PAGECOUNT": 5, "APIFY_RQ_OUTBOX": 50, **COUNTING_SETTINGS}
    with Site({}, default="a page") as site:
        project = Project(tmp_path, ENDLESS, site=site.url, settings=settings)
        put_module(project, "counting", COUNTING)
        crawl = project.crawl(timeout=20)
    assert crawl.stats["finish_reason"] == "closespider_pagecount"
    info = project.info()
    assert crawl.stats["queue_at_close"] == [info.total, info.handled]
    assert info.handled == len(site.paths)


def test_invariant_6_a_start_without_end_does_not_keep_a_failed_crawl_open(tmp_path: Path) -> None:
    locks: list[sqlite3.Connection] = []

    def lock_up(hit: Hit) -> Page:
        locks.append(lock(project))
        return Page("a page")

    settings = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5, "APIFY_RQ_OUTBOX": 50, "LOG_LEVEL": "INFO"}
    with Site({"/5": lock_up}, default="a page") as site:
        project = Project(tmp_path, ENDLESS, site=site.url, settings=settings)
        crawl = project.crawl(timeout=20)
        locks[0].close()
    assert crawl.stats["finish_reason"] == "apify_rq_unavailable"


# 8. What cannot be decoded.


def test_invariant_8_an_undecodable_entry_is_acked_with_an_error(tmp_path: Path) -> None:
    texts = [
        "nonsense",
        "[1]",
        '{"id": "x", "uniqueKey": "x", "url": "http://localhost/", "userData": "text"}',
        '{"id": "x", "uniqueKey": "x", "url": "http://localhost/", "userData": {"a": "\\ud800"}}',
        '{"id": "x", "uniqueKey": "x", "url": "no url"}',
        '{"id": "x", "uniqueKey": "x", "url": "http://localhost/",'
        ' "userData": {"scrapy": {"v": 1, "callback": "missing"}}}',
        '{"id": "x", "uniqueKey": "x", "url": "http://localhost/",'
        ' "userData": {"scrapy": {"v": 9}}}',
        '{"id": "x", "uniqueKey": "x", "url": "http://localhost/", "errorMessages": [1],'
        ' "retryCount": "many"}',
    ]
    with Site({"/": links("/a"), "/a": "a"}) as site:
        project = Project(tmp_path, SPIDER, site=site.url)
        put_undecodable(project, *texts)
        crawl = project.crawl()
    assert sorted(site.paths) == ["/", "/a"]
    assert crawl.stats["apify_rq/undecodable"] == len(texts)
    assert project.info().pending == 0
    entries = {entry.id: entry for entry in project.entries()}
    for n in range(len(texts)):
        id = request_id(f"/undecodable{n}")
        assert crawl.log.count(f"Entry {id} ") == 1
        assert entries[id].handled_at is not None
        assert "cannot be decoded" in entries[id].error_messages[-1]


def test_invariant_8_an_error_that_json_cannot_hold_does_not_stop_the_crawl(tmp_path: Path) -> None:
    spider = """
    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/"]

        def parse(self, response):
            raise ValueError("half a pair: \\udc80")
    """
    with Site({"/": "a page"}) as site:
        project = Project(tmp_path, spider, site=site.url)
        crawl = project.crawl()
    assert crawl.stats["finish_reason"] == "finished"
    assert project.entry("/").error_messages == ["ValueError: half a pair: ?"]


# 9. Memory is bounded.

WATCHED = """
from scrapy_apify_rq import Scheduler

class WatchedScheduler(Scheduler):
    def next_request(self):
        self._stats.max_value("window_max", len(self))
        return super().next_request()
"""

# Scrapy itself holds up to CONCURRENT_ITEMS (100) outputs of a callback in its hands and twice as
# many in a queue before them, all of which have passed ``room()``.
IN_SCRAPYS_HANDS = 300


def test_invariant_9_the_window_and_the_outbox_have_limits(tmp_path: Path) -> None:
    spider = """
    class Spider(scrapy.Spider):
        name = "spider"

        async def start(self):
            yield scrapy.Request(SITE + "/", priority=1)
            for n in range(5000):
                yield scrapy.Request(f"{SITE}/start{n}", callback=self.parse_page)

        def parse(self, response):
            for n in range(5000):
                yield response.follow(f"/link{n}", callback=self.parse_page)

        def parse_page(self, response):
            pass
    """
    settings = {
        **WITHOUT_ADDON,
        "SCHEDULER": "project.watched.WatchedScheduler",
        "APIFY_RQ_WINDOW": 50,
        "APIFY_RQ_OUTBOX": 60,
        "CLOSESPIDER_PAGECOUNT": 200,
        "LOG_LEVEL": "INFO",
    }
    with Site({"/": "a page"}, default="a page") as site:
        project = Project(tmp_path, spider, site=site.url, settings=settings)
        put_module(project, "watched", WATCHED)
        crawl = project.crawl()
        stats = crawl.stats
    assert 40 <= stats["window_max"] <= 50
    # One callback at a time yields requests; each other page in flight may have its ack there.
    assert 60 <= stats["apify_rq/outbox_max"] <= 60 + IN_SCRAPYS_HANDS + 16 + 1
    assert len(project.entries()) == project.info().total
    assert project.info().handled == len(site.paths)


def test_invariant_9_nothing_is_handed_out_while_acks_pile_up(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, *(f"/{n}" for n in range(300)), outbox=100) as driver:
            gate = backend.hold("before update")
            driver.ack(await driver.next())
            await reached(gate)
            acked = 1
            while (visit := driver.hand_out()) is not None:
                driver.ack(visit)
                acked += 1
            assert acked == 26  # a quarter of the limit is exceeded
            assert driver.frontier.has_pending()
            gate.opened.set()
            while (visit := await driver.next()) is not None:
                driver.ack(visit)
        assert driver.stats["apify_rq/handled"] == 300

    run(work())


def test_invariant_9_nothing_is_handed_out_while_callbacks_wait_for_room(tmp_path: Path) -> None:
    async def work() -> None:
        backend = SlowBackend(tmp_path)
        async with driving(backend, *(f"/{n}" for n in range(50)), outbox=10) as driver:
            await driver.next()
            gate = backend.hold("before add")
            for n in range(10):
                driver.add(f"/new{n}")
            await reached(gate)
            held_back = [asyncio.create_task(driver.frontier.room()) for _ in range(16)]
            await asyncio.sleep(0)
            assert driver.frontier.ready
            assert driver.frontier.next() is None
            gate.opened.set()
            await asyncio.wait_for(asyncio.gather(*held_back), PATIENCE)
            assert driver.frontier.next() is not None

    run(work())


def test_invariant_9_a_duplicate_needs_no_room(tmp_path: Path) -> None:
    """The spider keeps the queue from taking anything until it has yielded a duplicate."""
    spider = f"""
    import asyncio, sqlite3

    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/second", SITE + "/"]
        db = None

        async def parse(self, response):
            if response.url.endswith("/second"):
                frontier = self.crawler.engine._slot.scheduler.frontier
                while self.db is None or not frontier.is_full():
                    await asyncio.sleep(0.01)
                for _ in range(20):
                    yield response.follow("/0", callback=self.parse_page)
                assert frontier.is_full()
                self.db.rollback()
            else:
                self.db = sqlite3.connect("storage/{FILE_NAME}", isolation_level=None)
                self.db.execute("BEGIN EXCLUSIVE")
                for n in range(30):
                    yield response.follow(f"/{{n}}", callback=self.parse_page)

        def parse_page(self, response):
            pass
    """
    settings = {"APIFY_RQ_OUTBOX": 10, "APIFY_RQ_UNAVAILABLE_TIMEOUT": 5}
    with Site({}, default="a page") as site:
        crawl = Project(tmp_path, spider, site=site.url, settings=settings).crawl()
    assert crawl.stats["finish_reason"] == "finished"
    assert len(site.paths) == 32


def test_invariant_9_nothing_is_kept_of_what_is_confirmed(tmp_path: Path) -> None:
    async def work() -> None:
        paths = [f"/confirmed{n}" for n in range(30)]
        async with driving(SlowBackend(tmp_path), *paths[:20]) as driver:
            for path in paths[20:]:
                driver.add(path)
            for _ in paths:
                driver.ack(await driver.next())
            await until(lambda: not driver.unsaved)
            gc.collect()
            visits = [each for each in gc.get_objects() if isinstance(each, Visit)]
            assert not {path_of(visit) for visit in visits if visit.entry}.intersection(paths)

    run(work())


def test_invariant_9_a_slow_ack_holds_up_no_other(tmp_path: Path) -> None:
    async def work() -> None:
        async with serving(tmp_path) as api:
            backend = ApifyBackend(api.url, None, name=QUEUE, inc_stat=lambda stat: None)
            await backend.open()
            await backend.add([make_entry(f"/{n}") for n in range(20)], forefront=False)
            driver = Driver(backend)
            driver.frontier.open(has_pending=True, is_new=False)
            failures = iter([error(503)])
            api.before = lambda call: next(failures, None) if call.method == "PUT" else None
            for visit in [await driver.next() for _ in range(20)]:
                driver.ack(visit)
            # One waits half a second before it is tried again.
            await until(lambda: driver.unsaved == 1)
            await driver.frontier.close()
            await backend.close()
        assert driver.stats["apify_rq/handled"] == 20

    run(work())


def test_invariant_9_acks_faster_than_the_queue_takes(tmp_path: Path) -> None:
    notices: list[Notice] = []

    async def work() -> None:
        async with serving(tmp_path) as api:
            backend = ApifyBackend(api.url, None, name=QUEUE, inc_stat=lambda stat: None)
            await backend.open()
            for first in range(0, 600, 25):
                batch = [make_entry(f"/{n}") for n in range(first, first + 25)]
                await backend.add(batch, forefront=False)
            driver = Driver(backend, outbox=400)
            driver.frontier.open(has_pending=True, is_new=False)
            for _ in range(600):
                driver.ack(await driver.next())
            await driver.frontier.close()
            await backend.close()
            times = [call.at for call in api.calls if call.method == "PUT"]
        assert driver.stats["apify_rq/handled"] == len(times) == 600
        notices.extend(driver.notices)
        assert 100 < driver.stats["apify_rq/outbox_max"] < 110
        most = max(sum(at <= t < at + 1 for t in times) for at in times)
        assert most <= 400 * 1.2  # on their way calls may close up

    run(work())
    assert notices == [RateReached("400 updates a second")]


PEAK = """
import resource
from scrapy import signals

class Peak:
    @classmethod
    def from_crawler(cls, crawler):
        self = cls()
        self.stats = crawler.stats
        crawler.signals.connect(self.note, signals.spider_closed)
        return self

    def note(self):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.stats.set_value("peak", peak)
"""


def test_invariant_9_memory_with_many_pending_pages(tmp_path: Path) -> None:
    spider = """
    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/"]

        def parse(self, response):
            for n in range(int(self.count)):
                yield scrapy.Request(f"{SITE}/{n}", callback=self.parse_page)

        def parse_page(self, response):
            pass
    """
    settings = {
        "EXTENSIONS": {"project.stats.StatsFile": 0, "project.peak.Peak": 0},
        "CLOSESPIDER_PAGECOUNT": 1,
        "LOG_LEVEL": "INFO",
        "SPIDER_MIDDLEWARES_BASE": {},  # they would take a third of the time
    }
    peaks = {}
    for count in (1_000, 200_000):
        with Site({}, default="a page") as site:
            project = Project(tmp_path / str(count), spider, site=site.url, settings=settings)
            put_module(project, "peak", PEAK)
            crawl = project.crawl("-a", f"count={count}", timeout=300)
            assert project.info().pending >= count - len(site.paths)
        peaks[count] = crawl.stats["peak"] * RSS_UNIT
    assert peaks[200_000] - peaks[1_000] < 100_000_000, peaks


# 10. The live request.

COMPARING = """
import json
from pathlib import Path
from scrapy import signals

FILE = Path("scheduled.json")

class Compare:
    @classmethod
    def from_crawler(cls, crawler):
        self = cls()
        self.crawler = crawler
        self.live = {}
        self.stored = json.loads(FILE.read_text()) if FILE.exists() else {}
        crawler.signals.connect(self.scheduled, signals.request_scheduled)
        return self

    def text(self, request):
        return repr(sorted(request.to_dict(spider=self.crawler.spider).items()))

    def scheduled(self, request):
        self.live[request.url] = request
        self.stored.setdefault(request.url, self.text(request))
        FILE.write_text(json.dumps(self.stored))

    def process_request(self, request):
        inc = self.crawler.stats.inc_value
        if request.url in self.live:
            inc("identical" if self.live[request.url] is request else "not identical")
        else:
            inc("equal" if self.stored[request.url] == self.text(request) else "not equal")
"""


def test_invariant_10_the_very_request_or_one_equal_to_it(tmp_path: Path) -> None:
    spider = """
    import datetime, decimal

    class Spider(scrapy.Spider):
        name = "spider"
        custom_settings = {"CONCURRENT_REQUESTS": 1}

        async def start(self):
            if hasattr(self, "first"):
                yield scrapy.Request(SITE + "/")

        def parse(self, response):
            own = dict(callback=self.parse_page, errback=self.fail, dont_filter=True)
            at = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
            meta = {"tuple": (1, {2, 3}), b"bytes": b"\\xff", 3: None, "at": at}
            yield response.follow("/1", **own, meta=meta)
            yield response.follow("/2", **own, cb_kwargs={"price": decimal.Decimal("1.50")})
            yield response.follow("/3", **own, headers={"X": ["a", "b"], "Y": "\\xe9"})
            yield response.follow("/4", **own, method="POST", body=b"\\xff\\x00")
            yield response.follow("/5", **own, cookies={"a": "b"}, priority=-3, flags=["f"])
            yield scrapy.FormRequest(SITE + "/6", **own, formdata={"a": "b"})
            yield scrapy.http.JsonRequest(SITE + "/7", **own, data={"a": [1]})

        def parse_page(self, response, price=None):
            pass

        def fail(self, failure):
            pass
    """
    settings = {"DOWNLOADER_MIDDLEWARES": {"project.comparing.Compare": 0}}
    folders = {"live": tmp_path / "live", "resumed": tmp_path / "resumed"}
    stats = {}
    for name, folder in folders.items():
        with Site({}, default="a page") as site:
            project = Project(folder, spider, site=site.url, settings=settings)
            put_module(project, "comparing", COMPARING)
            limit = () if name == "live" else ("-s", "CLOSESPIDER_PAGECOUNT=1")
            stats[name] = project.crawl("-a", "first=1", *limit).stats
            if name == "resumed":
                stats[name] = project.crawl().stats
    assert stats["live"]["identical"] == 8
    assert stats["resumed"]["equal"] >= 6  # the first run may have sent one before it closed
    assert {"not identical", "not equal"}.isdisjoint(stats["live"].keys() | stats["resumed"].keys())


# 11. Nothing of ours in request.meta.

NOTING = """
import json
from pathlib import Path
from scrapy import signals

class Note:
    @classmethod
    def from_crawler(cls, crawler):
        self = cls()
        self.notes = []
        crawler.signals.connect(self.scheduled, signals.request_scheduled)
        crawler.signals.connect(self.write, signals.engine_stopped)
        return self

    def note(self, where, request):
        path = request.url.split("/", 3)[3]
        self.notes.append([where, path, sorted(request.meta, key=str)])

    def write(self):
        Path("notes.json").write_text(json.dumps(self.notes))

    def scheduled(self, request):
        self.note("scheduled", request)

    def process_request(self, request):
        self.note("request", request)

    def process_response(self, request, response):
        self.note("response", request)
        return response

    def process_spider_input(self, response):
        self.note("callback", response.request)
"""

DERIVING = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]
    custom_settings = {"CONCURRENT_REQUESTS": 1}

    def parse(self, response):
        for path in ("/a", "/again", "/moved", "/500"):
            yield response.follow(path, callback=self.parse_page, meta={"own": 1})

    def parse_page(self, response):
        if "copy" not in response.url:
            url = response.url + "-copy"
            yield response.request.replace(url=url)
            yield response.request.replace(url=url + "-meta", meta=response.meta)
"""


def keys_of_meta(folder: Path, settings: dict[str, Any]) -> set[tuple[str, ...]]:
    """The keys of meta wherever one can look, in a run of one page and the run that resumes it."""
    pages = {
        "/again": [503, "a page"],
        "/moved": Page(status=302, headers={"Location": "/target"}),
        "/500": 500,
    }
    middleware = {"project.noting.Note": 0}
    settings = {"DOWNLOADER_MIDDLEWARES": middleware, **settings}
    seen = set()
    with Site(pages, default="a page") as site:
        project = Project(folder, DERIVING, site=site.url, settings=settings)
        put_module(project, "noting", NOTING)
        for limit in (1, 0):
            # Not crawl(): the disk queues of stock Scrapy 2.14 cause ResourceWarnings.
            crawl = project.run("crawl", "spider", "-s", f"CLOSESPIDER_PAGECOUNT={limit}")
            assert crawl.returncode == 0, crawl.log
            for where, path, keys in json.loads((folder / "notes.json").read_text()):
                seen.add((where, path, *keys))
    return seen


def test_invariant_11_nothing_of_ours_in_meta(tmp_path: Path) -> None:
    stock = keys_of_meta(tmp_path / "stock", {"ADDONS": {}, "JOBDIR": "job"})
    ours = keys_of_meta(tmp_path / "ours", {})
    assert len(stock) > 30
    assert ours == stock
