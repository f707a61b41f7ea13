"""Where the crawl of a test keeps its requests, and what is stored there."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web, web_app

from scrapy_apify_rq.backends.base import Info
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.server.application import application
from scrapy_apify_rq.server.page import Page
from tests.support.api_calls import Api, Call
from tests.support.api_description import checking
from tests.support.faults import Faults, Misbehaviour
from tests.support.loop_thread import LoopThread

NAME = "test-queue"
TOKEN = "apify_api_secretOfTheTests"


class Queue:
    """The embedded queue in ``folder``. ``settings`` are those of a crawl that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "APIFY_RQ_BACKEND": "sqlite",
            "APIFY_RQ_NAME": NAME,
            "APIFY_RQ_STORAGE_DIR": str(self.folder),
        }

    def copy(self) -> Queue:
        """The queue as ``kill -9`` would leave it at this moment, for another crawl to resume.

        That is exactly what is committed: SQLite rolls back the rest when the file is next opened.
        """
        folder = self.folder.with_name(f"{self.folder.name}-copy")
        folder.mkdir()
        with (
            closing(sqlite3.connect(self.folder / FILE_NAME)) as source,
            closing(sqlite3.connect(folder / FILE_NAME)) as target,
        ):
            source.backup(target)
        return Queue(folder)

    @contextmanager
    def locked_file(self) -> Iterator[None]:
        """Another program writes: nobody else can meanwhile."""
        with closing(sqlite3.connect(self.folder / FILE_NAME, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            yield

    async def entries(self) -> list[Entry]:
        """All entries, in no particular order."""
        backend = SqliteBackend(self.folder, name=NAME)
        await backend.open()
        try:
            return [entry async for entry in backend.list()]
        finally:
            await backend.close()

    async def entry(self, path: str) -> Entry:
        """The one entry whose URL ends with ``path``."""
        all_of_them = await self.entries()
        found = [entry for entry in all_of_them if entry.url.endswith(path)]
        assert len(found) == 1, [(entry.url, entry.unique_key) for entry in all_of_them]
        return found[0]

    async def info(self) -> Info:
        backend = SqliteBackend(self.folder, name=NAME)
        await backend.open()
        try:
            return await backend.info()
        finally:
            await backend.close()

    # Numbers that are there at once, for waiting.

    @property
    def total(self) -> int:
        return self._number("SELECT total FROM queues WHERE name IS NOT NULL")

    @property
    def retries(self) -> int:
        return self._number("SELECT sum(json_extract(json, '$.retryCount')) FROM requests")

    @property
    def handled(self) -> int:
        return self._number("SELECT handled FROM queues WHERE name IS NOT NULL")

    @property
    def writes(self) -> int:
        """As the platform counts and bills them."""
        return self._number("SELECT writes FROM queues WHERE name IS NOT NULL")

    @property
    def locked(self) -> int:
        """How many entries some worker holds."""
        which = f"position IS NOT NULL AND lock_expires_at > {time.time()}"
        return self._number(f"SELECT count(*) FROM requests WHERE {which}")

    def _number(self, question: str) -> int:
        """The answer for the only named queue of the file; Actor runs may add others."""
        with closing(sqlite3.connect(self.folder / FILE_NAME)) as db:
            ((number,),) = db.execute(question)
        return int(number)

    async def add(self, *entries: Entry) -> None:
        """Put entries into the queue, as another program would."""
        backend = SqliteBackend(self.folder, name=NAME)
        await backend.open()
        try:
            for start in range(0, len(entries), backend.batch):
                await backend.add(entries[start : start + backend.batch], forefront=False)
        finally:
            await backend.close()

    async def update(self, *entries: Entry) -> None:
        """Write entries that are there, as another program would."""
        backend = SqliteBackend(self.folder, name=NAME)
        await backend.open()
        try:
            await backend.update(entries, forefront=False)
        finally:
            await backend.close()


class ServedQueue(Queue):
    """The queue that our own server keeps in ``folder``, and the crawl uses over the API.

    The server has a thread of its own, so that all tasks of the test's event loop are the
    crawl's. ``api`` records its calls and lets a test answer them.
    """

    def __init__(self, folder: Path, api: Api, misbehaviour: Misbehaviour) -> None:
        super().__init__(folder)
        self.api = api
        self.misbehaviour = misbehaviour

    def faults(self, faults: Faults) -> None:
        """Misbehave from now on in these ways only."""
        self.misbehaviour.set(faults)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "APIFY_RQ_BACKEND": "apify",
            "APIFY_RQ_NAME": NAME,
            "APIFY_TOKEN": TOKEN,
            "APIFY_API_BASE_URL": self.api.url,
        }

    def refuse(self, answer: web.Response | str, *, nth: int, when: Callable[[Call], bool]) -> None:
        """Give this ``answer`` to the ``nth`` of the calls that ``when`` picks, counted from 1.

        The call has no effect then.
        """
        self.refused = False
        count = 0

        def before(call: Call) -> web.Response | str | None:
            nonlocal count
            count += when(call)
            if not when(call) or count != nth:
                return None
            self.refused = True
            return answer

        self.api.before = before


@contextmanager
def serving(
    folder: Path, token: str | None = TOKEN, page: Page | None = None
) -> Iterator[ServedQueue]:
    """A server of the queues in ``folder``. Calls that break the API's description are an error."""
    api = Api()
    misbehaviour = Misbehaviour(folder)
    outermost_first = (
        api.middleware(),
        *checking(api.complaints.append),
        misbehaviour.middleware(),
    )
    app = application(folder, token=token, middlewares=outermost_first, page=page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def stop() -> None:
        # Calls that were cancelled may still wait for the server to accept their connections, and
        # asyncio forgets to close one that it accepts while the server is being closed.
        for _ in range(10):
            await asyncio.sleep(0)
        await runner.cleanup()

    with LoopThread() as loop:
        try:
            loop.run(start())
            yield ServedQueue(folder, api, misbehaviour)
        finally:
            loop.run(stop())
            # It keeps the last hundred servers, with all calls and bodies that they have had.
            web_app._cached_build_middleware.cache_clear()
    assert not api.complaints, api.complaints


@contextmanager
def copied(queue: Queue) -> Iterator[Queue]:
    """A ``Queue.copy()``, with a server of its own if the queue has one."""
    copy = queue.copy()
    if isinstance(queue, ServedQueue):
        with serving(copy.folder) as served:
            yield served
    else:
        yield copy
