"""Backends of every kind with shorthands for tests, in this process and in others."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.backends.base import Added, Backend, Claim, Updated
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.queues import NAME, TOKEN, Queue
from tests.support.scrapy_project import Fork
from tests.support.waiting import wait_until

Ask = Callable[[str], Awaitable[Any]]
_PROGRAM = Path(__file__).with_name("backend_process.py")
PLENTY = 16 * 1024 * 1024
HANDLED_AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
# For type checkers only: the protocol's properties would hide attributes of the backends.
Base = Backend if TYPE_CHECKING else object


def entry(key: str, **values: Any) -> Entry:
    values.setdefault("url", f"https://example.com/{key}")
    return Entry(id=request_id(key), unique_key=key, **values)


def handled(key: str, **values: Any) -> Entry:
    return entry(key, handled_at=HANDLED_AT, **values)


def numbered(count: int, first: int = 0, **values: Any) -> list[Entry]:
    return [entry(f"{number:05}", **values) for number in range(first, first + count)]


def ids(*keys: str) -> list[str]:
    return [request_id(key) for key in keys]


def keys_of(entries: Iterable[Entry]) -> list[str]:
    return [entry.unique_key for entry in entries]


class Handy(Base):
    """Shorthands that use nothing but the protocol. A string is the key of a new entry."""

    async def fill(self, *entries: Entry | str, forefront: bool = False) -> list[Added]:
        """Add entries in batches."""
        made = [entry(one) if isinstance(one, str) else one for one in entries]
        batches = [made[n : n + self.batch] for n in range(0, len(made), self.batch)]
        return [a for batch in batches for a in await self.add(batch, forefront=forefront)]

    async def put(self, *entries: Entry | str, forefront: bool = False) -> list[Updated]:
        made = [entry(one) if isinstance(one, str) else one for one in entries]
        return await self.update(made, forefront=forefront)

    async def ack(self, *keys: str) -> list[Updated]:
        return await self.put(*map(handled, keys))

    async def settle(self) -> None:
        """Wait until our own writes can be seen. Our server lags only when told to."""
        if "http://127.0.0.1:" not in self.location:
            await asyncio.sleep(self.lag)

    async def take(
        self,
        limit: int = 100,
        known: Collection[Entry | str] = (),
        size: int = PLENTY,
        share: int | None = None,
    ) -> Claim:
        """Claim; ``known`` holds entries or keys."""
        await self.settle()
        ids = [request_id(one) if isinstance(one, str) else one.id for one in known]
        return await self.claim(limit, ids, size, share)

    async def entries(self, *args: Any, **options: Any) -> list[Entry]:
        """Those of a claim."""
        return [one.entry for one in (await self.take(*args, **options)).entries]

    async def keys(self, *args: Any, **options: Any) -> list[str]:
        return keys_of(await self.entries(*args, **options))

    async def look(self) -> tuple[str, int, int, int]:
        """The keys that can be claimed, and the counts: total, handled, pending."""
        keys, info = await self.keys(), await self.info()
        return "".join(keys), info.total, info.handled, info.pending

    async def listed(self, state: Any = None) -> set[str]:
        await self.settle()
        found = keys_of([entry async for entry in self.list(state)])
        assert len(found) == len(set(found))
        return set(found)


class Sqlite(SqliteBackend, Handy): ...


class Apify(ApifyBackend, Handy):
    """It counts its ``stats``."""

    def __init__(self, url: str, token: str | None, **options: Any) -> None:
        self.stats: Counter[str] = Counter()
        super().__init__(url, token, inc_stat=self._count, **options)

    def _count(self, stat: str) -> None:
        self.stats[stat.removeprefix("apify_rq/api/")] += 1


@asynccontextmanager
async def opened(backend: Any) -> AsyncIterator[Any]:
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()


@dataclass(frozen=True)
class Queues:
    """Where the queues of one test live. Another process can make one like it.

    "server" is the API's backend over HTTP on our own server, "live" the same on Apify's.
    """

    kind: str
    folder: Path
    url: str = ""
    token: str | None = TOKEN
    prefix: str = ""
    """Of the names of live queues."""

    def backend(self, name: str = NAME, **options: Any) -> Any:
        if self.kind == "sqlite":
            return Sqlite(self.folder, name=name, **options)
        return Apify(self.url, self.token, name=self.prefix + name, **options)

    def open(self, name: str = NAME, **options: Any) -> Any:
        return opened(self.backend(name, **options))

    async def store(self, *entries: Entry) -> None:
        """Put them into the queue past the API: not for live ones."""
        await Queue(self.folder).add(*entries)

    @asynccontextmanager
    async def process(self, lock_secs: int = 0) -> AsyncIterator[Ask]:
        """A process that has opened the queue, until it is killed at the end.

        It is asked for what ``backend_process`` can do.
        """
        words = (_PROGRAM, self.kind, self.folder, self.url, self.prefix, lock_secs)
        environ = {**os.environ, "APIFY_TOKEN": self.token or ""}
        ours, theirs = socket.socketpair()
        with theirs:
            streams = (theirs.fileno(), theirs.fileno(), 2)
            status = self.folder / "status"
            process = Fork([*map(str, words)], self.folder, environ, streams, status)
        reader, writer = await asyncio.open_connection(sock=ours)

        async def ask(work: str) -> Any:
            writer.write(f"{work}\n".encode())
            async with asyncio.timeout(60):
                return json.loads(await reader.readline())

        try:
            await ask("open")
            yield ask
        finally:
            process.kill()
            await wait_until(lambda: process.poll() is not None, "the end of a killed process")
            writer.close()
