"""What a crawl knows about its feeds, from its first run to the moment when they are stored.

A crawl is over when all of its pages are handled **and** its feeds are stored; only then may the
next run start afresh. Until then each run gives its feeds first what the runs before have saved, so
a feed ends as it would have without them. For that it keeps, beside the queue:

    crawl                   when it began, and ended; see ``CrawlNote``
    uri {feed} {batch}      where the first run has stored this batch: its name may hold the time.
                            Without its user and password
    file {path}             a local file, before the crawl wrote to it

What is noted about a file is stored before the file is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError
from scrapy.extensions.feedexport import (
    FeedSlot,
    FileFeedStorage,
    GCSFeedStorage,
    S3FeedStorage,
    StdoutFeedStorage,
)

from scrapy_apify_rq.crawl.feed_files import LocalFile
from scrapy_apify_rq.errors import BackendError, CodecError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from scrapy.http import Response

    from scrapy_apify_rq.backends.base import ItemStore
    from scrapy_apify_rq.crawl.items import Items
    from scrapy_apify_rq.crawl.report import Report
    from scrapy_apify_rq.entries.saved_items import ItemCodec

_CRAWL: Final = "crawl"
# These overwrite, whatever the feed's options say, or cannot take anything back.
_NEVER_APPEND: Final = (FileFeedStorage, StdoutFeedStorage, S3FeedStorage, GCSFeedStorage)


class CrawlNote(BaseModel):
    began: float
    """Unix time."""
    ended: float | None = None
    """When its feeds were stored, after all of its pages were handled."""
    after: int = 0
    """Items with numbers up to this are those of earlier crawls of the queue."""
    has_gaps: bool = False
    """A run of it has not saved its items."""
    sent: dict[str, int] = {}
    """Of feeds that a remote storage appends to: the number of the last item that was stored."""


class History(NamedTuple):
    """What earlier runs have noted."""

    crawl: CrawlNote | None
    notes: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """The last crawl needs no more runs. One of version 0.1.0 does not say."""
        return self.crawl is None or self.crawl.ended is not None

    @classmethod
    async def read(cls, store: ItemStore | None) -> History:
        notes = {} if store is None else await store.notes()
        crawl = _parsed(CrawlNote, notes[_CRAWL]) if _CRAWL in notes else None
        if crawl is None and store is not None and await store.count():
            crawl = CrawlNote(began=time.time())  # another queue's, whose items were imported
        return cls(crawl, notes)


class Feeds:
    """The feeds of this run.

    ``items`` is None if the run saves none; then its feeds are on their own. ``history`` is what
    earlier runs of the same crawl have noted, empty for its first run. ``fail`` closes the spider
    with an error.
    """

    def __init__(
        self,
        store: ItemStore,
        codec: ItemCodec,
        report: Report,
        items: Items | None,
        *,
        history: History,
        fail: Callable[[BackendError], None],
    ) -> None:
        self._store = store
        self._codec = codec
        self._report = report
        self.fail = fail
        self.items = items
        self.is_continued = history.crawl is not None
        self.is_complete = False
        """The crawl has nothing left to do but to store its feeds."""
        self.has_all = True
        """The feeds have all items of earlier runs, and of this one."""
        self.are_ready = asyncio.Event()
        """They have been given the items of earlier runs."""
        self.left_alone: set[str] = set()
        """Feeds that get no items of earlier runs."""
        self._notes = dict(history.notes)
        self.crawl = history.crawl or CrawlNote(began=time.time())
        self._others: list[tuple[CrawlNote | None, set[str]]] = []
        self._unsaved: dict[str, str] = {}
        self._are_new = not self.is_continued
        """The notes of earlier crawls are to be forgotten."""
        self._saving = asyncio.Lock()
        self._cannot_save = False
        self._when_stored: Callable[[], Awaitable[None]] | None = None
        self._is_open = False
        self._last = 0
        """The number of the last item that earlier runs have saved."""
        self._given = 0
        """The number of the last item that the feeds have been given."""
        self._taken: dict[str, bool] = {}
        """By path, the files of earlier runs that feeds of this run write; True for those that were
        brought back to where they were when the crawl began."""

    async def open(self) -> None:
        """Note that the crawl is not over. That is stored no later than its first item."""
        self._last = await self._store.last()
        if not self.is_continued:
            self.crawl.after = self._last
        self.crawl.ended = None
        self.crawl.has_gaps = self.crawl.has_gaps or self.items is None
        self._note_crawl()
        files = [name for name in self._notes if name.startswith("file ")]
        if files:
            for notes in await self._store.notes_of_others([_CRAWL, *files]):
                crawl = _parsed(CrawlNote, notes[_CRAWL]) if _CRAWL in notes else None
                self._others.append((crawl, set(notes) - {_CRAWL}))

    # Notes.

    @property
    def has_unsaved(self) -> bool:
        return bool(self._unsaved)

    async def save(self) -> None:
        """Store what was noted. No file is to be written before, and no page with items acked.

        Raises BackendError the first time it fails; then the spider is closed, and must not wait.
        """
        async with self._saving:
            while self._unsaved and not self._cannot_save:
                unsaved = dict(self._unsaved)
                try:
                    await self._store.note(unsaved, anew=self._are_new)
                except BackendError:
                    self._cannot_save = True
                    raise
                self._are_new = False
                for name, text in unsaved.items():
                    if self._unsaved.get(name) == text:
                        del self._unsaved[name]

    async def scraped(self, item: Any, response: Response | None = None) -> bool:
        """Save an item, if items are saved. Return whether the feeds are to get it now: not if an
        earlier run has saved it already, nor if the next run could not take it away again.
        """
        is_new = self.items is None or await self.items.scraped(item, response)
        try:
            await self.save()
        except BackendError as error:
            self.fail(error)
        if self.items is not None and self.has_unsaved:
            self.has_all = False
            return False
        return is_new

    def _note(self, name: str, text: str) -> None:
        if self._notes.get(name) != text:
            self._notes[name] = self._unsaved[name] = text

    def _note_crawl(self) -> None:
        self._note(_CRAWL, self.crawl.model_dump_json())

    # Where a batch goes.

    def uri(self, feed: str, batch: int, uri: str) -> str:
        """Where the batch was stored first. If never, it is ``uri``, for later runs too."""
        if uri == feed:
            return uri
        before, user, after = _parts(uri)
        name = f"uri {_without_user(feed)} {batch}"
        if name not in self._notes:
            self._note(name, before + after)
        before, _, after = _parts(self._notes[name])
        return before + user + after

    def begins(self, slot: FeedSlot) -> None:
        """A batch is to be written: see to it that it begins where it began first."""
        feed, storage = slot.uri_template, slot.storage
        path = _absolute(storage) if isinstance(storage, FileFeedStorage) else None
        appended = isinstance(storage, FileFeedStorage) and storage.write_mode == "ab"
        if slot.batch_id == 1 and self.is_continued and self.items is not None:
            self._restore(feed, path, appended=appended)
        if path is not None and (Path(path).is_file() or not Path(path).exists()):
            known = self._file(path)
            if known is None or known.appended != appended:
                self._note_file(path, LocalFile.now(path, feed, appended=appended))
            elif feed not in known.feeds:
                known.feeds.append(feed)
                self._note_file(path, known)

    def _restore(self, feed: str, path: str | None, *, appended: bool) -> None:
        """Take away what earlier runs have written to this feed's local files, and to ``path``. If
        two feeds write one file, once is enough.
        """
        files = {
            name.removeprefix("file "): LocalFile.model_validate_json(text)
            for name, text in self._notes.items()
            if name.startswith("file ")
        }
        files = {name: file for name, file in files.items() if feed in file.feeds or name == path}
        new = files.keys() - self._taken.keys()
        for name in new:
            self._taken[name] = not appended or self._is_ours(name, files[name])
        if not all(self._taken[name] for name in files):
            self.left_alone.add(feed)
            return
        for name in new:
            if not files[name].restore(name):
                self._note_file(name, LocalFile.now(name, feed, appended=appended))

    def _is_ours(self, path: str, file: LocalFile) -> bool:
        """Whether nobody else has written what follows."""
        if file.appended and self._is_shared(path):
            self._report.shared_feed(path)
            return False
        if file.appended and file.is_replaced(path):
            self._report.replaced_feed(path)
            return False
        return True

    def _is_shared(self, path: str) -> bool:
        """Whether another crawl may have written to this file since ours began."""
        return any(
            f"file {path}" in files
            and (crawl is None or crawl.ended is None or crawl.ended > self.crawl.began)
            for crawl, files in self._others
        )

    def written(self, slot: FeedSlot) -> None:
        """An item was exported. What is appended must be out of this process before its page is
        acked, in case another crawl appends to the same file.
        """
        storage, file = slot.storage, slot.file
        if not isinstance(storage, FileFeedStorage) or file is None or file.closed:
            return
        if storage.write_mode == "ab":
            file.flush()
            if slot.itemcount == 1 and (known := self._file(path := _absolute(storage))):
                known.inode = Path(path).stat().st_ino
                self._note_file(path, known)

    def _file(self, path: str) -> LocalFile | None:
        text = self._notes.get(f"file {path}")
        return None if text is None else LocalFile.model_validate_json(text)

    def _note_file(self, path: str, file: LocalFile) -> None:
        self._note(f"file {path}", file.model_dump_json())

    # What earlier runs have saved.

    async def saved(self) -> AsyncIterator[tuple[int, Any]]:
        """Yield the numbers and items of the earlier runs of this crawl.

        Raises BackendError if one cannot be read.
        """
        if not self.is_continued or self.items is None or not self._last:
            return
        number = 0
        async for saved in self._store.read(self.crawl.after, own=True):
            if saved.number > number:  # those before it are complete
                self._given, number = number, saved.number
            if number > self._last:
                break
            try:
                item = self._codec.read(saved.json)
            except CodecError as error:
                raise BackendError(
                    f"A saved item of entry {saved.entry} cannot be read: {error}. Nothing is lost:"
                    " undo what has changed in the project since, or export what is saved with"
                    " scrapy rq items, and run the spider again.",
                    "apify_rq_items",
                ) from error
            yield saved.number, item
        self._given = self._last

    def report_replay(self, count: int) -> None:
        if count or not self.has_all:
            self._report.replayed(count, is_complete=self.has_all)

    def begins_after(self, slot: FeedSlot) -> int:
        """The number of the last item that the feed's storage has already."""
        feed = _without_user(slot.uri_template)
        return self.crawl.sent.get(feed, 0) if _appends_remotely(slot) else 0

    # The end.

    def wait_for(self, then: Callable[[], Awaitable[None]]) -> bool:
        """Call ``then`` once the feeds are stored. False if there are none to wait for."""
        if self._is_open:
            self._when_stored = then
        return self._is_open

    @property
    def is_waited_for(self) -> bool:
        return self._when_stored is not None

    def opened(self) -> None:
        self._is_open = True

    async def stored(self, slots: list[FeedSlot], failed: set[str]) -> None:
        """All feeds are stored, but for those in ``failed``."""
        self._is_open = False
        remote = [slot for slot in slots if _appends_remotely(slot)]
        last = await self._store.last() if remote and self.has_all else self._given
        for slot in remote:
            if slot.uri_template not in failed:
                feed = _without_user(slot.uri_template)
                self.crawl.sent[feed] = max(last, self.begins_after(slot))
        await self.end(is_stored=not failed)

    async def end(self, *, is_stored: bool = True) -> None:
        # Without saved items, another run could not give its feeds more than this one has.
        if self.is_complete and (self.items is None or (is_stored and self.has_all)):
            self.crawl.ended = time.time()
        self._note_crawl()
        await self.save()

    async def let_go(self) -> None:
        then, self._when_stored = self._when_stored, None
        if then is not None:
            await then()


def _absolute(storage: FileFeedStorage) -> str:
    return str(Path(storage.path).resolve())


def _parts(uri: str) -> tuple[str, str, str]:
    """Split it where its user and password are, which are not to be stored."""
    scheme, colon, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    return scheme + colon, user + at, host + slash + path


def _without_user(uri: str) -> str:
    before, _, after = _parts(uri)
    return before + after


def _appends_remotely(slot: FeedSlot) -> bool:
    is_remote = not isinstance(slot.storage, _NEVER_APPEND)
    return is_remote and slot.feed_options.get("overwrite", True) is False


def _parsed(model: type[CrawlNote], text: str) -> CrawlNote:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise BackendError(
            f"Another program has changed what is noted about the feeds of this crawl ({problem})."
            " scrapy rq items exports what is saved; after scrapy rq purge the crawl begins anew."
        ) from error
