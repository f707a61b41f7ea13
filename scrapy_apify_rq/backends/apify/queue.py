"""The backend over the Apify API: a request queue on the platform, or on our own server.

This module puts the parts together. ``endpoints`` calls the API, by way of ``http``. ``single`` and
``shared`` claim entries, each in its own access mode, with what ``reader`` reads. ``batches`` adds
and deletes entries, and ``updates`` replaces them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from scrapy_apify_rq.backends import api_models
from scrapy_apify_rq.backends.api_models import Queue
from scrapy_apify_rq.backends.apify import wire
from scrapy_apify_rq.backends.apify.access import Access
from scrapy_apify_rq.backends.apify.batches import Adding, delete_all
from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.http import CONNECTIONS, Client
from scrapy_apify_rq.backends.apify.items import DatasetItems
from scrapy_apify_rq.backends.apify.parallel import run_all, run_both
from scrapy_apify_rq.backends.apify.reader import Reader
from scrapy_apify_rq.backends.apify.records import Records
from scrapy_apify_rq.backends.apify.shared import SharedAccess
from scrapy_apify_rq.backends.apify.single import SingleAccess
from scrapy_apify_rq.backends.apify.storages import Datasets, Stores, find_run
from scrapy_apify_rq.backends.apify.updates import Updates
from scrapy_apify_rq.backends.base import (
    Added,
    Claim,
    EntryItems,
    Info,
    ItemStore,
    Known,
    Lock,
    Operations,
    State,
    Updated,
)
from scrapy_apify_rq.config import DEFAULTS
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import CRUD_RATE, MAX_BATCH

# Seconds that closing may wait for an answer that nothing else waits for.
_CLOSE_PATIENCE: Final = 5


class ApifyBackend:
    """One request queue of the platform. ``Backend`` says what each method promises.

    ``memory`` is how many bytes of complete entries may be kept, so that claiming them takes no
    call. ``inc_stat`` is called with the name of a stat at each event.
    """

    batch = MAX_BATCH
    parallel = 16
    # The API has no batch update. More calls than connections would only wait for one.
    update_batch = 1
    update_parallel = CONNECTIONS
    lag = 30.0
    consistency_delay = 3.0
    linger = 0.1
    chooses_hosts = False
    counts_reads = True

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        id: str | None = None,
        name: str | None = None,
        lock_secs: int | None = None,
        client_key: str | None = None,
        about: str | None = None,
        dataset: str | None = None,
        store: str | None = None,
        patience: float = DEFAULTS["APIFY_RQ_UNAVAILABLE_TIMEOUT"],
        memory: int = 16 * 1024 * 1024,
        inc_stat: Callable[[str], None],
    ) -> None:
        self.patience = patience
        self.lock_secs = lock_secs
        self._memory = memory
        self._inc_stat = inc_stat
        self._client = Client(base_url, token, patience=patience, inc_stat=inc_stat)
        client_key = client_key or secrets.token_hex(16)
        self._api = Endpoints(self._client, client_key, id=id, name=name, title=about)
        # What is known of it before the queue is.
        self._store = store or (f"~{name}" if id is None and name is not None else None)
        self._records = Records(Stores(self._client))
        self._items = DatasetItems(
            Datasets(self._client),
            self._records,
            self._api,
            wanted=dataset,
            client=None if lock_secs is None else client_key,
            inc_stat=inc_stat,
        )
        self._reader = Reader(self._api, memory=0)
        self._is_fresh = False
        """Whether the queue's counts were answered after our last call that may change them."""
        self._titling: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin without knowledge of single entries."""
        self._left: set[str] = set()
        """Ids of entries that this process does not want again."""
        self._access: Access = (
            SingleAccess(
                self._api, self._memory, lag=self.lag, consistency_delay=self.consistency_delay
            )
            if self.lock_secs is None
            else SharedAccess(self._api, lock_secs=self.lock_secs)
        )
        self._updates = Updates(self._api, self._access, self._inc_stat)

    @property
    def location(self) -> str:
        return self._api.location

    @property
    def rate_reached(self) -> str | None:
        return f"{CRUD_RATE} updates a second" if self._client.is_paced(CRUD_RATE) else None

    def refusal(self, entry: Entry, size: int) -> str | None:
        # Writing it as JSON takes time, and makes up to six bytes of one character.
        may_be_long = 6 * size > wire.PAYLOAD_LIMIT
        return wire.too_long(wire.to_send(entry)) or None if may_be_long else None

    @property
    def items(self) -> ItemStore | None:
        return self._items if self._records.is_usable else None

    @property
    def keeps_records(self) -> bool:
        return self._records.is_usable

    async def open(self) -> None:
        self._client.open()
        if self._store is not None:
            self._records.use(self._store, is_alone=self.lock_secs is None)
            await run_both(self._api.open_queue(), self._records.read_ahead())
        else:
            await self._api.open_queue()
            self._records.use(await self._find_store(), is_alone=self.lock_secs is None)
        self._is_fresh = True
        self._add_title()

    def _add_title(self) -> None:
        """Nothing waits for this, and a crawl can do without."""

        async def put() -> None:
            with suppress(BackendError):  # the next call says the same
                await self._api.put_title()

        if self._api.lacks_title and (self._titling is None or self._titling.done()):
            self._titling = asyncio.create_task(put())

    async def _find_store(self) -> str:
        """That of the run which the queue belongs to, or one that is named after the queue."""
        if self._store is not None:
            return self._store
        queue = self._api.queue
        if queue.name is None and queue.act_run_id is not None:
            run = await find_run(self._client, queue.act_run_id)
            if run is not None and run.default_key_value_store_id is not None:
                return run.default_key_value_store_id
        return f"~{queue.name or queue.id}"

    async def occupy(self, *, alone: bool) -> None:
        pass  # the API has no such lock; the frontier notes other clients

    async def check(self) -> None:
        pass  # every call finds out

    async def close(self) -> None:
        self._items.close()
        if self._titling is not None:
            await asyncio.wait([self._titling], timeout=_CLOSE_PATIENCE)
            self._titling.cancel()
            await asyncio.wait([self._titling])
        await self._client.close()

    async def info(self) -> Info:
        if not self._is_fresh:  # fresh: ``open`` has just asked
            await self._api.get_queue()
        self._is_fresh = False
        return _info(self._api.queue)

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        self._is_fresh = False
        adding = Adding(self._api, entries, forefront=forefront, inc_stat=self._inc_stat)
        answers = await adding.run()
        for entry, text in adding.new():
            self._access.wrote(entry, text)
        return answers

    def leave(self, id: str) -> None:
        self._left.add(id)
        self._access.leave(id)

    async def claim(
        self, limit: int, known: Collection[str], size: int, share: int | None = None
    ) -> Claim:
        self._is_fresh = False
        left = self._left | self._updates.refused
        return await self._access.claim(limit, known, left, size, share)

    async def update(
        self,
        entries: Sequence[Entry],
        *,
        forefront: bool,
        items: Mapping[str, EntryItems] | None = None,
    ) -> list[Updated]:
        self._is_fresh = False
        if items:
            await self._items.add(entries, items)
        if len(entries) == 1:  # as the frontier calls it; a task would cost more than the rest
            answers = [await self._updates.put(entries[0], forefront)]
        else:
            answers = await run_all(self._updates.put(entry, forefront) for entry in entries)
        if items:
            pairs = zip(entries, answers, strict=True)
            self._items.confirm(entry.id for entry, answer in pairs if not answer.refused)
        return answers

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        return await self._access.prolong(ids)

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        await self._access.unlock(ids)

    async def load_records(self, prefix: str) -> dict[str, bytes]:
        return await self._records.load(prefix)

    async def save_records(self, texts: Mapping[str, bytes | None]) -> Collection[str]:
        long = {name for name, text in texts.items() if text is not None and wire.too_long(text)}
        await self._records.save({name: texts[name] for name in texts.keys() - long})
        return long

    # For the tools.

    async def find(self) -> bool:
        self._client.open()
        self._is_fresh = await self._api.find_queue()
        if self._is_fresh:
            self._records.use(await self._find_store(), is_alone=False)
        return self._is_fresh

    async def queues(self) -> Sequence[Known]:
        return [
            Known(
                queue.name,
                queue.title,
                queue.total_request_count,
                max(queue.pending_request_count, 0),
            )
            for queue in await self._api.list_queues(limit=1000)
            if queue.name
        ]

    async def purge(self) -> None:
        """Delete a named queue and create it again, since the API cannot empty one."""
        left = await self._items.forget()
        # First, or a kill in between would give the next crawl the items of this one.
        await self._records.save(left)
        await self._records.clear(but=left)
        if self._api.is_opened_by_name:
            await self._api.delete_queue()
            await self._api.create_queue()
            self._add_title()
            self._is_fresh = True
        else:
            self._is_fresh = False
            await delete_all(self._api, (entry.id async for entry in self._reader.list(None)))
        self._begin()

    async def get(self, id: str) -> Entry | None:
        return await self._api.get_request(id)

    async def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        # The platform's "pending" leaves out locked entries, ours does not.
        states = {"pending": "pending,locked", "locked": "locked"}.get(state or "")
        async for entry in self._reader.list(states):
            if _is_in(entry, state):
                yield entry

    async def count(self, state: State) -> int:
        number = 0
        async for _ in self.list(state):
            number += 1
        return number

    async def lock_of(self, id: str) -> Lock | None:
        lock = await self._api.get_lock(id)
        until = None if lock is None else lock.lock_expires_at
        if lock is None or until is None or until <= datetime.now(UTC):
            return None
        return Lock(lock.lock_by_client, until)

    async def delete(self, ids: Collection[str]) -> None:
        self._is_fresh = False
        await delete_all(self._api, _each(dict.fromkeys(ids)))
        self._access.deleted(ids)


async def _each(ids: Iterable[str]) -> AsyncIterator[str]:
    for id in ids:
        yield id


def _info(queue: Queue) -> Info:
    stats = queue.stats or api_models.Operations()
    return Info(
        queue.id,
        queue.name,
        queue.total_request_count,
        queue.handled_request_count,
        # The platform's counters lag, each by its own time. This one can even be negative.
        max(queue.pending_request_count, 0),
        queue.modified_at,
        Operations(stats.read_count, stats.write_count),
    )


def _is_in(entry: Entry, state: State | None) -> bool:
    if state in ("handled", "failed"):
        return entry.is_handled and (state == "handled" or entry.failed)
    return True
