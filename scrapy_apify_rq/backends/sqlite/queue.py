"""The embedded queue: a backend that keeps its entries in one SQLite file.

Calls run on the event loop and not in a thread: a batch of 25 adds takes about 0.3 ms and an ack
less than 0.1 ms, and the way to a thread and back takes as long. With WAL and
``synchronous=NORMAL`` a killed process loses nothing. A power cut may lose the last moments, but
never the file (https://sqlite.org/pragma.html#pragma_synchronous). Several processes may use one
file; one that finds it locked waits without blocking the loop.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import string
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from scrapy_apify_rq.backends.base import Added, Claim, Claimed, Info, Lock, State, Updated
from scrapy_apify_rq.config import DEFAULTS
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError, ConfigError
from scrapy_apify_rq.limits import ID_LENGTH

FILE_NAME: Final = "request_queues.sqlite"
_OLDEST_SQLITE: Final = (3, 35)  # RETURNING
_APPLICATION_ID: Final = 0x5352_5131
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE queues (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT UNIQUE,
    title TEXT,
    general_access TEXT,
    created_at REAL NOT NULL,
    modified_at REAL NOT NULL,
    accessed_at REAL NOT NULL,
    total INTEGER NOT NULL DEFAULT 0,
    handled INTEGER NOT NULL DEFAULT 0,
    first INTEGER NOT NULL DEFAULT 0,  -- the smallest position given out so far
    last INTEGER NOT NULL DEFAULT 0,   -- the greatest
    -- What the platform would bill, by its own counting.
    reads INTEGER NOT NULL DEFAULT 0,
    head_items_read INTEGER NOT NULL DEFAULT 0,
    writes INTEGER NOT NULL DEFAULT 0,
    deletes INTEGER NOT NULL DEFAULT 0,
    -- Kept by the server only.
    client_key TEXT,                   -- the first client: '' = one without a key, NULL = none yet
    had_multiple_clients INTEGER NOT NULL DEFAULT FALSE
);
CREATE TABLE requests (
    queue INTEGER NOT NULL REFERENCES queues (key),
    id TEXT NOT NULL,
    position INTEGER,                  -- place in the queue; NULL once handled
    failed INTEGER NOT NULL,
    lock_by TEXT,
    lock_expires_at REAL,
    json TEXT NOT NULL                 -- the entry as the API would send it
);
CREATE UNIQUE INDEX requests_by_id ON requests (queue, id);
CREATE INDEX requests_pending ON requests (queue, position, id) WHERE position IS NOT NULL;
CREATE INDEX requests_failed ON requests (queue) WHERE failed;
"""
# Left to choose an index, SQLite may take one that makes it sort the rows again for each page.
_ROWS: Final[dict[State | None, str]] = {
    None: "NOT INDEXED WHERE queue = :queue",
    "pending": "NOT INDEXED WHERE queue = :queue AND position IS NOT NULL",
    "handled": "NOT INDEXED WHERE queue = :queue AND position IS NULL",
    "failed": "INDEXED BY requests_failed WHERE queue = :queue AND failed",
    "locked": "NOT INDEXED WHERE queue = :queue AND position IS NOT NULL"
    " AND lock_expires_at > :now",
}
# As bytes, since another program may have written something that is not UTF-8.
_JSON: Final = "CAST(json AS BLOB)"
# The event loop gets a turn after this many rows were read.
_CHUNK: Final = 100
# One transaction leases no more entries than this.
_MOST_LEASED: Final = 1000
# Seconds for which SQLite may wait for another process's write. It blocks the loop meanwhile.
_BLOCKING_WAIT: Final = 0.005
# The same while the file is opened. Nothing else runs yet that could be held up.
_OPENING_WAIT: Final = 10

_T = TypeVar("_T")


def connect(folder: Path) -> sqlite3.Connection:
    """Open the file of embedded queues in ``folder``, and create it if it is missing.

    Raises ConfigError, naming the file, if it cannot be used.
    """
    file = folder / FILE_NAME
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ConfigError(
            f"The embedded queue needs SQLite 3.35 or newer, and this Python has"
            f" {sqlite3.sqlite_version}. Use another build of Python."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(file, timeout=_BLOCKING_WAIT, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(_unusable(file, error)) from error
    give_up_at = time.monotonic() + _OPENING_WAIT
    while True:
        try:
            _prepare(db, file)
        except sqlite3.Error as error:
            # SQLite does not wait when two processes turn WAL on at the same time.
            if "locked" in str(error) and time.monotonic() < give_up_at:
                time.sleep(0.01)
                continue
            db.close()
            raise ConfigError(_unusable(file, error)) from error
        except BaseException:
            db.close()
            raise
        return db


def check(folder: Path, id: str | None) -> None:
    """Raise the ConfigError that ``open`` would raise."""
    db = connect(folder)
    try:
        _find(db, id, None, folder / FILE_NAME)
    finally:
        db.close()


def _find(
    db: sqlite3.Connection, id: str | None, name: str | None, file: Path, *, must_exist: bool = True
) -> int | None:
    """Return the key of the queue. Raises ConfigError if no queue has this id and one must."""
    if id and "~" in id:  # `username~name` on the platform; here there is one user
        name = id.partition("~")[2]
    row = db.execute("SELECT key FROM queues WHERE id = ? OR name = ?", (id, name)).fetchone()
    if row is None and id and must_exist:
        raise ConfigError(
            f"APIFY_RQ_ID is {id!r}, but {file} has no queue of that id. Set APIFY_RQ_NAME to"
            " create one by name."
        )
    return None if row is None else row[0]


def _unusable(file: Path, error: Exception) -> str:
    return (
        f"The embedded queue {file} cannot be used ({error}). Set APIFY_RQ_STORAGE_DIR to a "
        "writable folder without another file of that name."
    )


def _prepare(db: sqlite3.Connection, file: Path) -> None:
    db.execute("PRAGMA busy_timeout = 1000")
    _is_empty(db, file)  # raises for another program's file, before the next line changes it
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("BEGIN IMMEDIATE")
    with db:
        if _is_empty(db, file):
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    db.execute(f"PRAGMA busy_timeout = {round(_BLOCKING_WAIT * 1000)}")


def _is_empty(db: sqlite3.Connection, file: Path) -> bool:
    """Return whether the database is empty. Raises ConfigError if it is not one of our format."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not tables:
        return True
    if application_id != _APPLICATION_ID:
        raise ConfigError(
            f"{file} is the SQLite database of another program. Set APIFY_RQ_STORAGE_DIR to "
            "another folder."
        )
    if version != _SCHEMA_VERSION:
        raise ConfigError(
            f"{file} was written by a newer version of scrapy-apify-rq (format {version}, this "
            f"one reads {_SCHEMA_VERSION}). Upgrade scrapy-apify-rq, or set "
            "APIFY_RQ_STORAGE_DIR to another folder."
        )
    return False


@dataclass(slots=True)
class Counters:
    """A queue's counters, while a transaction changes them."""

    total: int
    handled: int
    first: int
    last: int
    writes: int
    deletes: int

    def as_row(self) -> tuple[int, ...]:
        return (self.total, self.handled, self.first, self.last, self.writes, self.deletes)

    def place(self, handled: bool, forefront: bool) -> int | None:
        if handled:
            return None
        if forefront:
            self.first -= 1
            return self.first
        self.last += 1
        return self.last


class File:
    """The open file, and transactions on it. ``patience`` is that of ``SqliteBackend``."""

    _connection: sqlite3.Connection | None = None

    def __init__(self, folder: Path, patience: float, now: Callable[[], float]) -> None:
        self._folder = folder
        self.patience = patience
        self._now = now

    @property
    def location(self) -> str:
        return str(self._folder / FILE_NAME)

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None, "not open"
        return self._connection

    async def open(self) -> None:
        if self._connection is not None:  # find() has opened it
            self._connection.close()
        self._connection = connect(self._folder)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _create(self, name: str | None) -> int:
        """Create a queue within a transaction, and return its key."""
        alphabet = string.ascii_letters + string.digits
        id = "".join(secrets.choice(alphabet) for _ in range(ID_LENGTH))
        now = self._now()
        cursor = self._db.execute(
            "INSERT INTO queues (id, name, created_at, modified_at, accessed_at)"
            " VALUES (?, ?, ?, ?, ?) RETURNING key",
            (id, name, now, now, now),
        )
        return int(cursor.fetchone()[0])

    async def _transaction(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in one transaction: all of it is stored, or none."""
        await self._patiently(lambda: self._db.execute("BEGIN IMMEDIATE"))
        try:
            result = work()
            self._db.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # on a full disk SQLite has already rolled back
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        return result

    async def _patiently(self, statement: Callable[[], _T]) -> _T:
        """Run the statement. Retry while other processes lock the file, up to ``patience``."""
        give_up_at = time.monotonic() + self.patience
        while True:
            try:
                return statement()
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > give_up_at:
                    raise self._failed(error) from error
                await asyncio.sleep(0.02)

    def _failed(self, error: sqlite3.Error) -> BackendError:
        return BackendError(
            f"The embedded queue {self.location} failed: {error}. Nothing that was stored is lost:"
            " fix the cause and run the spider again."
        )


class SqliteBackend(File):
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
    counts_reads = False

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        id: str | None = None,
        lock_secs: int | None = None,
        client_key: str | None = None,
        patience: float = DEFAULTS["APIFY_RQ_UNAVAILABLE_TIMEOUT"],
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(folder, patience, now)
        self._name = name
        self._id = id
        self.lock_secs = lock_secs
        self._client_key = client_key or secrets.token_hex(16)

    @property
    def rate_reached(self) -> None:
        return None

    async def open(self) -> None:
        await super().open()
        self._key = await self._transaction(self._get_or_create)

    def _get_or_create(self) -> int:
        key = _find(self._db, self._id, self._name, self._folder / FILE_NAME)
        return self._create(self._name) if key is None else key

    async def info(self) -> Info:
        query = "SELECT id, name, total, handled, modified_at FROM queues WHERE key = ?"
        rows = await self._patiently(lambda: self._db.execute(query, (self._key,)).fetchall())
        if not rows:
            raise self._deleted()
        ((id, name, total, handled, modified_at),) = rows
        modified = datetime.fromtimestamp(modified_at, UTC)
        return Info(id, name, total, handled, total - handled, modified)

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        return await self._write(
            lambda counters: [self._add(entry, forefront, counters) for entry in entries]
        )

    def _add(self, entry: Entry, forefront: bool, counters: Counters) -> Added:
        counters.writes += 1
        handled = entry.is_handled
        stored = self._db.execute(
            "INSERT INTO requests (queue, id, position, failed, json) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            # One JSON at a time, since each can have 9 MB.
            (
                self._key,
                entry.id,
                counters.place(handled, forefront),
                entry.failed,
                entry.to_json(),
            ),
        ).rowcount
        if stored:
            counters.total += 1
            counters.handled += handled
            return Added(entry.id, False, False)
        return Added(entry.id, True, self._position(entry.id) is None)

    def _position(self, id: str) -> int | None:
        row = self._db.execute(
            "SELECT position FROM requests WHERE queue = ? AND id = ?", (self._key, id)
        ).fetchone()
        return None if row is None else row[0]

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        def work(counters: Counters) -> list[Updated]:
            answers = (self._update(entry, forefront, counters) for entry in entries)
            return [Updated(answer.was_already_handled) for answer in answers]

        return await self._write(work)

    def _update(self, entry: Entry, forefront: bool, counters: Counters) -> Added:
        counters.writes += 1
        handled = entry.is_handled
        values = (counters.place(handled, forefront), entry.failed, entry.to_json())
        was = self._db.execute(
            "SELECT rowid, position IS NULL FROM requests WHERE queue = ? AND id = ?",
            (self._key, entry.id),
        ).fetchone()
        if was is None:
            counters.total += 1
            self._db.execute(
                "INSERT INTO requests (position, failed, json, queue, id) VALUES (?, ?, ?, ?, ?)",
                (*values, self._key, entry.id),
            )
        else:
            self._db.execute(
                "UPDATE requests SET position = ?, failed = ?, json = ?, lock_by = NULL,"
                " lock_expires_at = NULL WHERE rowid = ?",
                (*values, was[0]),
            )
        was_handled = was is not None and bool(was[1])
        counters.handled += handled - was_handled
        return Added(entry.id, was is not None, was_handled)

    async def claim(self, limit: int, known: Collection[str], size: int) -> Claim:
        if self.lock_secs is None:
            return await self._claim_free(limit, known, size)
        return await self._claim_leased(limit, known, size, self.lock_secs)

    async def _claim_free(self, limit: int, known: Collection[str], size: int) -> Claim:
        rows, more = await self._patiently(lambda: self._head(limit, known))
        entries: list[Entry] = []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            read = partial(self._read, chunk, size, even_if_large=not entries)
            texts, is_cut = await self._patiently(read)
            entries += [Entry.from_json(id, text) for id, text in texts]
            if is_cut:
                more = True
                break
            size -= sum(len(text) for _, text in texts)
            await asyncio.sleep(0)
        return Claim([Claimed(entry, None) for entry in entries], more, alone=True)

    async def _claim_leased(
        self, limit: int, known: Collection[str], size: int, lock_secs: int
    ) -> Claim:
        lease = self._now() + lock_secs
        limit = min(limit, _MOST_LEASED)

        def work(counters: Counters) -> tuple[list[tuple[str, bytes]], bool]:
            rows, more = self._head(limit, known, self._unleased())
            texts, is_cut = self._read(rows, size, even_if_large=True)
            self._lock(rows[: len(texts)], lease, counters)
            return texts, more or is_cut

        texts, more = await self._write(work)
        leased = bool(texts) or await self._patiently(self._any_leased)
        entries = [Entry.from_json(id, text) for id, text in texts]
        return Claim([Claimed(entry, lease) for entry in entries], more, leased)

    def _head(
        self, limit: int, known: Collection[str], condition: str = ""
    ) -> tuple[list[tuple[int, str]], bool]:
        """The first rowids and ids, and whether there are more.

        With rowids, since finding a row by its id costs a read of the file in a large queue.
        """
        found = self._db.execute(
            f"SELECT rowid, id FROM requests WHERE queue = ? AND position IS NOT NULL {condition}"
            " ORDER BY position LIMIT ?",
            (self._key, limit + len(known) + 1),
        )
        rows = [row for row in found if row[1] not in known]
        return rows[:limit], len(rows) > limit

    def _read(
        self, rows: Sequence[tuple[int, str]], size: int, *, even_if_large: bool
    ) -> tuple[list[tuple[str, bytes]], bool]:
        """Read id and JSON of these rows up to ``size`` bytes, and whether that left some out.

        ``even_if_large`` reads the first row whatever its size. A row that no longer holds the
        entry of this id is skipped.
        """
        # A join in this order yields the rows in theirs, one by one: the rows that do not fit are
        # never read.
        query = (
            f"WITH wanted (row) AS (VALUES {', '.join(['(?)'] * len(rows))})"
            f" SELECT id, {_JSON} FROM wanted CROSS JOIN requests"
            " ON requests.rowid = wanted.row AND +queue = ?"
        )
        ids = {id for _, id in rows}
        texts: list[tuple[str, bytes]] = []
        if rows:
            for id, text in self._db.execute(query, (*(rowid for rowid, _ in rows), self._key)):
                if id not in ids:
                    continue
                size -= len(text)
                if size < 0 and (texts or not even_if_large):
                    return texts, True
                texts.append((id, text))
        return texts, False

    def _unleased(self) -> str:
        """The SQL condition for entries without a lease."""
        return f"AND (lock_expires_at IS NULL OR lock_expires_at <= {self._now()!r})"

    def _lock(
        self, rows: Sequence[tuple[int, str]], until: float | None, counters: Counters
    ) -> None:
        self._db.executemany(
            "UPDATE requests SET lock_by = ?, lock_expires_at = ? WHERE rowid = ?",
            [(self._client_key, until, rowid) for rowid, _ in rows],
        )
        counters.writes += len(rows)

    def _any_leased(self) -> bool:
        rows = self._db.execute(
            "SELECT 1 FROM requests WHERE queue = ? AND position IS NOT NULL"
            " AND lock_expires_at > ? LIMIT 1",
            (self._key, self._now()),
        )
        return rows.fetchone() is not None

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        until = self._now() + (self.lock_secs or 0)

        def work(counters: Counters) -> dict[str, float]:
            # A lease that has just ended is still ours if no other client has taken the entry.
            return {id: until for id in ids if self._prolong(id, until, counters, since=0)}

        return await self._write(work)

    def _prolong(self, id: str, until: float, counters: Counters, *, since: float) -> bool:
        """Return False if the lease is not ours or ended before ``since``."""
        changed = self._db.execute(
            "UPDATE requests SET lock_expires_at = ? WHERE queue = ? AND id = ?"
            " AND lock_by = ? AND lock_expires_at > ?",
            (until, self._key, id, self._client_key, since),
        ).rowcount
        counters.writes += changed
        return changed == 1

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        if ids is None:
            await self._write(self._unlock)
        else:
            now = self._now()
            await self._write(
                lambda counters: [self._prolong(id, now, counters, since=now) for id in ids]
            )

    def _unlock(self, counters: Counters) -> int:
        unlocked = self._db.execute(
            "UPDATE requests SET lock_by = NULL, lock_expires_at = NULL WHERE queue = ?"
            " AND position IS NOT NULL AND lock_by = ? AND lock_expires_at > ?",
            (self._key, self._client_key, self._now()),
        ).rowcount
        counters.writes += unlocked
        return unlocked

    # For the tools.

    async def find(self) -> bool:
        if not (self._folder / FILE_NAME).exists():
            return False
        await super().open()
        file = self._folder / FILE_NAME
        key = _find(self._db, self._id, self._name, file, must_exist=False)
        if key is not None:
            self._key = key
        return key is not None

    async def names(self) -> list[str]:
        if self._connection is None:
            return []
        query = "SELECT name FROM queues WHERE name IS NOT NULL ORDER BY key DESC LIMIT 50"
        rows = await self._patiently(lambda: self._db.execute(query).fetchall())
        return [name for (name,) in rows]

    async def purge(self) -> None:
        def work(counters: Counters) -> None:
            self._db.execute("DELETE FROM requests WHERE queue = ?", (self._key,))
            counters.total = counters.handled = 0

        await self._write(work)

    async def get(self, id: str) -> Entry | None:
        query = f"SELECT {_JSON} FROM requests WHERE queue = ? AND id = ?"
        values = (self._key, id)
        row = await self._patiently(lambda: self._db.execute(query, values).fetchone())
        return None if row is None else Entry.from_json(id, row[0])

    async def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        query = (
            f"SELECT rowid, id, {_JSON} FROM requests {_ROWS[state]}"
            " AND rowid > :last ORDER BY rowid LIMIT :chunk"
        )
        values = {"queue": self._key, "last": 0, "chunk": _CHUNK, "now": self._now()}
        while True:
            rows = await self._patiently(lambda: self._db.execute(query, values).fetchall())
            if not rows:
                return
            values["last"] = rows[-1][0]
            for _, id, json in rows:
                yield Entry.from_json(id, json)
            await asyncio.sleep(0)

    async def count(self, state: State) -> int:
        query = f"SELECT count(*) FROM requests {_ROWS[state]}"
        values = {"queue": self._key, "now": self._now()}
        rows = await self._patiently(lambda: self._db.execute(query, values).fetchall())
        return int(rows[0][0])

    async def lock_of(self, id: str) -> Lock | None:
        query = (
            "SELECT lock_by, lock_expires_at FROM requests WHERE queue = ? AND id = ?"
            " AND position IS NOT NULL AND lock_expires_at > ?"
        )
        values = (self._key, id, self._now())
        row = await self._patiently(lambda: self._db.execute(query, values).fetchone())
        return row and Lock(row[0], datetime.fromtimestamp(row[1], UTC))

    async def delete(self, ids: Collection[str]) -> None:
        await self._write(lambda counters: self._delete(ids, counters))

    def _delete(self, ids: Collection[str], counters: Counters) -> None:
        for id in ids:
            # Not "RETURNING position IS NULL": SQLite 3.40.1 returns 0 for a position that is
            # NULL, if the column queue is NOT NULL.
            gone = self._db.execute(
                "DELETE FROM requests WHERE queue = ? AND id = ? RETURNING position",
                (self._key, id),
            ).fetchone()
            if gone is not None:
                counters.total -= 1
                counters.handled -= gone[0] is None
                counters.deletes += 1

    def _deleted(self) -> BackendError:
        return BackendError(f"The queue was deleted from {self.location}", "apify_rq_gone")

    async def _write(self, work: Callable[[Counters], _T]) -> _T:
        """Run ``work`` in a transaction that also updates the queue's counters."""

        def counted() -> _T:
            row: tuple[int, ...] | None = self._db.execute(
                "SELECT total, handled, first, last, writes, deletes FROM queues WHERE key = ?",
                (self._key,),
            ).fetchone()
            if row is None:
                raise self._deleted()
            counters = Counters(*row)
            result = work(counters)
            if counters.as_row() != row:
                self._db.execute(
                    "UPDATE queues SET total = ?, handled = ?, first = ?, last = ?, writes = ?,"
                    " deletes = ?, modified_at = ? WHERE key = ?",
                    (*counters.as_row(), self._now(), self._key),
                )
            return result

        return await self._transaction(counted)


def _free(entries: Sequence[Entry], more: bool) -> Claim:
    return Claim([Claimed(entry, None) for entry in entries], more, alone=True)
