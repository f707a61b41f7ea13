"""The SQLite file: its format, opening it, and transactions that wait for other processes.

Calls run on the event loop and not in a thread: a batch of 25 adds takes about 0.3 ms and an ack
less than 0.1 ms, and the way to a thread and back takes as long. With WAL and
``synchronous=NORMAL`` a killed process loses nothing. A power cut may lose the last moments, but
never the file (https://sqlite.org/pragma.html#pragma_synchronous). Several processes may use one
file; one that finds it locked waits without blocking the loop.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from scrapy_apify_rq.backends.sqlite.storage_tables import STORAGE_TABLES
from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError, ConfigError

FILE_NAME: Final = "request_queues.sqlite"
_OLDEST_SQLITE: Final = (3, 35)  # RETURNING
_APPLICATION_ID: Final = 0x5352_5131
_SCHEMA_VERSION: Final = 2
_QUEUES: Final = """
CREATE TABLE {name} (
    key INTEGER PRIMARY KEY AUTOINCREMENT,  -- of one queue for ever, also when it is deleted
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
    had_multiple_clients INTEGER NOT NULL DEFAULT FALSE,
    purges INTEGER NOT NULL DEFAULT 0  -- how many times the queue was emptied
)
"""
_REQUESTS: Final = """
CREATE TABLE requests (
    queue INTEGER NOT NULL REFERENCES queues (key),
    id TEXT NOT NULL,
    position INTEGER,                  -- place in the queue; NULL once handled
    failed INTEGER NOT NULL,
    lock_by TEXT,
    lock_expires_at REAL,
    json TEXT NOT NULL,                -- the entry as the API would send it
    host TEXT                          -- see entries.hosts; NULL = stored without it
);
CREATE UNIQUE INDEX requests_by_id ON requests (queue, id);
CREATE INDEX requests_pending ON requests (queue, position, id) WHERE position IS NOT NULL;
CREATE INDEX requests_failed ON requests (queue) WHERE failed
"""
# What version 1 lacks. Some of its files have the first table.
_SINCE_2: Final = """
CREATE TABLE IF NOT EXISTS occupants ( -- the crawl that came last to a queue
    queue INTEGER PRIMARY KEY REFERENCES queues (key),
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    since REAL NOT NULL
);
CREATE TABLE records (                 -- what crawls keep beside their entries
    queue INTEGER NOT NULL REFERENCES queues (key),
    name TEXT NOT NULL,
    text BLOB NOT NULL,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID
"""
# Newer, too. What a crawl has scraped, and what it knows about its feeds (``crawl.feeds``).
_ITEMS: Final = (
    """
    CREATE TABLE IF NOT EXISTS items (
        number INTEGER PRIMARY KEY,
        queue INTEGER NOT NULL REFERENCES queues (key),
        entry TEXT,                    -- id; NULL for items of no request
        key TEXT,                      -- of items of no request, or of a spill
        client TEXT,                   -- NULL in single access
        valid INTEGER NOT NULL,        -- FALSE for a spill whose request is not finished
        count INTEGER NOT NULL
    )
    """,
    # Apart, since SQLite would write all of a row again when it becomes valid.
    """
    CREATE TABLE IF NOT EXISTS item_texts (
        number INTEGER PRIMARY KEY REFERENCES items (number),
        json TEXT NOT NULL             -- JSON Lines
    )
    """,
    "CREATE TRIGGER IF NOT EXISTS items_deleted AFTER DELETE ON items"
    " BEGIN DELETE FROM item_texts WHERE number = OLD.number; END",
    "CREATE INDEX IF NOT EXISTS items_valid ON items (queue, valid)",
    "CREATE UNIQUE INDEX IF NOT EXISTS items_loose ON items (queue, key)"
    " WHERE key IS NOT NULL AND valid",
    "CREATE INDEX IF NOT EXISTS items_spilled ON items (queue, key) WHERE NOT valid",
    "CREATE TABLE IF NOT EXISTS item_counts"
    " (queue INTEGER PRIMARY KEY REFERENCES queues (key), count INTEGER NOT NULL)",
    """
    CREATE TABLE IF NOT EXISTS feeds (
        queue INTEGER NOT NULL REFERENCES queues (key),
        client TEXT NOT NULL,          -- '' in single access
        name TEXT NOT NULL,
        json TEXT NOT NULL,
        PRIMARY KEY (queue, client, name)
    ) WITHOUT ROWID
    """,
)
ITEM_TABLES: Final = ("items", "item_counts", "feeds")
# Version 1 had no hosts. Those of its entries that come after so many others stay without.
_NEW_COLUMN: Final = "ALTER TABLE requests ADD COLUMN host TEXT"
_MOST_NOTED: Final = 10_000
_HOST_INDEX: Final = (
    "CREATE INDEX requests_by_host ON requests (queue, host, position, id)"
    " WHERE position IS NOT NULL"
)
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
        # Requests hold cookies and passwords. SQLite gives its other files the mode of this one. A
        # file that is there is left alone: to open and close it here would end SQLite's locks on it
        # (https://sqlite.org/howtocorrupt.html#posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
        if not file.exists():
            file.touch(mode=0o600)
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


def _unusable(file: Path, error: Exception) -> str:
    return (
        f"The embedded queue {file} cannot be used ({error}). Set APIFY_RQ_STORAGE_DIR to a "
        "writable folder without another file of that name."
    )


def _prepare(db: sqlite3.Connection, file: Path) -> None:
    db.execute("PRAGMA busy_timeout = 1000")
    # Raises for another program's file, before the next lines change it.
    if _version(db, file) < _SCHEMA_VERSION:
        _hide(file)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("BEGIN IMMEDIATE")
    with db:
        version = _version(db, file)
        if version < _SCHEMA_VERSION:
            if version:
                _rebuild_queues(db)
                db.execute(_NEW_COLUMN)
                _note_hosts(db)
            else:
                _execute(db, _QUEUES.format(name="queues"))
                _execute(db, _REQUESTS)
            _execute(db, _SINCE_2)
            db.execute(_HOST_INDEX)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        for statement in (*_ITEMS, *STORAGE_TABLES):
            db.execute(statement)
    db.execute(f"PRAGMA busy_timeout = {round(_BLOCKING_WAIT * 1000)}")


def _note_hosts(db: sqlite3.Connection) -> None:
    rows = db.execute(
        "SELECT CAST(json AS BLOB), rowid FROM requests WHERE position IS NOT NULL"
        " ORDER BY queue, position LIMIT ?",
        (_MOST_NOTED,),
    ).fetchall()
    hosts = [(host_of(Entry.from_json("", json)), rowid) for json, rowid in rows]
    db.executemany("UPDATE requests SET host = ? WHERE rowid = ?", hosts)


def _execute(db: sqlite3.Connection, statements: str) -> None:
    # Not executescript(), which would end the transaction.
    for statement in statements.split(";\n"):
        db.execute(statement)


def _rebuild_queues(db: sqlite3.Connection) -> None:
    """Give the table of version 1 its present form, the way of https://sqlite.org/lang_altertable.html#otheralter."""
    columns = ", ".join(row[1] for row in db.execute("PRAGMA table_info(queues)"))
    _execute(db, _QUEUES.format(name="queues_2"))
    db.execute(f"INSERT INTO queues_2 ({columns}) SELECT {columns} FROM queues")
    db.execute("DROP TABLE queues")
    db.execute("ALTER TABLE queues_2 RENAME TO queues")


def _hide(file: Path) -> None:
    """Let nobody else read the file: requests and cookies hold passwords.

    The first edition left that to the umask. Whoever opens the file for others after this has
    decided so.
    """
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        # Not there, or of another user, who decides.
        with suppress(FileNotFoundError, PermissionError):
            file.with_name(name).chmod(0o600)


def _version(db: sqlite3.Connection, file: Path) -> int:
    """Return the version of our format, 0 for an empty database. Raises ConfigError if it is not
    one that we know.
    """
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not tables:
        return 0
    if application_id != _APPLICATION_ID:
        raise ConfigError(
            f"{file} is the SQLite database of another program. Set APIFY_RQ_STORAGE_DIR to "
            "another folder."
        )
    if not 1 <= version <= _SCHEMA_VERSION:
        raise ConfigError(
            f"{file} was written by a newer version of scrapy-apify-rq (format {version}, this "
            f"one reads {_SCHEMA_VERSION}). Upgrade scrapy-apify-rq, or set "
            "APIFY_RQ_STORAGE_DIR to another folder."
        )
    return int(version)


class Database:
    """The file, once ``open`` was called, and transactions on it.

    ``patience`` is how many seconds to wait while other processes lock the file.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.file = folder / FILE_NAME
        self._path = str(self.file)
        self.patience = patience
        self._connection: sqlite3.Connection | None = None
        self._opened: os.stat_result | None = None
        """The file that is open, which another one may replace."""

    @property
    def connection(self) -> sqlite3.Connection:
        assert self._connection is not None, "not open"
        return self._connection

    @property
    def was_opened(self) -> bool:
        return self._connection is not None

    def open(self) -> None:
        """Open the file, and create it if it is missing. May be called again."""
        self.close()
        self._connection = connect(self.file.parent)
        self._opened = self.file.stat()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def is_there(self) -> bool:
        """Whether the file that we opened is still in its place. SQLite itself goes on writing into
        one that was deleted.
        """
        if self._opened is None:
            return True
        try:
            # Path.stat() takes several times as long, and this is done in each call.
            now = os.stat(self._path)  # noqa: PTH116
            return os.path.samestat(self._opened, now)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _check(self) -> None:
        if not self.is_there():
            raise BackendError(
                f"The embedded queue {self.file} was deleted, moved or replaced while it was in"
                " use. Put it back, or run the spider again to start from the beginning.",
                "apify_rq_gone",
            )

    async def transaction(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in one transaction: all of it is stored, or none."""
        connection = self.connection
        await self.patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            result = work()
            connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # on a full disk SQLite has already rolled back
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        return result

    async def patiently(self, read: Callable[[], _T]) -> _T:
        """Run ``read``. Retry while other processes lock the file, up to ``patience``."""
        self._check()
        give_up_at = time.monotonic() + self.patience
        while True:
            try:
                return read()
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > give_up_at:
                    raise self._failed(error) from error
                await asyncio.sleep(0.02)

    def _failed(self, error: sqlite3.Error) -> BackendError:
        return BackendError(
            f"The embedded queue {self.file} failed: {error}. Nothing that was stored is lost:"
            " fix the cause and run the spider again."
        )
