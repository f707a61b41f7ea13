"""Which requests the crawl has seen: their unique keys, and the filter of the project.

The queue itself is the filter, since it holds one entry for each unique key. A ``DUPEFILTER_CLASS``
of the project is asked first; with ``BaseDupeFilter`` nothing is filtered. See
https://docs.scrapy.org/en/latest/topics/settings.html#dupefilter-class
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from scrapy import Request, Spider
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.utils.defer import maybe_deferred_to_future
from scrapy.utils.misc import build_from_crawler, load_object

from scrapy_apify_rq.crawl.inflight import is_start
from scrapy_apify_rq.entries.unique_keys import Keys, request_id

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.config import Config
    from scrapy_apify_rq.frontier.frontier import Frontier


class Duplicates:
    """Gives each request its unique key, and says which requests are not to be crawled."""

    def __init__(self, crawler: Crawler, config: Config, frontier: Frontier) -> None:
        self._spider = cast("Spider", crawler.spider)
        self._frontier = frontier
        self._keys = Keys(crawler, config.unique_key)
        cls = load_object(crawler.settings["DUPEFILTER_CLASS"])
        is_stock = cls in (BaseDupeFilter, RFPDupeFilter)
        self._filter: BaseDupeFilter | None = None if is_stock else build_from_crawler(cls, crawler)
        # For its log line and stat only. Its from_crawler() would write a set of seen requests of
        # its own to JOBDIR.
        self._stock = RFPDupeFilter(
            debug=crawler.settings.getbool("DUPEFILTER_DEBUG"),
            fingerprinter=crawler.request_fingerprinter,
        )

    async def open(self) -> None:
        if self._filter is not None and (opened := self._filter.open()) is not None:
            await maybe_deferred_to_future(opened)

    async def close(self, reason: str) -> None:
        if self._filter is not None and (closed := self._filter.close(reason)) is not None:
            await maybe_deferred_to_future(closed)

    def new_key(self, request: Request) -> str | None:
        """The unique key of a request that is to be crawled; None if it is a duplicate.

        Ask once for each request, since repeatable start requests are counted.
        """
        key = self._keys.plain(request)
        is_repeatable = self._keys.is_repeatable(request)
        if is_repeatable:
            key = self._keys.own(key, is_start=is_start())
        elif self._filter is not None and self._filter.request_seen(request):
            self._filter.log(request, self._spider)
            return None
        # An earlier run may have added this start request, and the queue given it to us by now.
        if self._frontier.knows(request_id(key)):
            self.log(request)
            return None
        return key

    def needs_room(self, request: Request) -> bool:
        """Whether the outbox has to take the request; it does not take a duplicate."""
        try:
            # Fingerprints are cached for the object asked for, which a middleware may still change.
            copy = request.copy()
        except Exception:
            return True  # a class that cannot be copied
        known = self._frontier.knows
        return self._keys.is_repeatable(copy) or not known(request_id(self._keys.plain(copy)))

    def log(self, request: Request) -> None:
        """Log and count a duplicate as Scrapy does."""
        self._stock.log(request, self._spider)
