"""Scrapy's part for tests of the frontier, and an embedded queue that behaves like a remote one."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scrapy_apify_rq.backends.base import Added, Backend, Claim, Updated
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.notices import Notice
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from tests.support.waiting import wait_until

# Seconds that a test waits for something that comes soon unless the code is broken.
PATIENCE = 60.0


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Call:
    name: str
    paths: list[str]
    asked: float
    ended: float = math.inf


class Gate:
    """``reached`` when a call has come to it; the call goes on once it is ``opened``."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.opened.wait()


class Remote(SqliteBackend):
    """The embedded queue with the API's delays, which records its calls. For virtual time.

    Claims do not show entries written less than ``head_lag`` seconds ago. Clients of one queue
    share ``written``, the times of these writes by id.
    """

    lag = 30.0
    consistency_delay = 3.0
    alone = True
    rate_reached: str | None = None
    head_lag = 0.0
    entry_size = 1
    """How many bytes a claim takes each entry for."""

    def __init__(
        self, folder: Path, *, written: dict[str, float] | None = None, **options: Any
    ) -> None:
        super().__init__(folder, name="queue", **{"now": now, **options})
        self.folder = folder
        self.written = {} if written is None else written
        self.calls: list[Call] = []
        self.at: dict[str, Callable[[], Awaitable[object]]] = {}
        """What to await at moments such as "before add" and "after claim"; it may raise."""

    def named(self, name: str) -> list[list[str]]:
        return [call.paths for call in self.calls if call.name == name]

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        async with self._call("add", entries):
            return await super().add(entries, forefront=forefront)

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        async with self._call("update", entries):
            return await super().update(entries, forefront=forefront)

    async def claim(
        self, limit: int, known: Collection[str], size: int, share: int | None = None
    ) -> Claim:
        async with self._call("claim"):
            since = now() - self.head_lag
            hidden = [id for id, at in self.written.items() if at > since]
            limit = min(limit, max(size // self.entry_size, 1))
            claim = await super().claim(limit, {*known, *hidden}, size, share)
            return claim._replace(alone=self.alone and claim.alone)

    @asynccontextmanager
    async def _call(self, name: str, entries: Sequence[Entry] = ()) -> AsyncIterator[None]:
        call = Call(name, [entry.unique_key for entry in entries], now())
        self.calls.append(call)
        if before := self.at.get(f"before {name}"):
            await before()
        self.written.update({entry.id: now() for entry in entries})
        yield
        if after := self.at.get(f"after {name}"):
            await after()
        call.ended = now()

    async def others_add(self, path: str) -> None:
        """As another client of the queue."""
        other = Remote(self.folder, written=self.written)
        await other.open()
        await other.add([make_entry(path)], forefront=False)
        await other.close()


class Stats(Counter[str]):
    def inc_value(self, key: str) -> None:
        self[key] += 1

    def max_value(self, key: str, value: int) -> None:
        self[key] = max(self[key], value)


class Driver:
    """Takes visits when woken, as Scrapy's engine does, and finishes them.

    It has no heartbeat, so that a lost wake-up makes it hang. ``async with`` opens the queue, with
    the ``pending`` entries in it.
    """

    def __init__(
        self, backend: Backend, *pending: str, is_new: bool = True, **options: Any
    ) -> None:
        self.backend: Any = backend
        self.patience = PATIENCE
        self.pending = pending
        self.is_new = is_new and not pending
        self.stats = Stats()
        self.in_flight: dict[str, Visit] = {}
        self.woken = asyncio.Event()
        self.drops: list[str] = []
        self.notices: list[Notice] = []
        self.failures: list[BackendError] = []
        values = {"window": 1000, "outbox": 1000, **options}
        self.frontier = Frontier(backend, self, stats=self.stats, **values)  # type: ignore[arg-type]

    def wake(self) -> None:
        self.woken.set()

    def dropped(self, visit: Visit) -> None:
        self.drops.append(path_of(visit))

    def refused(self, visit: Visit, reason: str) -> None:
        pass

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)

    def failed(self, error: BackendError) -> None:
        self.failures.append(error)
        self.woken.set()

    async def __aenter__(self) -> Driver:
        self._tasks_before = asyncio.all_tasks()
        await self.backend.open()
        for start in range(0, len(self.pending), self.backend.batch):
            batch = self.pending[start : start + self.backend.batch]
            await self.backend.add([make_entry(path) for path in batch], forefront=False)
        self.frontier.open(has_pending=not self.is_new, is_new=self.is_new)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
        await self.backend.close()
        assert asyncio.all_tasks() <= self._tasks_before

    async def close(self) -> None:
        await asyncio.wait_for(self.frontier.close(), PATIENCE)

    # What Scrapy does.

    def add(self, path: str, *, size: int = 100, **options: Any) -> None:
        self.frontier.add(Visit(make_entry(path), size=size, **options))

    def hand_out(self) -> Visit | None:
        visit = self.frontier.next()
        if visit is not None and visit.entry is not None:
            self.in_flight[visit.entry.id] = visit
        return visit

    async def next(self) -> Visit | None:
        """The next visit, or None when the crawl is over."""
        while True:
            self.woken.clear()
            if (visit := self.hand_out()) is not None:
                return visit
            if not self.frontier.has_pending():
                return None
            async with asyncio.timeout(self.patience):
                await self.woken.wait()

    async def crawl(self) -> list[str]:
        """Crawl all that is left; the paths, in order."""
        paths = []
        while (visit := await self.next()) is not None:
            paths.append(path_of(visit))
            self.ack(visit)
        return paths

    def ack(self, visit: Visit | None) -> None:
        assert visit is not None
        entry = entry_of(visit)
        entry.handled_at = datetime.now(UTC)
        del self.in_flight[entry.id]
        self.frontier.update(visit)

    def requeue(self, visit: Visit | None, **options: Any) -> None:
        assert visit is not None
        old = entry_of(visit)
        entry = old.model_copy(update={"retry_count": old.retry_count + 1})
        del self.in_flight[entry.id]
        again = Visit(entry, is_retry=True, lease=visit.lease, size=visit.size, **options)
        self.frontier.update(again)

    async def saved(self) -> None:
        """Wait until nothing is unsaved."""
        frontier = self.frontier
        await wait_until(lambda: not (frontier.unsaved_adds or frontier.unsaved_updates))


def make_entry(path: str, **fields: Any) -> Entry:
    return Entry(id=request_id(path), unique_key=path, url=f"http://localhost{path}", **fields)


def path_of(visit: Visit | None) -> str:
    assert visit is not None
    return entry_of(visit).unique_key


async def many_turns() -> None:
    """Let everything happen that can happen without time going by."""
    for _ in range(100):
        await asyncio.sleep(0)
