"""Which requests the crawl has seen: their unique keys, and the filter of the project.

The queue itself is the filter, since it holds one entry for each unique key. With
``BaseDupeFilter`` nothing is filtered. A ``DUPEFILTER_CLASS`` of the project decides in both
directions: if it is an ``RFPDupeFilter`` with fingerprints of its own, these are the unique keys.
Any other is asked, and what it lets through has a key of its own; a resumed crawl first shows it
all requests of the queue. See
https://docs.scrapy.org/en/latest/topics/settings.html#dupefilter-class
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeGuard, cast

from scrapy import Request, Spider
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.utils.defer import maybe_deferred_to_future
from scrapy.utils.misc import build_from_crawler, load_object

from scrapy_apify_rq.crawl.inflight import is_start
from scrapy_apify_rq.entries.unique_keys import Keys, request_id
from scrapy_apify_rq.errors import CodecError

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.backends.base import Backend
    from scrapy_apify_rq.config import Config
    from scrapy_apify_rq.entries.converter import RequestConverter
    from scrapy_apify_rq.entries.unique_keys import Parent
    from scrapy_apify_rq.frontier.frontier import Frontier


EACH_RUN: Final = "apify_rq_each_run"
"""A start request with this key in its meta is repeated by each run of a crawl."""


class Duplicates:
    """Gives each request its unique key, and says which requests are not to be crawled."""

    def __init__(self, crawler: Crawler, config: Config, frontier: Frontier) -> None:
        self._spider = cast("Spider", crawler.spider)
        self._frontier = frontier
        self._repeats_start = config.repeat_start
        cls = load_object(crawler.settings["DUPEFILTER_CLASS"])
        is_stock = cls in (BaseDupeFilter, RFPDupeFilter)
        self._filter: BaseDupeFilter | None = None if is_stock else build_from_crawler(cls, crawler)
        # For its log line and stat only. Its from_crawler() would write a set of seen requests of
        # its own to JOBDIR.
        self._logs: RFPDupeFilter = RFPDupeFilter(
            debug=crawler.settings.getbool("DUPEFILTER_DEBUG"),
            fingerprinter=crawler.request_fingerprinter,
        )
        fingerprint = None
        if config.unique_key == "fingerprint" and _differs_by_fingerprint(self._filter):
            fingerprint = self._filter.request_fingerprint
            self._logs = self._filter
        self._keys = Keys(crawler, config.unique_key, fingerprint)
        self._asks = self._filter is not None and fingerprint is None
        """The filter of the project has a memory of its own, and has to be asked."""

    async def open(self) -> None:
        if self._filter is not None and (opened := self._filter.open()) is not None:
            await maybe_deferred_to_future(opened)

    async def close(self, reason: str) -> None:
        if self._filter is not None and (closed := self._filter.close(reason)) is not None:
            await maybe_deferred_to_future(closed)

    async def resume(self, backend: Backend, converter: RequestConverter) -> None:
        """Show the project's filter what earlier runs have crawled, or still have to."""
        if self._filter is None or not self._asks:
            return
        async for entry in backend.list():
            self._frontier.remember(entry.id)
            with suppress(CodecError):  # reported when it is its turn
                request = converter.decode(entry)
                # Scrapy shows it no others. A retry has dont_filter whatever its first try had.
                is_retry = entry.retry_count and request.meta.get("retry_times")
                if is_retry or not self._keys.is_repeatable(request):
                    self._filter.request_seen(request)

    def new_key(
        self, request: Request, content: Callable[[], str], parent: Parent | None
    ) -> str | None:
        """The unique key of a request that is to be crawled; None if it is a duplicate.

        ``parent`` is the request in flight on whose behalf it is made. Ask once for each request,
        since those that must not be filtered are counted.
        """
        key = self._keys.plain(request)
        if self._keys.is_repeatable(request) or self._asks:
            key = self._own_key(request, key, content(), parent)
        # An earlier run may have added this request, and the queue given it to us by now.
        if self._frontier.knows(request_id(key)):
            self.log(request)
            return None
        if self._asks and not self._keys.is_repeatable(request) and self._is_seen(request):
            return None
        return key

    def _own_key(self, request: Request, plain: str, content: str, parent: Parent | None) -> str:
        if is_start():
            each_run = self._repeats_start or request.meta.get(EACH_RUN) is True
            return self._keys.of_start(plain, content, each_run=each_run)
        if parent is not None:
            return self._keys.of_child(plain, content, parent)
        return self._keys.of_none(plain)

    def _is_seen(self, request: Request) -> bool:
        assert self._filter is not None
        if not self._filter.request_seen(request):
            return False
        self._filter.log(request, self._spider)
        return True

    def needs_room(self, request: Request) -> bool:
        """Whether the outbox has to take the request; it does not take a duplicate."""
        try:
            # Fingerprints are cached for the object asked for, which a middleware may still change.
            copy = request.copy()
        except Exception:
            return True  # a class that cannot be copied
        if self._asks or self._keys.is_repeatable(copy):
            return True
        return not self._frontier.knows(request_id(self._keys.plain(copy)))

    def log(self, request: Request) -> None:
        """Log and count a duplicate as Scrapy does, or as the project's filter does."""
        self._logs.log(request, self._spider)


def _differs_by_fingerprint(filter: BaseDupeFilter | None) -> TypeGuard[RFPDupeFilter]:  # noqa: A002 (Scrapy's word)
    """Whether the filter only says which requests are the same, so that the queue can filter."""
    return (
        isinstance(filter, RFPDupeFilter)
        and type(filter).request_seen is RFPDupeFilter.request_seen
    )
