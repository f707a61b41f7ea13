"""What is in the file: its tables, and how an older version becomes the present one.

A table that is new gets its own file, and an entry in ``_TABLES``.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Annotated, Final, get_type_hints

from scrapy_apify_rq.backends.sqlite.storage_tables import STORAGE_TABLES
from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.entries.models import Entry

APPLICATION_ID: Final = 0x5352_5131
VERSION: Final = 4


@dataclass(slots=True)
class Counters:
    """The columns of a queue that most transactions change."""

    total: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    handled: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    first: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    """The smallest position given out so far."""
    last: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    """The greatest."""
    # What the platform would bill, by its own counting.
    writes: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    deletes: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]

    def place(self, handled: bool, forefront: bool) -> int | None:
        """Return the position for an entry that is added or replaced."""
        if handled:
            return None
        if forefront:
            self.first -= 1
            return self.first
        self.last += 1
        return self.last


@dataclass(slots=True)
class QueueRecord(Counters):
    """A row of the table of queues, with its columns as SQLite declares them. Dates are Unix
    times.
    """

    key: Annotated[int, "INTEGER PRIMARY KEY AUTOINCREMENT"]
    """Never used again, and another one once the queue was emptied."""
    id: Annotated[str, "TEXT NOT NULL UNIQUE"]
    name: Annotated[str | None, "TEXT UNIQUE"]
    title: Annotated[str | None, "TEXT"]
    general_access: Annotated[str | None, "TEXT"]
    created_at: Annotated[float, "REAL NOT NULL"]
    modified_at: Annotated[float, "REAL NOT NULL"]
    accessed_at: Annotated[float, "REAL NOT NULL"]
    reads: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    head_items_read: Annotated[int, "INTEGER NOT NULL DEFAULT 0"]
    # Kept by the server only.
    client_key: Annotated[str | None, "TEXT"]
    """The first client: '' = one without a key, NULL = none yet."""
    had_multiple_clients: Annotated[int, "INTEGER NOT NULL DEFAULT FALSE"]


COUNTERS: Final = tuple(field.name for field in fields(Counters))
COLUMNS: Final = tuple(field.name for field in fields(QueueRecord))


def _queues(name: str) -> str:
    hints = get_type_hints(QueueRecord, include_extras=True)
    columns = ", ".join(f"{column} {hints[column].__metadata__[0]}" for column in COLUMNS)
    return f"CREATE TABLE {name} ({columns})"


_REQUESTS: Final = """
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
CREATE INDEX requests_failed ON requests (queue) WHERE failed
"""
# What version 1 lacks, such as the host of an entry (see entries.hosts; NULL = stored without it).
# Some of its files have the table of occupants.
_SINCE_2: Final = """
ALTER TABLE requests ADD COLUMN host TEXT;
CREATE INDEX requests_by_host ON requests (queue, host, position, id) WHERE position IS NOT NULL;
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
# What version 2 lacks.
_SINCE_3: Final = "ALTER TABLE requests ADD COLUMN locked_at REAL"
# What version 3 lacks: indexes by which the page of the server counts.
_SINCE_4: Final = """
DROP INDEX IF EXISTS requests_failed;
CREATE INDEX requests_failed ON requests (queue, failed) WHERE failed;
CREATE INDEX IF NOT EXISTS requests_leased ON requests (queue, lock_by, lock_expires_at)
    WHERE lock_by IS NOT NULL
"""
# What a crawl has scraped, and what it knows about its feeds (``crawl.feeds``). Some files of
# version 2 have it.
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
_TABLES: Final = (*_ITEMS, *STORAGE_TABLES)
"""Statements that change nothing where they have been executed before."""

# What belongs to a queue: a few rows, or so many that they are not deleted at once. Of the latter,
# and of those of other storages, the column that names the owner, and the owner's table.
FEW: Final = ("records", "occupants", "item_counts", "feeds")
MANY: Final = {
    "requests": ("queue", "queues"),
    "items": ("queue", "queues"),
    "dataset_items": ("storage", "storages"),
    "store_records": ("storage", "storages"),
}

# Entries of version 1 get a host. Those that come after so many others stay without.
_MOST_NOTED: Final = 10_000


def is_empty(db: sqlite3.Connection) -> bool:
    return not _number(db, "SELECT count(*) FROM sqlite_master")


def is_ours(db: sqlite3.Connection) -> bool:
    return _number(db, "PRAGMA application_id") == APPLICATION_ID


def version(db: sqlite3.Connection) -> int:
    return _number(db, "PRAGMA user_version")


def _number(db: sqlite3.Connection, question: str) -> int:
    return int(db.execute(question).fetchone()[0])


def upgrade(db: sqlite3.Connection, since: int) -> None:
    """Make a file of an older version, 0 for an empty one, a file of this one, in a transaction."""
    if since < 1:
        db.execute(_queues("queues"))
        _execute(db, _REQUESTS)
    if since < 2:
        if since == 1:
            _rebuild_queues(db)
        _execute(db, _SINCE_2)
        _note_hosts(db)
    if since < 3:
        db.execute(_SINCE_3)
    if since < 4:
        _execute(db, _SINCE_4)
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")


def _note_hosts(db: sqlite3.Connection) -> None:
    rows = db.execute(
        "SELECT CAST(json AS BLOB), rowid FROM requests WHERE position IS NOT NULL"
        " ORDER BY queue, position LIMIT ?",
        (_MOST_NOTED,),
    ).fetchall()
    hosts = [(host_of(Entry.from_json("", json)), rowid) for json, rowid in rows]
    db.executemany("UPDATE requests SET host = ? WHERE rowid = ?", hosts)


def _rebuild_queues(db: sqlite3.Connection) -> None:
    """Give the table of version 1 its present form, the way of https://sqlite.org/lang_altertable.html#otheralter."""
    columns = ", ".join(row[1] for row in db.execute("PRAGMA table_info(queues)"))
    db.execute(_queues("queues_2"))
    db.execute(f"INSERT INTO queues_2 ({columns}) SELECT {columns} FROM queues")
    db.execute("DROP TABLE queues")
    db.execute("ALTER TABLE queues_2 RENAME TO queues")


def _execute(db: sqlite3.Connection, statements: str) -> None:
    # Not executescript(), which would end the transaction.
    for statement in statements.split(";\n"):
        db.execute(statement)
