"""The SQLite file: opening it, statements, and transactions that wait for other processes.

Calls run on the event loop and not in a thread: a batch of 25 adds takes about 0.3 ms and an ack
less than 0.1 ms, and the way to a thread and back takes as long. Several processes may use one
file; one that finds it locked waits without blocking the loop.

All statements go through ``Database``, so that no error of SQLite leaves this room: each becomes
the BackendError that ``failures`` makes of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from scrapy_apify_rq.backends.base import Purpose
from scrapy_apify_rq.backends.sqlite import schema
from scrapy_apify_rq.backends.sqlite.failures import (
    Busy,
    failure,
    is_busy,
    is_closed,
    must_be_upgraded,
    other_program,
    other_version,
)
from scrapy_apify_rq.errors import BackendError, ConfigError

logger = logging.getLogger(__name__)

FILE_NAME: Final = "request_queues.sqlite"
_OLDEST_SQLITE: Final = (3, 35)  # RETURNING
# Seconds for which SQLite may wait for another process's write. It blocks the loop meanwhile.
_BLOCKING_WAIT: Final = 0.005
# The same while the file is opened. Nothing else runs yet that could be held up.
_OPENING_WAIT: Final = 10
# Seconds after which people should know why nothing happens.
_LONG_LOCK: Final = 5.0

_T = TypeVar("_T")
_Values = Sequence[Any] | Mapping[str, Any]


class Database:
    """The file, once ``open`` was called.

    ``patience`` is how many seconds to wait while other processes lock the file.
    """

    def __init__(self, folder: Path, patience: float, purpose: Purpose = "crawl") -> None:
        self.file = folder / FILE_NAME
        self._path = str(self.file)
        self.patience = patience
        self._purpose = purpose
        self._connection: sqlite3.Connection | None = None
        self._opened: os.stat_result | None = None
        """The file that is open, which another one may replace."""
        self._at_rest: _AtRest | None = None
        """How the file was, if it is read without locks."""
        self._has_wal = True
        self._has_warned = False
        self._is_locked_long = False

    @property
    def connection(self) -> sqlite3.Connection:
        assert self._connection is not None, "not open"
        return self._connection

    def exists(self) -> bool:
        """Raises BackendError if we are not allowed to find out."""
        try:
            self.file.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise failure(self.file, error) from error
        return True

    @property
    def was_opened(self) -> bool:
        return self._connection is not None

    def open(self) -> None:
        """Open the file, and create it if it is missing. May be called again.

        Raises ConfigError if this Python's SQLite is too old, BackendError if the file cannot be
        used.
        """
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise ConfigError(
                f"The embedded queue needs SQLite 3.35 or newer, and this Python has"
                f" {sqlite3.sqlite_version}. Use another build of Python."
            )
        self.close()
        try:
            if self._purpose == "read":
                self._open_to_read()
            else:
                self._open_to_write()
            self._opened = self.file.stat()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise failure(self.file, error) from error
        except BaseException:
            self.close()
            raise

    def _open_to_write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Requests hold cookies and passwords. SQLite gives its other files the mode of this one. A
        # file that is there is left alone: to open and close it here would end SQLite's locks on it
        # (https://sqlite.org/howtocorrupt.html#posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
        if not self.file.exists():
            self.file.touch(mode=0o600)
        db = self._connection = sqlite3.connect(self.file, timeout=1, isolation_level=None)
        give_up_at = time.monotonic() + _OPENING_WAIT
        while True:
            try:
                self._prepare(db)
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait when two processes turn WAL on at the same time.
                if not is_busy(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)
        _set_wait(db)

    def _prepare(self, db: sqlite3.Connection) -> None:
        # Raises for another program's file, before the next lines change it.
        found = self._version(db)
        if found < schema.VERSION:
            _hide(self.file)
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        self._has_wal = mode == "wal"
        # A crawl loses nothing if its process is killed. A power cut may roll it back by some
        # moments, but never damages the file (https://sqlite.org/pragma.html#pragma_synchronous).
        is_fast = self._purpose == "crawl" and self._has_wal
        db.execute(f"PRAGMA synchronous = {'NORMAL' if is_fast else 'FULL'}")
        if found == schema.VERSION:
            return
        db.execute("BEGIN IMMEDIATE")
        with db:
            found = self._version(db)  # another process may have been first
            if found < schema.VERSION:
                schema.upgrade(db, found)

    def _version(self, db: sqlite3.Connection) -> int:
        """The version of our format, 0 for an empty file. Raises if it is not one that we know."""
        if schema.is_empty(db):
            return 0
        if not schema.is_ours(db):
            raise other_program(self.file)
        if not 1 <= (found := schema.version(db)) <= schema.VERSION:
            raise other_version(self.file, found, schema.VERSION)
        return found

    def _open_to_read(self) -> None:
        """Change nothing, not even in the folder, unless the file has to be upgraded."""
        self._connect_to_read()
        found = self._version(self.connection)
        if found == schema.VERSION:
            return
        self.close()
        try:
            self._open_to_write()
        except (OSError, sqlite3.Error) as error:
            if is_closed(error):
                raise must_be_upgraded(self.file, found, schema.VERSION) from error
            raise
        self.close()
        self._connect_to_read()

    def _connect_to_read(self) -> None:
        self._at_rest = _AtRest.see(self.file)
        # SQLite needs to write into the folder, if only to lock the file, unless told otherwise.
        how = "mode=ro&immutable=1" if self._at_rest else "mode=ro"
        address = f"{self.file.absolute().as_uri()}?{how}"
        self._connection = sqlite3.connect(address, uri=True, timeout=1, isolation_level=None)
        _set_wait(self._connection)

    def warn(self, *, several_processes: bool) -> None:
        """Log, once, what may happen to the file here."""
        if self._has_warned:
            return
        self._has_warned = True
        if not self._has_wal:
            logger.warning(
                "SQLite cannot use its write-ahead log for %s, as on most network file systems."
                " Crawls are slower there, and several machines that write damage the file. Set"
                " APIFY_RQ_STORAGE_DIR to a folder on a local disk",
                self.file,
            )
        elif several_processes and _has_wal_reset_bug(sqlite3.sqlite_version_info):
            logger.warning(
                "SQLite %s has a bug that damages files which several processes write, though very"
                " rarely (https://sqlite.org/wal.html#walresetbug). Use a Python with SQLite 3.51.3"
                " or newer for workers on %s, or put scrapy rq serve before it",
                sqlite3.sqlite_version,
                self.file,
            )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def is_there(self) -> bool:
        """Whether the file that we opened is still in its place. SQLite itself goes on writing into
        one that was deleted. Raises BackendError if that cannot be found out.
        """
        if self._opened is None:
            return True
        try:
            # Path.stat() takes several times as long, and this is done in each call.
            now = os.stat(self._path)  # noqa: PTH116
            return os.path.samestat(self._opened, now)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:  # such as a folder of the network that is gone
            raise failure(self.file, error) from error

    def _check_there(self) -> None:
        if not self.is_there():
            raise BackendError(
                f"The embedded queue {self.file} was deleted, moved or replaced while it was in"
                " use. Put it back, or run the spider again to start from the beginning.",
                "apify_rq_gone",
            )

    # Statements. Those that change something must run in a transaction.

    def rows(self, query: str, values: _Values = ()) -> Iterator[tuple[Any, ...]]:
        """Read them one by one: each can have 9 MB."""
        try:
            yield from self.connection.execute(query, values)
        except sqlite3.Error as error:
            raise failure(self.file, error) from error

    def row(self, query: str, values: _Values = ()) -> tuple[Any, ...] | None:
        """Read, or change, the only row; None if there is none."""
        try:
            found: tuple[Any, ...] | None = self.connection.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise failure(self.file, error) from error
        return found

    def change(self, query: str, values: _Values = ()) -> int:
        """Return how many rows were changed."""
        try:
            return self.connection.execute(query, values).rowcount
        except sqlite3.Error as error:
            raise failure(self.file, error) from error

    def insert(self, query: str, values: _Values) -> int | None:
        """Return the rowid of the new row; None if a conflict kept it out."""
        try:
            cursor = self.connection.execute(query, values)
        except sqlite3.Error as error:
            raise failure(self.file, error) from error
        return cursor.lastrowid if cursor.rowcount == 1 else None

    def change_all(self, query: str, rows: Iterable[_Values]) -> None:
        try:
            self.connection.executemany(query, rows)
        except sqlite3.Error as error:
            raise failure(self.file, error) from error

    # Transactions and reads, which wait for other processes

    async def transaction(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` in one transaction: all of it is stored, or none."""
        # Without the log, COMMIT would have to wait for others who read.
        begin = "BEGIN IMMEDIATE" if self._has_wal else "BEGIN EXCLUSIVE"
        await self.patiently(lambda: self.change(begin))
        if self._is_locked_long:
            self._is_locked_long = False
            logger.info("%s is no longer locked", self.file)
        try:
            result = work()
            self.change("COMMIT")
        except BaseException:
            with suppress(BackendError):  # on a full disk SQLite has already rolled back
                self.change("ROLLBACK")
            raise
        return result

    async def patiently(self, read: Callable[[], _T]) -> _T:
        """Run ``read``. Retry while other processes lock the file, up to ``patience``."""
        since = time.monotonic()
        while True:
            self._check_there()
            try:
                result = read()
            except Busy:
                waited = time.monotonic() - since
                if waited > self.patience:
                    raise
                if waited > _LONG_LOCK and not self._is_locked_long:
                    self._is_locked_long = True
                    logger.warning(
                        "Another program has locked %s for %.0f s. Is it suspended (Ctrl-Z)?"
                        " Waiting for up to %g s, see APIFY_RQ_UNAVAILABLE_TIMEOUT",
                        self.file,
                        waited,
                        self.patience,
                    )
                await asyncio.sleep(0.02)
                continue
            except BackendError:
                if not self._was_disturbed():
                    raise
            else:
                if not self._was_disturbed():
                    return result
            self.open()

    def _was_disturbed(self) -> bool:
        """Whether somebody has begun to write while we read without locks."""
        return self._at_rest is not None and self._at_rest != _AtRest.see(self.file)


class _AtRest(tuple[int, int, int]):
    """A file that no process has open for writing: its number, size and time of change."""

    @classmethod
    def see(cls, file: Path) -> _AtRest | None:
        """None if somebody has it open, or was killed while he had."""
        try:
            now = file.stat()
        except OSError:
            return None
        # Whoever writes keeps one of these beside it. They are looked at last, or else a writer
        # who came and went in between would be missed.
        if any(file.with_name(f"{file.name}{end}").exists() for end in ("-wal", "-journal")):
            return None
        return cls((now.st_ino, now.st_size, now.st_mtime_ns))


def _set_wait(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA busy_timeout = {round(_BLOCKING_WAIT * 1000)}")


def _hide(file: Path) -> None:
    """Let nobody else read the file: requests and cookies hold passwords.

    Version 0.1.0 left that to the umask. Whoever opens the file for others after this has
    decided so.
    """
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        # Not there, or of another user, who decides.
        with suppress(FileNotFoundError, PermissionError):
            file.with_name(name).chmod(0o600)


def _has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    return not (
        version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    )
