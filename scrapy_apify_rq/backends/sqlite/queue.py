"""The embedded queue: a backend that keeps its entries in one SQLite file."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.base import (
    Added,
    Claim,
    Claimed,
    EntryItems,
    Info,
    Known,
    Lock,
    Purpose,
    State,
    Updated,
)
from scrapy_apify_rq.backends.sqlite.catalog import Catalog
from scrapy_apify_rq.backends.sqlite.database import FILE_NAME, Database
from scrapy_apify_rq.backends.sqlite.items import SavedItems
from scrapy_apify_rq.backends.sqlite.leases import Leases, Taken
from scrapy_apify_rq.backends.sqlite.occupancy import Occupancy, Occupant
from scrapy_apify_rq.backends.sqlite.schema import Counters, QueueRecord
from scrapy_apify_rq.backends.sqlite.table import Table
from scrapy_apify_rq.config import DEFAULTS
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError, ConfigError

__all__ = ["FILE_NAME", "SqliteBackend", "check"]

# The event loop gets a turn after this many rows were read.
_CHUNK: Final = 100
# One transaction leases no more entries than this.
_MOST_LEASED: Final = 1000
_MOST_QUEUES: Final = 1000

_T = TypeVar("_T")


def check(folder: Path, id: str | None, name: str | None, *, alone: bool) -> None:
    """Raise the ConfigError that ``open`` or ``occupy`` would raise."""
    database = Database(folder, patience=0)
    try:
        database.open()
        _check(database, id, name, alone=alone)
    except BackendError:
        # ``open`` meets it, too, when it can be reported in a line. Scrapy would show a traceback.
        return
    finally:
        database.close()


def _check(database: Database, id: str | None, name: str | None, *, alone: bool) -> None:
    catalog = Catalog(database, clock.now)
    record = _find(catalog, id, name)
    if record is not None:
        occupancy = Occupancy(database.file.parent, record.id)
        is_free = occupancy.take(alone=alone)
        occupancy.release()
        if not is_free:
            raise _occupied(record, database, catalog.occupant(record.key), alone=alone)
    elif id:
        raise _missing(id, database)


def _find(catalog: Catalog, id: str | None, name: str | None) -> QueueRecord | None:
    if id and "~" in id:  # `username~name` on the platform; here there is one user
        name = id.partition("~")[2]
    return catalog.find(id=id, name=name)


def _missing(id: str, database: Database) -> ConfigError:
    return ConfigError(
        f"APIFY_RQ_ID is {id!r}, but {database.file} has no queue of that id. Set APIFY_RQ_NAME to"
        " create one by name."
    )


def _occupied(
    record: QueueRecord, database: Database, occupant: Occupant | None, *, alone: bool
) -> ConfigError:
    return ConfigError(
        f"The queue {record.name or record.id!r} in {database.file} is being crawled already"
        + (f", by {occupant}. " if occupant else ". ")
        + "Wait for its end or stop it. If the other crawl"
        + (" is one of several workers, or is to become one," if alone else " is to be a worker,")
        + ' set APIFY_RQ_ACCESS = "shared" for all of them.'
    )


class SqliteBackend:
    """One queue of the file. ``Backend`` says what each method promises.

    ``lock_secs`` turns on leases (shared access). ``patience`` is how many seconds to wait while
    other processes lock the file.
    """

    batch = 25
    parallel = 1
    update_batch = 25
    update_parallel = 1
    linger = 0.0
    lag = 0.0
    consistency_delay = 0.0
    chooses_hosts = True
    counts_reads = False
    keeps_records = True

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        id: str | None = None,
        lock_secs: int | None = None,
        client_key: str | None = None,
        about: str | None = None,
        patience: float = DEFAULTS["APIFY_RQ_UNAVAILABLE_TIMEOUT"],
        purpose: Purpose = "crawl",
        now: Callable[[], float] = clock.now,
    ) -> None:
        self._name = name
        self._id = id
        self._about = about
        self._occupancy: Occupancy | None = None
        self.lock_secs = lock_secs
        self._database = Database(folder, patience, purpose)
        self._catalog = Catalog(self._database, now)
        self._table = Table(self._database, now)
        client_key = client_key or secrets.token_hex(16)
        self._left: set[str] = set()
        """Ids of entries that this process does not want again."""
        self._left_leased: list[str] = []
        """Those among them on which we may still have a lease."""
        self._leases = Leases(self._database, self._table, client_key, now)
        self.items = SavedItems(
            self._database, self._table, None if lock_secs is None else client_key
        )

    @property
    def location(self) -> str:
        return str(self._database.file)

    @property
    def rate_reached(self) -> None:
        return None

    @property
    def patience(self) -> float:
        return self._database.patience

    def refusal(self, entry: Entry, size: int) -> None:
        return None

    async def open(self) -> None:
        self._database.open()
        self._database.warn(several_processes=self.lock_secs is not None)
        self._table.key = await self._database.transaction(self._get_or_create)

    def _get_or_create(self) -> int:
        record = _find(self._catalog, self._id, self._name)
        if record is not None:
            return record.key
        if self._id:
            raise _missing(self._id, self._database)
        return self._catalog.create(self._name, self._about)

    async def occupy(self, *, alone: bool) -> None:
        record = await self._database.patiently(self._record)
        occupancy = Occupancy(self._database.file.parent, record.id)
        if not occupancy.take(alone=alone):
            occupant = self._catalog.occupant(record.key)
            raise _occupied(record, self._database, occupant, alone=alone)
        self._occupancy = occupancy
        await self._database.transaction(lambda: self._catalog.note_occupant(record.key))

    async def check(self) -> None:
        await self._database.patiently(self._record)

    def _record(self) -> QueueRecord:
        """Raises BackendError if the queue was deleted or, while we occupy it, emptied."""
        record = self._catalog.find(key=self._table.key)
        if record is None and self._occupancy is None:
            # Who only looks at the queue need not mind that it was emptied.
            record = _find(self._catalog, self._id, self._name)
        if record is None:
            raise self._catalog.gone()
        self._table.key = record.key
        return record

    async def close(self) -> None:
        if self._occupancy is not None:
            self._occupancy.release()
            self._occupancy = None
        self._database.close()

    async def info(self) -> Info:
        record = await self._database.patiently(self._record)
        return Info(
            record.id,
            record.name,
            record.total,
            record.handled,
            record.total - record.handled,
            datetime.fromtimestamp(record.modified_at, UTC),
        )

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        return await self._write(lambda counters: self._table.add(entries, forefront, counters))

    async def update(
        self,
        entries: Sequence[Entry],
        *,
        forefront: bool,
        items: Mapping[str, EntryItems] | None = None,
    ) -> list[Updated]:
        def work(counters: Counters) -> list[Updated]:
            answers = []
            for entry in entries:
                answer = self._table.replace(entry, forefront, counters)
                answers.append(Updated(answer.was_already_handled))
                if items and (scraped := items.get(entry.id)) is not None:
                    if answer.was_already_handled:
                        self.items.drop(scraped)
                    else:
                        self.items.add(entry.id, scraped)
            return answers

        return await self._write(work)

    def leave(self, id: str) -> None:
        self._left.add(id)
        self._left_leased.append(id)

    async def claim(
        self, limit: int, known: Collection[str], size: int, share: int | None = None
    ) -> Claim:
        known = {*known, *self._left} if self._left else known
        if self.lock_secs is None:
            return await self._claim_free(limit, known, size, share)
        return await self._claim_leased(limit, known, size, share, self.lock_secs)

    async def _claim_free(
        self, limit: int, known: Collection[str], size: int, share: int | None
    ) -> Claim:
        await self.check()  # a queue that is gone must not look like a finished one
        table, database = self._table, self._database
        if share is None:
            places, more = await database.patiently(lambda: table.head(limit, known))
        else:
            places, more = await database.patiently(lambda: table.head_by_host(limit, known, share))
        entries: list[Entry] = []
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            read = partial(table.read, chunk, size, even_if_large=not entries)
            texts, is_cut = await database.patiently(read)
            entries += [Entry.from_json(id, text) for id, text in texts]
            if is_cut:
                more = True
                break
            size -= sum(len(text) for _, text in texts)
            await asyncio.sleep(0)
        return Claim([Claimed(entry, None) for entry in entries], more, alone=True)

    async def _claim_leased(
        self, limit: int, known: Collection[str], size: int, share: int | None, lock_secs: int
    ) -> Claim:
        limit = min(limit, _MOST_LEASED)

        def work(counters: Counters) -> Taken:
            for id in self._left_leased:
                self._leases.end(id, counters)
            return self._leases.claim(limit, known, size, share, lock_secs, counters)

        taken = await self._write(work)
        self._left_leased.clear()
        leased = bool(taken.texts) or await self._database.patiently(self._leases.any)
        entries = [Entry.from_json(id, text) for id, text in taken.texts]
        return Claim(
            [Claimed(entry, taken.until) for entry in entries],
            taken.more,
            leased,
            left=len(self._left),
        )

    async def load_records(self, prefix: str) -> dict[str, bytes]:
        return await self._database.patiently(lambda: self._table.load_records(prefix))

    async def save_records(self, texts: Mapping[str, bytes | None]) -> Collection[str]:
        await self._write(lambda counters: self._table.save_records(texts))
        return ()

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        secs = self.lock_secs or 0

        def work(counters: Counters) -> dict[str, float]:
            ends = {id: self._leases.prolong(id, secs, counters, even_if_ended=True) for id in ids}
            return {id: end for id, end in ends.items() if end is not None}

        return await self._write(work)

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        if ids is None:
            await self._write(self._leases.end_all)
        else:
            await self._write(lambda counters: [self._leases.end(id, counters) for id in ids])

    # For the tools.

    async def find(self) -> bool:
        if not self._database.exists():
            return False
        self._database.open()
        search = partial(_find, self._catalog, self._id, self._name)
        record = await self._database.patiently(search)
        if record is not None:
            self._table.key = record.key
        return record is not None

    async def queues(self) -> list[Known]:
        if not self._database.was_opened:
            return []
        return await self._database.patiently(lambda: self._catalog.newest(_MOST_QUEUES))

    async def purge(self) -> None:
        def work() -> int:
            return self._catalog.empty(self._record().key)

        self._table.key = await self._database.transaction(work)
        await self._catalog.sweep()

    async def get(self, id: str) -> Entry | None:
        found = await self._database.patiently(lambda: self._table.get(id))
        return None if found is None else Entry.from_json(*found)

    async def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        read = partial(self._table.page, state, limit=_CHUNK)
        while rows := await self._database.patiently(read):
            for _, id, json in rows:
                yield Entry.from_json(id, json)
            read = partial(self._table.page, state, after=rows[-1][0], limit=_CHUNK)
            await asyncio.sleep(0)

    async def count(self, state: State) -> int:
        return await self._database.patiently(lambda: self._table.count(state))

    async def lock_of(self, id: str) -> Lock | None:
        return await self._database.patiently(lambda: self._leases.of(id))

    async def delete(self, ids: Collection[str]) -> None:
        await self._write(lambda counters: self._table.delete(ids, counters))

    async def _write(self, work: Callable[[Counters], _T]) -> _T:
        """Run ``work`` in a transaction, and store the counters that it changed."""

        def counted() -> _T:
            if self._occupancy is None:
                self._record()
            return self._catalog.counted(self._table.key, work)

        return await self._database.transaction(counted)
