"""Scrapy's part for tests of the frontier, and an embedded queue that behaves like a remote one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
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
from scrapy_apify_rq.frontier.visit import Visit

# Seconds that a test waits for something that comes at once unless the code is broken.
PATIENCE = 5.0


class Remote(SqliteBackend):
    """The embedded queue with the API's delays, which records its calls.

    Claims do not show entries written less than ``head_lag`` seconds ago. Clients of one queue
    share ``written``, the times of these writes by id.
    """

    lag = 30.0
    consistency_delay = 3.0
    alone = True
    head_lag = 0.0
    entry_size = 1
    """How many bytes a claim takes each entry for."""

    def __init__(
        self, folder: Path, *, written: dict[str, float] | None = None, **options: Any
    ) -> None:
        super().__init__(folder, name="queue", **options)
        self.written = {} if written is None else written
        self.calls: list[tuple[str, list[str], bool]] = []
        self.on_add: Callable[[Sequence[Entry]], Any] = lambda entries: None
        """Called before each add, and awaited if it returns a coroutine; may raise."""
        self.on_update: Callable[[Sequence[Entry]], Any] = lambda entries: None
        self.on_claim: Callable[[], Any] = lambda: None

    def named(self, name: str) -> list[list[str]]:
        return [paths for each, paths, _ in self.calls if each == name]

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        await self._record("add", entries, forefront, self.on_add(entries))
        return await super().add(entries, forefront=forefront)

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        await self._record("update", entries, forefront, self.on_update(entries))
        return await super().update(entries, forefront=forefront)

    async def claim(self, limit: int, known: Collection[str], size: int) -> Claim:
        await self._record("claim", (), False, self.on_claim())
        since = time.monotonic() - self.head_lag
        hidden = [id for id, at in self.written.items() if at > since]
        limit = min(limit, max(size // self.entry_size, 1))
        claim = await super().claim(limit, {*known, *hidden}, size)
        return claim._replace(alone=self.alone and claim.alone)

    async def _record(
        self, name: str, entries: Sequence[Entry], forefront: bool, first: Coroutine[Any, Any, None]
    ) -> None:
        self.calls.append((name, [entry.unique_key for entry in entries], forefront))
        self.written.update({entry.id: time.monotonic() for entry in entries})
        if first is not None:
            await first


class Stats(Counter[str]):
    def inc_value(self, key: str) -> None:
        self[key] += 1

    def max_value(self, key: str, value: int) -> None:
        self[key] = max(self[key], value)


class Driver:
    """Takes visits when woken, as Scrapy's engine does, and finishes them."""

    def __init__(self, backend: Backend, **options: Any) -> None:
        self.backend = backend
        self.patience = PATIENCE
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

    async def open(self, *pending: str, is_new: bool = True) -> Driver:
        """Open the queue, with these entries in it."""
        await self.backend.open()
        if pending:
            await self.backend.add([make_entry(path) for path in pending], forefront=False)
        self.frontier.open(has_pending=bool(pending), is_new=is_new and not pending)
        return self

    async def close(self) -> None:
        await asyncio.wait_for(self.frontier.close(), PATIENCE)
        await self.backend.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def add(self, path: str, *, size: int = 0, **options: Any) -> None:
        entry = make_entry(path)
        self.frontier.add(Visit(entry, size=size or 100, **options))

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
        assert visit.entry is not None
        visit.entry.handled_at = datetime.now(UTC)
        del self.in_flight[visit.entry.id]
        self.frontier.update(visit)

    def requeue(self, visit: Visit | None, **options: Any) -> None:
        assert visit is not None
        assert visit.entry is not None
        entry = visit.entry.model_copy(update={"retry_count": visit.entry.retry_count + 1})
        del self.in_flight[entry.id]
        again = Visit(entry, is_retry=True, lease=visit.lease, size=visit.size, **options)
        self.frontier.update(again)


def make_entry(path: str, **fields: Any) -> Entry:
    return Entry(id=request_id(path), unique_key=path, url=f"http://localhost{path}", **fields)


def path_of(visit: Visit | None) -> str:
    assert visit is not None
    assert visit.entry is not None
    return visit.entry.unique_key


async def until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.001)
