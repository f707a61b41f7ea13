"""What is known about one request in flight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from scrapy import Request
from scrapy.utils.python import global_object_name
from scrapy.utils.response import response_status_message

from scrapy_apify_rq.backends.base import EntryItems
from scrapy_apify_rq.crawl.outgoing import Outgoing
from scrapy_apify_rq.entries.mending import well_formed
from scrapy_apify_rq.frontier.visit import Visit

_MESSAGE_LIMIT: Final = 1000


class Stage(IntEnum):
    """How far a request in flight has come."""

    DOWNLOADING = 0
    DOWNLOADED = 1
    """The downloader has answered, or failed."""
    SCRAPING = 2
    """The response has reached the callback."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class Flight:
    """One request in flight, and what the middlewares have reported about it."""

    visit: Visit
    request: Request
    outgoing: Outgoing
    stage: Stage = Stage.DOWNLOADING
    status: int | None = None
    """Of the last response that the downloader gave."""
    retry_after: bytes | None = None
    """The header of that response."""
    download_error: str | None = None
    loaded_url: str | None = None
    """Where the response came from that the callback got, or the URL of the replacement."""
    callback_error: str | None = None
    retry: Request | None = None
    """This same request, to be tried again by Scrapy's retry machinery."""
    replacement: Request | None = None
    """What a downloader middleware has put in its place, for example to follow a redirect."""
    waiting: list[Visit] = field(default_factory=list)
    """Visits of this very request object, which was scheduled more than once."""
    children: set[Visit] = field(default_factory=set)
    """What it led to and what lives in memory only: a crash must bring it back by repeating this
    request, so the verdict waits for it."""

    items: list[str] = field(default_factory=list)
    """What was scraped from it and is to be saved with its verdict, as JSON."""
    items_size: int = 0
    spill: str | None = None
    """Names those of its items that were sent ahead, because they are many."""
    made: Counter[str] = field(default_factory=Counter)
    """How many requests of each kind it has led to that must not be filtered."""

    @property
    def identity(self) -> str:
        """The same in each run that tries this request, and another one for each retry."""
        entry = self.visit.entry
        if entry is not None:
            return f"{entry.id}:{entry.retry_count}"
        return f"{self.visit.key}:{self.request.meta.get('retry_times', 0)}"

    @property
    def harvest(self) -> EntryItems | None:
        """All its items; None if it has none."""
        if not self.items and self.spill is None:
            return None
        return EntryItems(self.items, self.spill)

    @property
    def _status_text(self) -> str | None:
        return None if self.status is None else response_status_message(self.status)

    @property
    def problem(self) -> str | None:
        """Why Scrapy gave up on the request; None if it reached its callback or was replaced."""
        if self.callback_error is not None:
            return self.callback_error
        if self.stage is Stage.SCRAPING or self.loaded_url is not None:
            return None
        if self.download_error is not None or self.status is None:
            return self.download_error
        if self.status < 400:
            return f"{self._status_text}, but a middleware kept it from the callback"
        return self._status_text

    @property
    def retry_reason(self) -> str:
        if self.callback_error is not None:
            return self.callback_error
        if self.stage is Stage.SCRAPING:
            return f"{self._status_text}, but the callback asked for a retry"
        return self.download_error or self._status_text or "a middleware asked for a retry"


def describe(error: BaseException) -> str:
    """An exception as one line of ``errorMessages``."""
    name = global_object_name(type(error)).removeprefix("builtins.")
    text = f"{name}: {error}"[:_MESSAGE_LIMIT] if str(error) else name
    return well_formed(text)
