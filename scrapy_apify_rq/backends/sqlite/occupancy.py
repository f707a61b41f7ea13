"""Who crawls from a queue of the file: one crawl alone, or workers in shared access.

Each queue has a lock, an empty SQLite database beside the file: a crawl alone keeps an exclusive
transaction open on it, a worker a reading one. SQLite's locks work between processes and within
one, on every system. They end with their process, after ``kill -9`` too, and a child that it has
forked does not have them. (``flock`` lacks the last, and the other locks of Unix work between
processes only.)
"""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from scrapy_apify_rq.backends.sqlite.failures import is_busy
from scrapy_apify_rq.errors import BackendError

_FOLDER_NAME: Final = "request_queues.locks"


class Occupant(NamedTuple):
    """The crawl that was the last to occupy the queue."""

    pid: int
    host: str
    since: float
    """Unix time."""

    def __str__(self) -> str:
        time = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if (self.pid, self.host) == (os.getpid(), platform.node()):
            return f"this process ({self.pid}), since {time}"
        return f"process {self.pid} on {self.host or 'this machine'}, since {time}"


class Occupancy:
    """Our hold on one queue. ``folder`` is that of the file."""

    def __init__(self, folder: Path, queue_id: str) -> None:
        self._file = folder / _FOLDER_NAME / queue_id
        self._connection: sqlite3.Connection | None = None

    def take(self, *, alone: bool) -> bool:
        """Return False if others are in the way."""
        try:
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            connection = sqlite3.connect(self._file, timeout=0, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = MEMORY")
                connection.execute("BEGIN EXCLUSIVE" if alone else "BEGIN")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            except BaseException:
                connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            if is_busy(error):
                return False
            raise BackendError(
                f"The lock {self._file} cannot be used ({error}). Delete it if no crawl of this"
                " queue runs, and look whether its folder may be written."
            ) from error
        self._connection = connection
        return True

    def release(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
