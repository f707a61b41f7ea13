"""A paused crawl of stock Scrapy, read from its JOBDIR as entries of a request queue.

    requests.queue   the pending requests, in the classes that SCHEDULER_DISK_QUEUE,
                     SCHEDULER_START_DISK_QUEUE and SCHEDULER_PRIORITY_QUEUE name
    requests.seen    the fingerprints of all requests that were ever scheduled, those with
                     ``dont_filter`` aside; the pending ones are among them
    spider.state     left alone

Two things are not in a JOBDIR. A fingerprint has no address, so its entry gets one that can never
be fetched, below ``SEEN``. And nothing tells which requests with ``dont_filter`` are done, such as
the ones that ``start()`` yields by default: what ``start()`` yields up to the last start request
that is still pending, or all of it if none is, counts as crawled.

Source: https://docs.scrapy.org/en/latest/topics/jobs.html, scrapy/core/scheduler.py, pqueues.py and
dupefilters.py. Taking a request out of a disk queue runs what its pickle says.
"""

from __future__ import annotations

import json
import shutil
import string
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from scrapy import Request, Spider
from scrapy.utils.misc import build_from_crawler, load_object

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import Keys, request_id
from scrapy_apify_rq.errors import CodecError, ConfigError

if TYPE_CHECKING:
    from scrapy_apify_rq.entries.converter import RequestConverter

SEEN: Final = "https://jobdir.invalid/"
"""Below it are the URLs of imported fingerprints; names in .invalid never resolve (RFC 2606)."""
_STATE: Final = "active.json"
_PAUSE_CLEANLY: Final = "Let Scrapy resume this crawl, and stop it with one Ctrl-C"
_HEADER: Final = 4
"""The size of a LifoDiskQueue without requests, in bytes."""
_HEX: Final = frozenset(string.hexdigits.encode())
_SIZE_BYTES: Final = 2


class JobDir:
    """Reads the JOBDIR of a spider, and leaves it as it is.

    The spider is one that was made by ``from_crawler``. ``left_out`` is called with the URL of each
    pending request that cannot be written as an entry, and with the reason.
    """

    def __init__(
        self,
        folder: Path,
        spider: Spider,
        converter: RequestConverter,
        left_out: Callable[[str, CodecError], None],
    ) -> None:
        self._queue = folder / "requests.queue"
        self._seen = folder / "requests.seen"
        if not (self._queue.is_dir() or self._seen.is_file()):
            raise ConfigError(
                f"{folder} holds neither requests.queue nor requests.seen: name the JOBDIR of a"
                " paused crawl"
            )
        self._spider = spider
        self._crawler = spider.crawler
        self._converter = converter
        self._left_out = left_out
        self._keys = self._new_keys()
        self._made: Counter[str] = Counter()
        """How many pending links that are not filtered there are of each key."""
        self._pending_starts: set[str] = set()
        self._skipped: set[str] = set()

    # Pending requests.

    def pending(self) -> Iterator[Entry]:
        """What waits to be crawled, in the order in which Scrapy would crawl it.

        The keys are the same at each import.
        """
        for request in self._requests():
            try:
                entry = self._converter.encode(request, self._key(request))
            except CodecError as error:
                # Not known to the queue, it is crawled if a link to it is found again.
                self._skipped.add(self._keys.plain(request))
                self._left_out(request.url, error)
            else:
                yield entry

    def _new_keys(self) -> Keys:
        return Keys(self._crawler, "fingerprint")

    def _key(self, request: Request) -> str:
        is_start = bool(request.meta.get("is_start_request"))
        plain = self._keys.plain(request)
        if is_start and not request.meta.get("retry_times"):
            self._pending_starts.add(plain)
        if not self._keys.is_repeatable(request):
            return plain
        if is_start:
            return self._keys.own(plain, is_start=True)
        # Not the random key of a crawl, by which each import would add it anew.
        self._made[plain] += 1
        return f"{plain}:jobdir{self._made[plain]}"

    def _requests(self) -> Iterator[Request]:
        """Empty a copy, because taking a request out of a disk queue deletes it."""
        if not self._queue.is_dir() or not any(self._queue.iterdir()):
            return
        state = self._read_state()
        with TemporaryDirectory(prefix="scrapy-apify-rq-") as scratch:
            copy = Path(shutil.copytree(self._queue, Path(scratch, "requests.queue")))
            full = _full_files(copy)
            try:
                with closing(self._open(copy, state)) as queue:
                    if state and not len(queue):
                        raise LookupError(f"{_STATE} tells of pending requests, and none are found")
                    while left := len(queue):
                        if (request := queue.pop()) is None:
                            raise LookupError(f"the last {left} pending requests are missing")
                        yield request
            # Foreign bytes, read by whatever classes the project names, can fail in any way.
            except Exception as error:
                raise ConfigError(
                    f"{self._queue} cannot be read: {type(error).__name__}: {error}. Are"
                    " SCHEDULER_PRIORITY_QUEUE, SCHEDULER_DISK_QUEUE and"
                    " SCHEDULER_START_DISK_QUEUE as they were in the crawl that wrote it?"
                ) from error
            # Queues delete their files when they are empty.
            if unread := full & _full_files(copy):
                names = ", ".join(sorted(unread))
                raise ConfigError(
                    f"{self._queue} holds requests that {_STATE} does not tell of, in {names}."
                    f" {_PAUSE_CLEANLY}"
                )

    def _read_state(self) -> Any:
        path = self._queue / _STATE
        if not path.exists():
            raise ConfigError(
                f"{self._queue} lacks {_STATE}, which Scrapy writes when it stops. {_PAUSE_CLEANLY}"
            )
        return json.loads(path.read_text())

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

    # What is crawled already.

    async def started(self) -> list[Entry]:
        """The start requests that are not filtered, and that count as crawled or are pending.

        Runs the spider's ``start()``; call it after ``pending``.
        """
        keys = self._new_keys()
        requests = [
            (one.url, keys.plain(one), keys.is_repeatable(one))
            async for one in self._spider.start()
            if isinstance(one, Request)
        ]
        pending = [n for n, (_, plain, _) in enumerate(requests) if plain in self._pending_starts]
        known = requests[: pending[-1] + 1] if pending else requests
        return [
            _handled(keys.own(plain, is_start=True), url)
            for url, plain, is_repeatable in known
            if is_repeatable
        ]

    def seen(self) -> Iterator[Entry]:
        """A handled entry for each fingerprint; call it after ``pending``."""
        return (
            _handled(one, SEEN + one) for one in self._fingerprints() if one not in self._skipped
        )

    def _fingerprints(self) -> Iterator[str]:
        if not self._seen.is_file():
            return
        with self._seen.open("rb") as file:
            # Lines of hex digits up to Scrapy 2.18, since then bytes behind their length. Read as a
            # length, a digit would stand for more than 12,000 bytes.
            if set(file.peek(1)[:1]) <= _HEX:
                for line in file:
                    if line.endswith(b"\n"):
                        yield line.strip().decode()
                return
            while size := int.from_bytes(file.read(_SIZE_BYTES), "big"):
                fingerprint = file.read(size)
                if len(fingerprint) == size:  # else the crawl was killed while it wrote
                    yield fingerprint.hex()


def _full_files(folder: Path) -> set[str]:
    """The names of the files with requests."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != _STATE and path.stat().st_size > _HEADER
    }


def _handled(unique_key: str, url: str) -> Entry:
    return Entry(
        id=request_id(unique_key),
        unique_key=unique_key,
        url=url,
        headers={},
        no_retry=False,
        handled_at=datetime.now(UTC),
    )
