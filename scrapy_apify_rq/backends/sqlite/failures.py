"""What can be wrong with the file: one line for people, with the way out."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Final

from scrapy_apify_rq.errors import BackendError

_OTHER_FOLDER: Final = (
    "set APIFY_RQ_STORAGE_DIR to a writable folder without another file of that name"
)
_NOT_UTF_8: Final = re.compile(r"Could not decode to UTF-8 (column '.*?')")


class Busy(BackendError):
    """Another program holds the file. It may be tried again."""


def is_busy(error: OSError | sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_closed(error: OSError | sqlite3.Error) -> bool:
    """Whether the file cannot be opened or written: we lack a permission, or there is none."""
    closed = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
    return isinstance(error, OSError) or _code(error) in closed


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def failure(file: Path, error: OSError | sqlite3.Error) -> BackendError:
    """The error to raise for one of SQLite."""
    what = f"The embedded queue {file}"
    if (found := _NOT_UTF_8.match(str(error))) is not None:
        # The error itself holds the text, which may be a secret.
        return BackendError(
            f"{what} holds text that is not UTF-8, in the {found[1]}: another program has written"
            " it, or the file is damaged. Repair that row, or move the file away to begin anew."
        )
    if is_busy(error):
        return Busy(
            f"{what} failed: {error}. Another program holds it. Nothing that was stored is lost:"
            " end that program and try again."
        )
    if os.path.isdir(file):  # noqa: PTH112 (Path.is_dir() raises in a closed folder)
        return BackendError(f"{what} is a folder: {_OTHER_FOLDER}.")
    if is_closed(error):
        reason = error.strerror if isinstance(error, OSError) else error
        return BackendError(
            f"{what} cannot be used ({reason}). Check who may read and write the file and its"
            f" folder, or {_OTHER_FOLDER}."
        )
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return BackendError(
            f"{what} cannot grow ({error}). Nothing that was stored is lost: make room and try"
            " again."
        )
    if code == sqlite3.SQLITE_IOERR:
        return BackendError(
            f"{what} cannot be read or written ({error}). Look whether its disk is full, failing or"
            " gone, and try again."
        )
    if code == sqlite3.SQLITE_NOTADB:
        return BackendError(
            f"{what} cannot be used ({error}). If it is another program's, {_OTHER_FOLDER}. If it"
            f" is yours, its beginning is damaged: {_recovery(file)}"
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return BackendError(f"{what} is damaged ({error}): {_recovery(file)}")
    if "no such " in str(error):
        return BackendError(
            f"{what} lacks a part ({error}). Put back a copy from before, or move it away to begin"
            " anew."
        )
    return BackendError(f"{what} failed: {error}.")


def other_program(file: Path) -> BackendError:
    return BackendError(
        f"{file} is the SQLite database of another program. Set APIFY_RQ_STORAGE_DIR to another"
        " folder."
    )


def other_version(file: Path, found: int, known: int) -> BackendError:
    if found > known:
        return BackendError(
            f"{file} was written by a newer version of scrapy-apify-rq (format {found}, this one"
            f" reads {known}). Upgrade scrapy-apify-rq, or set APIFY_RQ_STORAGE_DIR to another"
            " folder."
        )
    return BackendError(
        f"{file} says that it has the format {found}, which no version of scrapy-apify-rq has"
        f" written. Set APIFY_RQ_STORAGE_DIR to another folder, or, if the file is damaged,"
        f" {_recovery(file)}"
    )


def must_be_upgraded(file: Path, found: int, known: int) -> BackendError:
    return BackendError(
        f"{file} was written by an older version of scrapy-apify-rq (format {found}, now it is"
        f" {known}), and you may not change it. Whoever may has to run any command or crawl of this"
        " version on it, or copy it to a folder of your own and set APIFY_RQ_STORAGE_DIR."
    )


def _recovery(file: Path) -> str:
    return (
        "stop all programs that use it and move it away, with the files of that name that end in"
        f" -wal and -shm. `sqlite3 MOVED .recover | sqlite3 '{file}'` saves what can be read."
        " Without that, the next crawl starts from the beginning."
    )
