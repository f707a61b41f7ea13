"""All of one SQLite file, for the server: leases of many clients on its queues, statistics, pages,
and the other storages.

Like the API, and unlike the backend of a crawl, a write answers how an entry was before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.backends.sqlite.catalog import Catalog
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.dataset_items import DatasetItems
from scrapy_apify_rq.backends.sqlite.items import SavedItems
from scrapy_apify_rq.backends.sqlite.leases import Leases, Locked
from scrapy_apify_rq.backends.sqlite.occupancy import Occupancy, Occupant
from scrapy_apify_rq.backends.sqlite.runs import Runs
from scrapy_apify_rq.backends.sqlite.schema import Counters, QueueRecord
from scrapy_apify_rq.backends.sqlite.storages import Storages
from scrapy_apify_rq.backends.sqlite.store_records import StoreRecords
from scrapy_apify_rq.backends.sqlite.survey import Survey
from scrapy_apify_rq.backends.sqlite.table import Row, Table, Text
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError, ConfigError

logger = logging.getLogger(__name__)

__all__ = ["QueueRecord", "Row", "Store", "StoredQueue"]

# The event loop gets a turn after this many bytes were read and shown.
_BYTES_PER_TURN: Final = 256 * 1024

_T = TypeVar("_T")


class Store:
    """The file. Reads and accesses are counted in memory and stored in the end, so that no read has
    to wait for another process.
    """

    def __init__(self, folder: Path, patience: float, now: Callable[[], float]) -> None:
        self._database = Database(folder, patience, "store")
        self._catalog = Catalog(self._database, now)
        self.datasets = Storages("datasets", self._database, now, self._sweep_soon)
        self.key_value_stores = Storages("key-value-stores", self._database, now, self._sweep_soon)
        self.items = DatasetItems(self._database, now)
        self.records = StoreRecords(self._database, now)
        self.runs = Runs(
            self._database,
            now,
            queues=self._catalog,
            datasets=self.datasets,
            key_value_stores=self.key_value_stores,
        )
        self.survey = Survey(self._database, now)
        self._now = now
        self._uses: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._accessed_at: dict[int, float] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._database.open()
        self._database.warn(several_processes=False)

    def refresh(self) -> None:
        """Begin a new file if somebody has deleted ours: its queues do not exist any more."""
        if not self._database.is_there():
            self._uses.clear()
            self._accessed_at.clear()
            self._database.open()

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        try:
            if self._accessed_at:
                await self._database.transaction(self._store_uses)
        except BackendError as error:
            logger.warning("How much was read is not stored: %s", error)
        finally:
            self._database.close()

    async def find(self, *, id: str | None = None, name: str | None = None) -> QueueRecord | None:
        self.refresh()
        return await self._database.patiently(lambda: self._catalog.find(id=id, name=name))

    async def get(self, key: int) -> QueueRecord:
        """Return a record with up-to-date statistics. Raises BackendError if it was deleted."""
        self.refresh()
        return self._with_uses(await self._database.patiently(lambda: self._catalog.get(key)))

    async def page(
        self, *, offset: int, limit: int, newest_first: bool, unnamed: bool
    ) -> tuple[list[QueueRecord], int]:
        """Return a page of queues in order of their creation, and how many queues there are."""

        def read() -> tuple[list[QueueRecord], int]:
            return self._catalog.page(
                offset=offset, limit=limit, newest_first=newest_first, unnamed=unnamed
            )

        self.refresh()
        records, total = await self._database.patiently(read)
        return [self._with_uses(record) for record in records], total

    async def get_or_create(self, name: str | None) -> tuple[QueueRecord, bool]:
        """Return the queue of this name, and whether it is new. Without a name it always is."""

        def work() -> tuple[int, bool]:
            found = self._catalog.find(name=name)
            return (found.key, False) if found else (self._catalog.create(name), True)

        self.refresh()
        key, created = await self._database.transaction(work)
        return await self.get(key), created

    async def change(self, key: int, values: dict[str, str | None]) -> bool:
        """Set name, title or general_access. Return False if another queue has the name."""
        return await self._database.transaction(lambda: self._catalog.change(key, values))

    async def drop(self, key: int) -> None:
        await self._database.transaction(lambda: self._catalog.drop(key))
        self._sweep_soon()

    async def occupant(self, key: int) -> Occupant | None:
        """The crawl that came last to the queue's file."""
        return await self._database.patiently(lambda: self._catalog.occupant(key))

    async def read(self, work: Callable[[Survey], _T]) -> _T:
        """Ask something that may have to wait for other processes."""
        return await self._database.patiently(lambda: work(self.survey))

    async def purge(self, record: QueueRecord) -> None:
        """Empty the queue. Raises ConfigError while a crawl has the file open for it."""
        occupancy = Occupancy(self._database.file.parent, record.id)
        if not occupancy.take(alone=True):
            occupant = await self.occupant(record.key)
            raise ConfigError(
                f"The queue {record.name or record.id!r} is being crawled"
                + (f", by {occupant}" if occupant else "")
                + ". Stop the crawl first."
            )
        try:
            await self._database.transaction(lambda: self._catalog.empty(record.key))
        finally:
            occupancy.release()
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()  # the next one does its work, too
        self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        try:
            await self._catalog.sweep()
        except BackendError as error:
            logger.warning("What a deleted storage has left behind is deleted later: %s", error)

    async def note_client(self, record: QueueRecord, client_key: str | None) -> bool:
        """Note which client called. Return whether the queue has had several clients."""
        if record.had_multiple_clients or (client_key and client_key == record.client_key):
            return bool(record.had_multiple_clients)
        return await self._database.transaction(
            lambda: self._catalog.add_client(record.key, client_key)
        )

    def count(self, key: int, *, reads: int = 0, head_items_read: int = 0) -> None:
        """Note that the queue was used, and how much was read."""
        self._uses[key].update(reads=reads, head_items_read=head_items_read)
        self._accessed_at[key] = self._now()

    def _with_uses(self, record: QueueRecord) -> QueueRecord:
        uses = self._uses[record.key]
        return replace(
            record,
            reads=record.reads + uses["reads"],
            head_items_read=record.head_items_read + uses["head_items_read"],
            accessed_at=max(record.accessed_at, self._accessed_at.get(record.key, 0)),
        )

    def _store_uses(self) -> None:
        for key, accessed_at in self._accessed_at.items():
            uses = self._uses[key]
            self._catalog.add_uses(
                key,
                reads=uses["reads"],
                head_items_read=uses["head_items_read"],
                accessed_at=accessed_at,
            )

    def queue(self, key: int, client_key: str) -> StoredQueue:
        return StoredQueue(self._database, self._catalog, key, client_key, self._now)


class StoredQueue:
    """A queue of an open ``Store``, as one client sees it. Without a key the client is ""."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        key: int,
        client_key: str,
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._table = Table(database, now, key)
        self._leases = Leases(database, self._table, client_key, now)
        self.items = SavedItems(database, self._table, None)

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        return await self._write(lambda counters: self._table.add(entries, forefront, counters))

    async def replace(self, entry: Entry, *, forefront: bool) -> Added:
        return await self._write(lambda counters: self._table.replace(entry, forefront, counters))

    async def put_back(
        self, choose: Callable[[], tuple[list[Entry], _T]]
    ) -> tuple[list[Entry], _T]:
        """Put the entries that ``choose`` has read and made pending to the very front. Nobody can
        change them meanwhile.
        """

        def work(counters: Counters) -> tuple[list[Entry], _T]:
            entries, rest = choose()
            for entry in entries:
                self._table.replace(entry, True, counters)
            return entries, rest

        return await self._write(work)

    async def delete(self, ids: Collection[str]) -> None:
        await self._write(lambda counters: self._table.delete(ids, counters))

    async def row(self, id: str) -> Row | None:
        return await self._database.patiently(lambda: self._table.row(id))

    async def head(self, limit: int) -> AsyncIterator[Text]:
        """Yield the first pending entries in the queue's order, whether they are locked or not."""
        places, _ = await self._database.patiently(lambda: self._table.head(limit, ()))
        async for text in self.texts(id for _, id in places):
            yield text

    async def texts(self, ids: Iterable[str]) -> AsyncIterator[Text]:
        """Yield these entries, without those that are not there, one by one: each can have 9 MB.

        Other tasks get a turn in between, so an entry may have changed meanwhile.
        """
        size = 0
        for id in ids:
            text = await self._database.patiently(partial(self._table.get, id))
            if text is None:
                continue
            yield text
            size += len(text[1])
            if size > _BYTES_PER_TURN:
                size = 0
                await asyncio.sleep(0)

    async def page(
        self, limit: int, *, after: str | int | None, states: frozenset[str], size: int
    ) -> tuple[list[Row], bool]:
        """Return entries up to about ``size`` bytes but at least one, and whether there are more:
        all of them in the order of their ids, or those in these states in the queue's order.

        ``after`` is the id or the position of the last one before.
        """
        return await self._database.patiently(lambda: self._page(limit, after, states, size))

    def _page(
        self, limit: int, after: str | int | None, states: frozenset[str], size: int
    ) -> tuple[list[Row], bool]:
        if states:
            assert not isinstance(after, str)
            return self._table.page_in_order(limit, after=after, states=states, size=size)
        return self._table.page_by_id(limit, after=str(after or ""), size=size)

    async def lock(self, limit: int, secs: float) -> Locked:
        """Lock the first entries that no client holds, not even this one."""
        return await self._write(lambda counters: self._leases.lock(limit, secs, counters))

    async def prolong_lock(self, id: str, secs: float, *, forefront: bool) -> float | None:
        """Prolong our lock and return when it ends, or None if we do not hold it."""

        def work(counters: Counters) -> float | None:
            until = self._leases.prolong(id, secs, counters)
            if until is not None and forefront:
                self._table.move_to_front(id, counters)
            return until

        return await self._write(work)

    async def end_lock(self, id: str, *, forefront: bool) -> bool:
        """Unlock the entry, at its old place or at the very front. False if we do not hold it."""
        return await self.prolong_lock(id, 0, forefront=forefront) is not None

    async def unlock_all(self) -> int:
        """End all locks of this client and return how many there were."""
        return await self._write(self._leases.end_all)

    async def _write(self, work: Callable[[Counters], _T]) -> _T:
        """Run ``work`` in a transaction, and store the counters that it changed."""
        return await self._database.transaction(
            lambda: self._catalog.counted(self._table.key, work)
        )
