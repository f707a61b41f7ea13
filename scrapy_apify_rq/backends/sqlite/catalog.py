"""The queues that the file holds: their names, counters and statistics.

Its methods are synchronous, but for ``sweep``. Those that change something must run in a
transaction.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from typing import Final, TypeVar

from scrapy_apify_rq.backends.base import Known
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.occupancy import Occupant
from scrapy_apify_rq.backends.sqlite.schema import (
    COLUMNS,
    COUNTERS,
    FEW,
    MANY,
    Counters,
    QueueRecord,
)
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import ID_LENGTH

_T = TypeVar("_T")

_RECORD: Final = f"SELECT {', '.join(COLUMNS)} FROM queues"
_INSERT: Final = (
    f"INSERT INTO queues ({', '.join(COLUMNS)})"
    f" VALUES ({', '.join(f':{column}' for column in COLUMNS)}) RETURNING key"
)
_READ_COUNTERS: Final = f"SELECT {', '.join(COUNTERS)} FROM queues WHERE key = ?"
_STORE_COUNTERS: Final = (
    f"UPDATE queues SET {', '.join(f'{name} = ?' for name in COUNTERS)}, modified_at = ?"
    " WHERE key = ?"
)
_as_row: Final = attrgetter(*COUNTERS)
# SQLite has no skip scan of its own: each step finds the next owner by the index.
_ABANDONED: Final = (
    "WITH RECURSIVE found (owner) AS (SELECT min({column}) FROM {table} UNION ALL"
    " SELECT (SELECT min({column}) FROM {table} WHERE {column} > found.owner) FROM found"
    " WHERE owner IS NOT NULL) SELECT owner FROM found WHERE owner IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM {owners} WHERE key = found.owner) LIMIT 1"
)
# Rows deleted at once, and the seconds that a transaction may take for it.
_DELETED: Final = 10
_SLICE: Final = 0.01


class Catalog:
    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    def find(
        self, *, key: int | None = None, id: str | None = None, name: str | None = None
    ) -> QueueRecord | None:
        query = f"{_RECORD} WHERE key = ? OR id = ? OR name = ?"
        row = self._database.row(query, (key, id, name))
        return None if row is None else QueueRecord(*row)

    def get(self, key: int) -> QueueRecord:
        """Raises BackendError if the queue was deleted or emptied."""
        if (record := self.find(key=key)) is None:
            raise self.gone()
        return record

    def gone(self) -> BackendError:
        return BackendError(
            f"The queue in {self._database.file} was deleted or emptied while it was in use. What"
            " was pending in it is lost: run the spider again to start from the beginning.",
            "apify_rq_gone",
        )

    def newest(self, limit: int) -> list[Known]:
        """Return queues that have names."""
        query = (
            "SELECT name, title, total, total - handled FROM queues WHERE name IS NOT NULL"
            " ORDER BY key DESC LIMIT ?"
        )
        return [Known(*row) for row in self._database.rows(query, (limit,))]

    def page(
        self, *, offset: int, limit: int, newest_first: bool, unnamed: bool
    ) -> tuple[list[QueueRecord], int]:
        """Return a page of queues in order of their creation, and how many queues there are."""
        which = "TRUE" if unnamed else "name IS NOT NULL"
        order = "DESC" if newest_first else "ASC"
        ((total,),) = self._database.rows(f"SELECT count(*) FROM queues WHERE {which}")
        rows = self._database.rows(
            f"{_RECORD} WHERE {which} ORDER BY created_at {order}, key {order} LIMIT ? OFFSET ?",
            (limit, offset),
        )
        return [QueueRecord(*row) for row in rows], total

    def create(self, name: str | None, title: str | None = None) -> int:
        """Return the key of the new queue."""
        alphabet = string.ascii_letters + string.digits
        id = "".join(secrets.choice(alphabet) for _ in range(ID_LENGTH))
        now = self._now()
        ((key,),) = self._database.rows(
            "INSERT INTO queues (id, name, title, created_at, modified_at, accessed_at)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING key",
            (id, name, title, now, now, now),
        )
        return int(key)

    def change(self, key: int, values: Mapping[str, str | None]) -> bool:
        """Set name, title or general_access. Return False if another queue has the name."""
        taken = "SELECT 1 FROM queues WHERE name = ? AND key <> ?"
        if self._database.row(taken, (values.get("name"), key)):
            return False
        for column, value in {**values, "modified_at": self._now()}.items():
            self._database.change(f"UPDATE queues SET {column} = ? WHERE key = ?", (value, key))
        return True

    # Deleting a row takes 10 to 20 microseconds: a queue of a million would hold up the event loop
    # for as many seconds. So the rows lose their queue first, and ``sweep`` deletes them.

    def drop(self, key: int) -> None:
        """Delete the queue. ``sweep`` has to follow."""
        for table in FEW:
            self._database.change(f"DELETE FROM {table} WHERE queue = ?", (key,))
        self._database.change("DELETE FROM queues WHERE key = ?", (key,))

    def empty(self, key: int) -> int:
        """Replace the queue by an empty one, and return its key. ``sweep`` has to follow."""
        record, occupant = self.get(key), self.occupant(key)
        self.drop(key)
        # Without a key, SQLite gives it one that was never used.
        anew = {"key": None, "total": 0, "handled": 0, "modified_at": self._now()}
        ((new,),) = self._database.rows(_INSERT, asdict(record) | anew)
        if occupant is not None:
            self._database.change("INSERT INTO occupants VALUES (?, ?, ?, ?)", (new, *occupant))
        return int(new)

    async def sweep(self) -> None:
        """Delete what queues and other storages have left behind, bit by bit. If the process ends
        meanwhile, the next sweep does the rest.
        """
        for table, (column, owners) in MANY.items():
            query = _ABANDONED.format(table=table, column=column, owners=owners)
            find = partial(self._database.row, query)
            while (found := await self._database.patiently(find)) is not None:
                await self._delete_all(table, column, found[0])

    async def _delete_all(self, table: str, column: str, key: int) -> None:
        # In the order in which they lie in the file. In that of an index it takes five times as
        # long, since each row is in another page.
        query = f"DELETE FROM {table} NOT INDEXED WHERE rowid BETWEEN ? AND ? AND {column} = ?"

        def delete_some(at: int) -> int:
            """Return where to go on."""
            until = time.monotonic() + _SLICE
            while True:
                self._database.change(query, (at, at + _DELETED - 1, key))
                at += _DELETED
                if at > last or time.monotonic() > until:
                    return at

        def ends() -> list[int]:
            # Two questions, or else SQLite reads the whole table.
            questions = (f"SELECT {end}(rowid) FROM {table}" for end in ("min", "max"))
            return [end or 0 for question in questions for (end,) in self._database.rows(question)]

        at, last = await self._database.patiently(ends)
        while at <= last:
            at = await self._database.transaction(partial(delete_some, at))
            await asyncio.sleep(0)

    def occupant(self, key: int) -> Occupant | None:
        query = "SELECT pid, host, since FROM occupants WHERE queue = ?"
        row = self._database.row(query, (key,))
        return None if row is None else Occupant(*row)

    def note_occupant(self, key: int) -> None:
        """Note that this process crawls from the queue from now on."""
        self._database.change(
            "INSERT OR REPLACE INTO occupants VALUES (?, ?, ?, ?)",
            (key, os.getpid(), platform.node(), self._now()),
        )

    def add_client(self, key: int, client_key: str | None) -> bool:
        """Return whether the queue has had several clients.

        A call without a key counts as a new client.
        """
        row = self._database.row(
            "UPDATE queues SET client_key = coalesce(client_key, :client),"
            " had_multiple_clients = had_multiple_clients"
            " OR (client_key IS NOT NULL AND (client_key <> :client OR :client = ''))"
            " WHERE key = :key RETURNING had_multiple_clients",
            {"client": client_key or "", "key": key},
        )
        return row is not None and bool(row[0])

    def add_uses(self, key: int, *, reads: int, head_items_read: int, accessed_at: float) -> None:
        self._database.change(
            "UPDATE queues SET reads = reads + ?, head_items_read = head_items_read + ?,"
            " accessed_at = max(accessed_at, ?) WHERE key = ?",
            (reads, head_items_read, accessed_at, key),
        )

    def counted(self, key: int, work: Callable[[Counters], _T]) -> _T:
        """Run ``work``, which may change the queue's counters, and store them."""
        row = self._database.row(_READ_COUNTERS, (key,))
        if row is None:
            raise self.gone()
        counters = Counters(*row)
        result = work(counters)
        changed = _as_row(counters)
        if changed != row:
            self._database.change(_STORE_COUNTERS, (*changed, self._now(), key))
        return result
