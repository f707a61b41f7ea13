"""Files of embedded queues as the first edition wrote them: version 1 of the format."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME

VERSION_1 = """
CREATE TABLE queues (key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT UNIQUE, title TEXT,
    general_access TEXT, created_at REAL NOT NULL, modified_at REAL NOT NULL,
    accessed_at REAL NOT NULL, total INTEGER NOT NULL DEFAULT 0, handled INTEGER NOT NULL DEFAULT 0,
    first INTEGER NOT NULL DEFAULT 0, last INTEGER NOT NULL DEFAULT 0,
    reads INTEGER NOT NULL DEFAULT 0, head_items_read INTEGER NOT NULL DEFAULT 0,
    writes INTEGER NOT NULL DEFAULT 0, deletes INTEGER NOT NULL DEFAULT 0,
    client_key TEXT, had_multiple_clients INTEGER NOT NULL DEFAULT FALSE);
CREATE TABLE requests (queue INTEGER NOT NULL REFERENCES queues (key), id TEXT NOT NULL,
    position INTEGER, failed INTEGER NOT NULL, lock_by TEXT, lock_expires_at REAL,
    json TEXT NOT NULL);
CREATE UNIQUE INDEX requests_by_id ON requests (queue, id);
CREATE INDEX requests_pending ON requests (queue, position, id) WHERE position IS NOT NULL;
CREATE INDEX requests_failed ON requests (queue) WHERE failed;
PRAGMA application_id = 0x53525131;
PRAGMA user_version = 1;
"""


def downgrade(folder: Path) -> None:
    """Write the queues and entries of the file there into one of version 1, in its place."""
    file, old = folder / FILE_NAME, folder / "old.sqlite"
    with closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; {VERSION_1}")
        db.execute("ATTACH ? AS new", (str(file),))
        for table in ("queues", "requests"):
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"INSERT INTO main.{table} SELECT {columns} FROM new.{table}")
    for path in folder.glob(f"{FILE_NAME}*"):
        path.unlink()
    old.rename(file)
