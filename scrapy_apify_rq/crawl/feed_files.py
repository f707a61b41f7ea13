"""The local files that feeds write, and how they were when the crawl began."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel

# Bytes that are compared, at the beginning and at the end of what was there.
_HEAD: Final = 2**20
_TAIL: Final = 2**16


class LocalFile(BaseModel):
    """A file before the crawl wrote to it."""

    feeds: list[str]
    """The keys in FEEDS of the feeds that write it."""
    appended: bool
    """The feed adds to what is there; otherwise it overwrites it."""
    size: int
    digest: str
    inode: int | None = None
    """Of the file that the crawl has written."""

    @classmethod
    def now(cls, path: str, feed: str, *, appended: bool) -> LocalFile:
        size = 0
        with suppress(FileNotFoundError):
            size = Path(path).stat().st_size if appended else 0
        return cls(feeds=[feed], appended=appended, size=size, digest=_digest(path, size))

    def is_replaced(self, path: str) -> bool:
        """Whether what is there now is not what the crawl has appended to."""
        try:
            found = Path(path).stat()
        except FileNotFoundError:
            return False  # what was there is gone, and not by us: there is nothing to spoil
        if found.st_size == 0:
            return False
        if found.st_size < self.size or _digest(path, self.size) != self.digest:
            return True
        # With nothing before our own items, anything begins the same way.
        return self.size == 0 and self.inode is not None and self.inode != found.st_ino

    def restore(self, path: str) -> bool:
        """Take away what the crawl has written. Return False if what was there before is gone."""
        file = Path(path)
        if not file.is_file():
            return not self.size
        if self.appended:
            os.truncate(file, min(self.size, file.stat().st_size))
        else:
            file.unlink()  # it is written anew, unless it is a batch that is not needed any more
        return not self.appended or file.stat().st_size == self.size


def _digest(path: str, size: int) -> str:
    digest = hashlib.sha256()
    if size:
        with Path(path).open("rb") as file:
            digest.update(file.read(min(size, _HEAD)))
            file.seek(max(size - _TAIL, 0))
            digest.update(file.read(min(size, _TAIL)))
    return digest.hexdigest()[:32]
