"""In which lines requests wait: what SCHEDULER_PRIORITY_QUEUE means for the queue's window.

Scrapy's two classes are not used themselves, because they hold requests and the window holds
entries that are not decoded yet; their rules are kept:

    DownloaderAwarePriorityQueue   one line for each download slot (the default)
    ScrapyPriorityQueue            one line for all

Any other class is not called: a subclass of the second means one line, all others the first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scrapy.pqueues import DownloaderAwarePriorityQueue, ScrapyPriorityQueue
from scrapy.utils.misc import load_object

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.entries.hosts import named_slot
from scrapy_apify_rq.frontier.slots import OneLine, Slots
from scrapy_apify_rq.frontier.visit import Visit, entry_of

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from scrapy_apify_rq.entries.models import Entry

logger = logging.getLogger(__name__)


def slots_of(crawler: Crawler) -> Slots:
    """What the settings of this crawl ask for."""
    settings = crawler.settings
    cls: Any = load_object(settings["SCHEDULER_PRIORITY_QUEUE"])
    in_one_line = isinstance(cls, type) and issubclass(cls, ScrapyPriorityQueue)
    problem = None
    if cls not in (DownloaderAwarePriorityQueue, ScrapyPriorityQueue):
        problem = (
            f"SCHEDULER_PRIORITY_QUEUE is {settings['SCHEDULER_PRIORITY_QUEUE']}, which the request"
            " queue cannot use. Set it to a class of scrapy.pqueues"
        )
    elif in_one_line:
        pass
    elif int(settings["CONCURRENT_REQUESTS_PER_IP"] or 0):
        in_one_line = True
        problem = (
            "CONCURRENT_REQUESTS_PER_IP is set, so hosts cannot take turns. Set"
            " CONCURRENT_REQUESTS_PER_DOMAIN instead"
        )
    elif not scrapy_private.has_download_slots(crawler.engine):
        in_one_line = True
        problem = f"DOWNLOADER is {settings['DOWNLOADER']}, which has no download slots"
    if problem is not None:
        how = "in one line" if in_one_line else "in a line for each download slot"
        logger.warning("%s. Requests wait %s", problem, how, extra={"spider": crawler.spider})
    return OneLine() if in_one_line else DownloadSlots(crawler)


class DownloadSlots:
    """The slots of Scrapy's downloader."""

    are_hosts = True

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    def key(self, visit: Visit) -> str:
        request = visit.request or _Outline(entry_of(visit))
        return scrapy_private.slot_key(self._crawler.engine, request)

    def active(self, key: str) -> int:
        return scrapy_private.slot_active(self._crawler.engine, key)

    def is_full(self, key: str) -> bool:
        return scrapy_private.slot_is_full(self._crawler.engine, key)

    def is_busy(self, key: str) -> bool:
        return scrapy_private.slot_is_busy(self._crawler.engine, key)


class _Outline:
    """As much of a request that is not decoded yet as tells its download slot."""

    __slots__ = ("__weakref__", "meta", "url")

    def __init__(self, entry: Entry) -> None:
        self.url = entry.url
        self.meta = {"download_slot": named_slot(entry.user_data)}
