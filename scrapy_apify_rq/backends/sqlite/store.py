"""All queues of one SQLite file, for the server: leases of many clients, statistics, and pages.

``queue`` has the format of the file, and what a crawl needs of its one queue.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.backends.sqlite.queue import Counters, File, SqliteBackend
from scrapy_apify_rq.entries.models import Entry


class QueueRecord(NamedTuple):
    """A row of the table of queues. Dates are Unix times."""

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


class Row(NamedTuple):
    """An entry as it is stored. ``position`` is None once it is handled."""

    id: str
    json: str
    position: int | None
    lock_by: str | None
    lock_expires_at: float | None

    def state(self, now: float) -> Literal["handled", "locked", "pending"]:
        if self.position is None:
            return "handled"
        return "locked" if (self.lock_expires_at or 0) > now else "pending"


class Locked(NamedTuple):
    rows: list[Row]
    expires_at: float
    any_locked: bool
    """Whether any client has locked an entry of the queue."""


_RECORD = f"SELECT {', '.join(QueueRecord._fields)} FROM queues"
_ROW = f"SELECT {', '.join(Row._fields)} FROM requests WHERE queue = :queue"
_FREE = "coalesce(lock_expires_at, 0) <= :now"
# Without the plus, SQLite would collect all pending entries and sort them by id.
_FILTERS = {
    frozenset[str](): "TRUE",
    frozenset({"locked"}): "+position IS NOT NULL AND lock_expires_at > :now",
    frozenset({"pending"}): f"+position IS NOT NULL AND {_FREE}",
    frozenset({"locked", "pending"}): "+position IS NOT NULL",
}


class Store(File):
    """The file. Reads and accesses are counted in memory, and stored when they are asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._uses: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._accessed_at: dict[int, float] = {}

    async def close(self) -> None:
        if self._connection is not None:
            await self._store_uses()
        await super().close()

    def find(self, *, id: str | None = None, name: str | None = None) -> QueueRecord | None:
        row = self._db.execute(f"{_RECORD} WHERE id = ? OR name = ?", (id, name)).fetchone()
        return None if row is None else QueueRecord(*row)

    async def get(self, key: int) -> QueueRecord | None:
        """Return a record with up-to-date statistics."""
        await self._store_uses()
        row = self._db.execute(f"{_RECORD} WHERE key = ?", (key,)).fetchone()
        return None if row is None else QueueRecord(*row)

    async def page(
        self, *, offset: int, limit: int, newest_first: bool, unnamed: bool
    ) -> tuple[list[QueueRecord], int]:
        """Return a page of queues in order of their creation, and how many queues there are."""
        await self._store_uses()
        which = "TRUE" if unnamed else "name IS NOT NULL"
        order = "DESC" if newest_first else "ASC"
        (total,) = self._db.execute(f"SELECT count(*) FROM queues WHERE {which}").fetchone()
        rows = self._db.execute(
            f"{_RECORD} WHERE {which} ORDER BY created_at {order}, key {order} LIMIT ? OFFSET ?",
            (limit, offset),
        )
        return [QueueRecord(*row) for row in rows], total

    async def get_or_create(self, name: str | None) -> tuple[QueueRecord, bool]:
        """Return the queue of this name, and whether it is new. Without a name it always is."""

        def work() -> tuple[int, bool]:
            found = self._db.execute("SELECT key FROM queues WHERE name = ?", (name,)).fetchone()
            return (found[0], False) if found else (self._create(name), True)

        key, created = await self._transaction(work)
        record = await self.get(key)
        assert record is not None
        return record, created

    async def change(self, key: int, values: dict[str, str | None]) -> bool:
        """Set name, title or general_access. Return False if another queue has the name."""

        def work() -> bool:
            name = values.get("name")
            taken = "SELECT 1 FROM queues WHERE name = ? AND key <> ?"
            if self._db.execute(taken, (name, key)).fetchone():
                return False
            for column, value in {**values, "modified_at": self._now()}.items():
                self._db.execute(f"UPDATE queues SET {column} = ? WHERE key = ?", (value, key))
            return True

        return await self._transaction(work)

    async def drop(self, key: int) -> None:
        def work() -> None:
            self._db.execute("DELETE FROM requests WHERE queue = ?", (key,))
            self._db.execute("DELETE FROM queues WHERE key = ?", (key,))

        await self._transaction(work)

    async def note_client(self, record: QueueRecord, client_key: str | None) -> bool:
        """Note which client called. Return whether the queue has had several clients.

        A call without a key counts as a new client.
        """
        if record.had_multiple_clients or (client_key and client_key == record.client_key):
            return bool(record.had_multiple_clients)

        def work() -> bool:
            (several,) = self._db.execute(
                "UPDATE queues SET client_key = coalesce(client_key, :client),"
                " had_multiple_clients = had_multiple_clients"
                " OR (client_key IS NOT NULL AND (client_key <> :client OR :client = ''))"
                " WHERE key = :key RETURNING had_multiple_clients",
                {"client": client_key or "", "key": record.key},
            ).fetchone() or (False,)
            return bool(several)

        return await self._transaction(work)

    def count(self, key: int, *, reads: int = 0, head_items_read: int = 0) -> None:
        """Note that the queue was used, and how much was read."""
        self._uses[key].update(reads=reads, head_items_read=head_items_read)
        self._accessed_at[key] = self._now()

    async def _store_uses(self) -> None:
        uses, self._uses = self._uses, defaultdict(Counter)

        def work() -> None:
            for key, count in uses.items():
                self._db.execute(
                    "UPDATE queues SET reads = reads + ?, head_items_read = head_items_read + ?,"
                    " accessed_at = max(accessed_at, ?) WHERE key = ?",
                    (count["reads"], count["head_items_read"], self._accessed_at.pop(key), key),
                )

        if uses:
            await self._transaction(work)

    def queue(self, key: int, client_key: str) -> StoredQueue:
        return StoredQueue(self, key, client_key)


class StoredQueue(SqliteBackend):
    """A queue of an open ``Store``, as one client sees it.

    Like the API, and unlike the backend of a crawl, it answers how an entry was before a change.
    """

    def __init__(self, store: Store, key: int, client_key: str) -> None:
        super().__init__(
            store._folder, client_key=client_key, patience=store.patience, now=store._now
        )
        self._client_key = client_key  # callers without a key share the key ""
        self._connection = store._db
        self._key = key

    async def replace(self, entry: Entry, *, forefront: bool) -> Added:
        return await self._write(lambda counters: self._update(entry, forefront, counters))

    def row(self, id: str) -> Row | None:
        return next(iter(self._rows("AND id = :id", id=id)), None)

    def head(self, limit: int, *, locked: bool, without: Collection[str]) -> list[Row]:
        """Return the first entries in the queue's order, locked ones only if ``locked``."""
        free = "" if locked else f"AND {_FREE}"
        rows = self._rows(
            f"AND position IS NOT NULL {free} ORDER BY position LIMIT :limit",
            limit=limit + len(without),
        )
        return [row for row in rows if row.id not in without][:limit]

    def requests(
        self, limit: int, *, after: str, states: frozenset[str], without: Collection[str]
    ) -> list[Row]:
        """Return entries in these states, or all entries, in the order of their ids."""
        rows = self._rows(
            f"AND id > :after AND {_FILTERS[states]} ORDER BY id LIMIT :limit",
            after=after,
            limit=limit + len(without),
        )
        return [row for row in rows if row.id not in without][:limit]

    def _rows(self, more: str, **values: Any) -> list[Row]:
        values |= {"queue": self._key, "now": self._now()}
        return [Row(*row) for row in self._db.execute(f"{_ROW} {more}", values)]

    async def lock(self, limit: int, secs: float, *, without: Collection[str]) -> Locked:
        """Lock the first entries that no client holds, not even this one."""

        def work(counters: Counters) -> Locked:
            until = self._now() + secs
            locked, _ = self._head(limit, without, self._unleased())
            self._lock(locked, until, counters)
            rows = [row for _, id in locked for row in self._rows("AND id = :id", id=id)]
            return Locked(rows, until, bool(rows) or self._any_leased())

        return await self._write(work)

    async def prolong_lock(self, id: str, secs: float, *, forefront: bool) -> float | None:
        """Prolong our lock and return when it ends, or None if we do not hold it."""

        def work(counters: Counters) -> float | None:
            now = self._now()
            until = now + secs
            if not self._prolong(id, until, counters, since=now):
                return None
            self._to_front(id, forefront, counters)
            return until

        return await self._write(work)

    async def end_lock(self, id: str, *, forefront: bool) -> bool:
        """Unlock the entry, at its old place or at the very front. False if we do not hold it."""

        def work(counters: Counters) -> bool:
            now = self._now()
            if not self._prolong(id, now, counters, since=now):
                return False
            self._to_front(id, forefront, counters)
            return True

        return await self._write(work)

    def _to_front(self, id: str, forefront: bool, counters: Counters) -> None:
        if forefront:
            self._db.execute(
                "UPDATE requests SET position = ? WHERE queue = ? AND id = ?",
                (counters.place(False, True), self._key, id),
            )

    async def unlock_all(self) -> int:
        """End all locks of this client and return how many there were."""
        return await self._write(self._unlock)
