"""Read the JOBDIR of a crawl of stock Scrapy, as entries of a request queue.

    requests.queue   the pending requests, written by the classes that SCHEDULER_DISK_QUEUE,
                     SCHEDULER_START_DISK_QUEUE and SCHEDULER_PRIORITY_QUEUE name
    requests.seen    the fingerprints of all requests that were ever scheduled, including the
                     pending ones but not those with ``dont_filter``
    spider.state     not used

A JOBDIR lacks two things. It has no URLs for the fingerprints, so their entries get URLs below
``SEEN``, which nobody can fetch. And it does not record which requests with ``dont_filter`` are
done. ``start()`` yields such requests by default. We count as crawled what ``start()`` yields up to
the last start request that is still pending, or everything it yields if none is pending.

Scrapy must have paused the crawl: a kill spoils its disk queues, and only a pause writes
``active.json``, which lists them. The exception are SQLite queues (of Scrapy 2.19): the files that
are there say as much. In both cases the requests that were in flight are in no file.

Taking a request out of a disk queue runs the code in its pickle.

Source: https://docs.scrapy.org/en/latest/topics/jobs.html, and scrapy/core/scheduler.py, pqueues.py
and dupefilters.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from scrapy import Request, Spider
from scrapy.utils.misc import build_from_crawler, load_object

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import Keys, request_id
from scrapy_apify_rq.errors import CodecError, ConfigError

if TYPE_CHECKING:
    from scrapy_apify_rq.entries.converter import RequestConverter

SEEN: Final = "https://jobdir.invalid/"
"""The start of the URLs of imported fingerprints. Names in .invalid never resolve (RFC 2606)."""
_STATE: Final = "active.json"
_PAUSE_CLEANLY: Final = "Resume this crawl with Scrapy, and stop it with one Ctrl-C"
_SQLITE: Final = b"SQLite format 3\0"
_SQLITE_EXTRA: Final = ("-journal", "-wal", "-shm")
_PRIORITY: Final = re.compile("(-?[0-9]+)s?")
"""The name of a queue's file. The "s" is for start requests."""
_EMPTY_QUEUE_SIZE: Final = 4
"""Bytes in the file of a LifoDiskQueue that holds no requests."""
_HEX_DIGITS: Final = frozenset(string.hexdigits.encode())
_LENGTH_BYTES: Final = 2


class JobDir:
    """Reads the JOBDIR of a spider without changing it.

    The spider must have been made by ``from_crawler``. ``skip`` is called for each pending request
    that cannot be written as an entry, with the URL and the reason.
    """

    def __init__(
        self,
        folder: Path,
        spider: Spider,
        converter: RequestConverter,
        skip: Callable[[str, CodecError], None],
    ) -> None:
        self._queue = folder / "requests.queue"
        self._seen = folder / "requests.seen"
        if not (self._queue.is_dir() or self._seen.is_file()):
            raise ConfigError(
                f"{folder} contains neither requests.queue nor requests.seen; give the JOBDIR of a"
                " paused crawl"
            )
        self._spider = spider
        self._crawler = spider.crawler
        self._converter = converter
        self._skip = skip
        self._keys = self._new_keys()
        self._unfiltered: Counter[str] = Counter()
        """For each fingerprint, how many pending links with ``dont_filter`` have had it."""
        self._pending_starts: set[tuple[str, str]] = set()
        """Key and content of each."""
        self.was_killed = False
        """Whether Scrapy was, according to its queues. Known after ``pending``."""
        self._skipped: set[str] = set()

    # Pending requests

    def pending(self) -> Iterator[Entry]:
        """The pending requests, in the order in which Scrapy would crawl them.

        They have the same keys at each import.
        """
        for request in self._requests():
            try:
                entry = self._converter.encode(request, self._key(request))
            except CodecError as error:
                # It must not count as seen, so that it is crawled if a link to it is found again.
                self._skipped.add(self._keys.plain(request))
                self._skip(request.url, error)
            else:
                yield entry

    def _new_keys(self) -> Keys:
        return Keys(self._crawler, "fingerprint")

    def _key(self, request: Request) -> str:
        is_start = bool(request.meta.get("is_start_request"))
        plain = self._keys.plain(request)
        content = self._converter.content(request) if is_start else ""
        if is_start and not request.meta.get("retry_times"):
            self._pending_starts.add((plain, content))
        if not self._keys.is_repeatable(request):
            return plain
        if is_start:
            return self._keys.of_start(plain, content)
        # A crawl would use a random key here, but then each import would add the request again.
        self._unfiltered[plain] += 1
        return f"{plain}:jobdir{self._unfiltered[plain]}"

    def _requests(self) -> Iterator[Request]:
        """Read a copy of the queue, because taking a request out of a disk queue deletes it."""
        if not self._queue.is_dir() or not any(self._queue.iterdir()):
            return
        with TemporaryDirectory(prefix="scrapy-apify-rq-") as scratch:
            copy = Path(shutil.copytree(self._queue, Path(scratch, "requests.queue")))
            files = _files_with_requests(copy)
            try:
                state = self._state(copy)
                with closing(self._open(copy, state)) as queue:
                    if state and not len(queue):
                        raise LookupError(f"{_STATE} lists pending requests, but none were found")
                    while left := len(queue):
                        if (request := queue.pop()) is None:
                            raise LookupError(f"pending requests are missing at its end: {left}")
                        yield request
            except ConfigError:
                raise
            # Any exception is possible: the project chooses the classes that read these bytes.
            except Exception as error:
                raise ConfigError(
                    f"cannot read {self._queue}: {type(error).__name__}: {error}. Do"
                    " SCHEDULER_PRIORITY_QUEUE, SCHEDULER_DISK_QUEUE and"
                    " SCHEDULER_START_DISK_QUEUE have the same values as in the crawl that wrote"
                    " it?"
                ) from error
            # A queue deletes its file when it is empty.
            if unread := files & _files_with_requests(copy):
                names = ", ".join(sorted(unread))
                raise ConfigError(
                    f"{self._queue} contains requests that {_STATE} does not list, in {names}."
                    f" {_PAUSE_CLEANLY}"
                )

    def _state(self, folder: Path) -> Any:
        """Say which queues there are, in the words of the priority queue."""
        file = folder / _STATE
        if (queues := _sqlite_queues(folder)) is not None:
            # A pause writes this file last.
            paused_at = file.stat().st_mtime if file.exists() else -math.inf
            self.was_killed = any(queue.stat().st_mtime > paused_at for queue in queues)
            return self._found(folder, queues)
        if not file.exists():
            raise ConfigError(
                f"{self._queue} lacks {_STATE}, which Scrapy writes when it stops cleanly. Without"
                " it only SQLite queues can be read, such as scrapy.squeues.PickleLifoSQLiteQueue,"
                " and only if SCHEDULER_DISK_QUEUE and SCHEDULER_START_DISK_QUEUE both named one."
                f" {_PAUSE_CLEANLY}"
            )
        return json.loads(file.read_text())

    def _found(self, folder: Path, queues: Sequence[Path]) -> Any:
        """Make the state from the files: priorities, or those of each download slot."""
        slots: dict[str, str] = {}
        priorities: defaultdict[str, set[int]] = defaultdict(set)
        for file in queues:
            number = _PRIORITY.fullmatch(file.name)
            request = self._first(file)
            if number is None or request is None:
                continue
            name = file.parent.name
            if file.parent != folder and name not in slots:
                slots[name] = _slot(request, name)
            priorities[name].add(int(number[1]))
        if not slots:
            return sorted(priorities[folder.name])
        return {slots[name]: sorted(found) for name, found in priorities.items()}

    def _first(self, file: Path) -> Request | None:
        """Return a request of this queue. An empty queue deletes its file."""
        settings = self._crawler.settings
        is_of_starts = file.name.endswith("s") and settings["SCHEDULER_START_DISK_QUEUE"]
        name = "SCHEDULER_START_DISK_QUEUE" if is_of_starts else "SCHEDULER_DISK_QUEUE"
        queue = build_from_crawler(load_object(settings[name]), self._crawler, str(file))
        with closing(queue):
            request: Request | None = queue.peek()
            return request

    def _open(self, folder: Path, state: Any) -> Any:
        settings = self._crawler.settings
        start_class = settings["SCHEDULER_START_DISK_QUEUE"]
        return build_from_crawler(
            load_object(settings["SCHEDULER_PRIORITY_QUEUE"]),
            self._crawler,
            downstream_queue_cls=load_object(settings["SCHEDULER_DISK_QUEUE"]),
            key=str(folder),
            startprios=state,
            start_queue_cls=load_object(start_class) if start_class else None,
        )

    # Requests that were crawled

    async def started(self) -> list[Entry]:
        """Entries for the start requests with ``dont_filter`` that count as crawled.

        Pending ones are among them; adding those changes nothing, because the queue already has
        them. Runs the spider's ``start()``. Call this after ``pending``.
        """
        keys = self._new_keys()
        starts = [
            (
                request.url,
                (keys.plain(request), self._converter.content(request)),
                keys.is_repeatable(request),
            )
            async for request in self._spider.start()
            if isinstance(request, Request)
        ]
        pending = [n for n, (_, kind, _) in enumerate(starts) if kind in self._pending_starts]
        if pending:
            starts = starts[: pending[-1] + 1]
        return [
            _handled(keys.of_start(*kind), url)
            for url, kind, is_repeatable in starts
            if is_repeatable
        ]

    def seen(self) -> Iterator[Entry]:
        """A handled entry for each fingerprint. Call this after ``pending``."""
        return (
            _handled(fingerprint, SEEN + fingerprint)
            for fingerprint in self._fingerprints()
            if fingerprint not in self._skipped
        )

    def _fingerprints(self) -> Iterator[str]:
        if not self._seen.is_file():
            return
        with self._seen.open("rb") as file:
            # Scrapy 2.18 and older write lines of hex digits. Newer versions write bytes, each
            # fingerprint after its length. A file cannot be both: a hex digit as the first byte of
            # a length would mean more than 12,000 bytes.
            if set(file.peek(1)[:1]) <= _HEX_DIGITS:
                for line in file:
                    if line.endswith(b"\n"):
                        yield line.strip().decode()
                return
            while length := int.from_bytes(file.read(_LENGTH_BYTES), "big"):
                fingerprint = file.read(length)
                if len(fingerprint) == length:  # shorter if the crawl was killed as it wrote this
                    yield fingerprint.hex()


def _files_with_requests(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if _is_queue(path) and path.stat().st_size > _EMPTY_QUEUE_SIZE
    }


def _is_queue(path: Path) -> bool:
    return path.is_file() and path.name != _STATE and not path.name.endswith(_SQLITE_EXTRA)


def _sqlite_queues(folder: Path) -> list[Path] | None:
    """Return the files of the queues, or None if there is a queue of another kind."""
    files = list(filter(_is_queue, folder.rglob("*")))
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(_SQLITE)) not in (_SQLITE, b""):
                return None
    return files


def _slot(request: Request, folder_name: str) -> str:
    """Return the download slot whose folder it is; its name is only in part that of the folder."""
    slot = request.meta.get("download_slot")
    name = str((urlsplit(request.url).hostname or "") if slot is None else slot)
    if not folder_name.endswith(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()):
        raise LookupError(f"{request} is in the folder {folder_name} of another download slot")
    return name


def _handled(unique_key: str, url: str) -> Entry:
    return Entry(
        id=request_id(unique_key),
        unique_key=unique_key,
        url=url,
        headers={},
        no_retry=False,
        handled_at=datetime.now(UTC),
    )
