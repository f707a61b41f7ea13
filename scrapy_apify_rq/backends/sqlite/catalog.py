"""The queues that the file holds: their names, counters and statistics.

Its methods are synchronous. Those that change something must run in a transaction.
"""

from __future__ import annotations

import os
import platform
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, NamedTuple, TypeVar

from scrapy_apify_rq.backends.base import Known
from scrapy_apify_rq.backends.sqlite.database import ITEM_TABLES, Database
from scrapy_apify_rq.backends.sqlite.occupancy import Occupant
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import ID_LENGTH

_T = TypeVar("_T")


class QueueRecord(NamedTuple):
    """A row of the table. Dates are Unix times."""

    key: int
    id: str
    name: str | None
    title: str | None
    general_access: str | None
    created_at: float
    modified_at: float
    accessed_at: float
    total: int
    handled: int
    reads: int
    head_items_read: int
    writes: int
    deletes: int
    client_key: str | None
    had_multiple_clients: int
    purges: int


@dataclass(slots=True)
class Counters:
    """The columns that most transactions change."""

    total: int
    handled: int
    first: int
    last: int
    writes: int
    deletes: int
    purges: int

    def place(self, handled: bool, forefront: bool) -> int | None:
        """Return the position for an entry that is added or replaced."""
        if handled:
            return None
        if forefront:
            self.first -= 1
            return self.first
        self.last += 1
        return self.last


_RECORD: Final = f"SELECT {', '.join(QueueRecord._fields)} FROM queues"
_COUNTED: Final = tuple(field.name for field in fields(Counters))
_as_row: Final = attrgetter(*_COUNTED)
_READ_COUNTERS: Final = f"SELECT {', '.join(_COUNTED)} FROM queues WHERE key = ?"
_STORE_COUNTERS: Final = (
    f"UPDATE queues SET {', '.join(f'{name} = ?' for name in _COUNTED)}, modified_at = ?"
    " WHERE key = ?"
)


class Catalog:
    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    def find(self, *, id: str | None = None, name: str | None = None) -> QueueRecord | None:
        query = f"{_RECORD} WHERE id = ? OR name = ?"
        row = self._database.connection.execute(query, (id, name)).fetchone()
        return None if row is None else QueueRecord(*row)

    def get(self, key: int) -> QueueRecord:
        """Raises BackendError if the queue was deleted."""
        query = f"{_RECORD} WHERE key = ?"
        row = self._database.connection.execute(query, (key,)).fetchone()
        if row is None:
            raise self.gone("deleted")
        return QueueRecord(*row)

    def gone(self, what: str) -> BackendError:
        """``what`` somebody else did to the queue."""
        return BackendError(
            f"The queue in {self._database.file} was {what} while it was in use. What was pending"
            " in it is lost: run the spider again to start from the beginning.",
            "apify_rq_gone",
        )

    def newest(self, limit: int) -> list[Known]:
        """Return queues that have names."""
        query = (
            "SELECT name, title, total, total - handled FROM queues WHERE name IS NOT NULL"
            " ORDER BY key DESC LIMIT ?"
        )
        return [Known(*row) for row in self._database.connection.execute(query, (limit,))]

    def page(
        self, *, offset: int, limit: int, newest_first: bool, unnamed: bool
    ) -> tuple[list[QueueRecord], int]:
        """Return a page of queues in order of their creation, and how many queues there are."""
        db = self._database.connection
        which = "TRUE" if unnamed else "name IS NOT NULL"
        order = "DESC" if newest_first else "ASC"
        (total,) = db.execute(f"SELECT count(*) FROM queues WHERE {which}").fetchone()
        rows = db.execute(
            f"{_RECORD} WHERE {which} ORDER BY created_at {order}, key {order} LIMIT ? OFFSET ?",
            (limit, offset),
        )
        return [QueueRecord(*row) for row in rows], total

    def create(self, name: str | None, title: str | None = None) -> int:
        """Return the key of the new queue."""
        alphabet = string.ascii_letters + string.digits
        id = "".join(secrets.choice(alphabet) for _ in range(ID_LENGTH))
        now = self._now()
        cursor = self._database.connection.execute(
            "INSERT INTO queues (id, name, title, created_at, modified_at, accessed_at)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING key",
            (id, name, title, now, now, now),
        )
        return int(cursor.fetchone()[0])

    def change(self, key: int, values: Mapping[str, str | None]) -> bool:
        """Set name, title or general_access. Return False if another queue has the name."""
        db = self._database.connection
        taken = "SELECT 1 FROM queues WHERE name = ? AND key <> ?"
        if db.execute(taken, (values.get("name"), key)).fetchone():
            return False
        for column, value in {**values, "modified_at": self._now()}.items():
            db.execute(f"UPDATE queues SET {column} = ? WHERE key = ?", (value, key))
        return True

    def drop(self, key: int) -> None:
        db = self._database.connection
        db.execute("DELETE FROM requests WHERE queue = ?", (key,))
        db.execute("DELETE FROM records WHERE queue = ?", (key,))
        db.execute("DELETE FROM occupants WHERE queue = ?", (key,))
        for table in ITEM_TABLES:
            db.execute(f"DELETE FROM {table} WHERE queue = ?", (key,))
        db.execute("DELETE FROM queues WHERE key = ?", (key,))

    def occupant(self, key: int) -> Occupant | None:
        query = "SELECT pid, host, since FROM occupants WHERE queue = ?"
        row = self._database.connection.execute(query, (key,)).fetchone()
        return None if row is None else Occupant(*row)

    def note_occupant(self, key: int) -> None:
        """Note that this process crawls from the queue from now on."""
        self._database.connection.execute(
            "INSERT OR REPLACE INTO occupants VALUES (?, ?, ?, ?)",
            (key, os.getpid(), platform.node(), self._now()),
        )

    def add_client(self, key: int, client_key: str | None) -> bool:
        """Return whether the queue has had several clients.

        A call without a key counts as a new client.
        """
        (several,) = self._database.connection.execute(
            "UPDATE queues SET client_key = coalesce(client_key, :client),"
            " had_multiple_clients = had_multiple_clients"
            " OR (client_key IS NOT NULL AND (client_key <> :client OR :client = ''))"
            " WHERE key = :key RETURNING had_multiple_clients",
            {"client": client_key or "", "key": key},
        ).fetchone() or (False,)
        return bool(several)

    def add_uses(self, key: int, *, reads: int, head_items_read: int, accessed_at: float) -> None:
        self._database.connection.execute(
            "UPDATE queues SET reads = reads + ?, head_items_read = head_items_read + ?,"
            " accessed_at = max(accessed_at, ?) WHERE key = ?",
            (reads, head_items_read, accessed_at, key),
        )

    def counted(self, key: int, work: Callable[[Counters], _T]) -> _T:
        """Run ``work``, which may change the queue's counters, and store them."""
        db = self._database.connection
        row: tuple[int, ...] | None = db.execute(_READ_COUNTERS, (key,)).fetchone()
        if row is None:
            raise self.gone("deleted")
        counters = Counters(*row)
        result = work(counters)
        changed = _as_row(counters)
        if changed != row:
            db.execute(_STORE_COUNTERS, (*changed, self._now(), key))
        return result
