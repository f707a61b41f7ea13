"""One entry on its way through this process."""

from __future__ import annotations

from dataclasses import dataclass

from scrapy import Request

from scrapy_apify_rq.backends.base import EntryItems
from scrapy_apify_rq.entries.converter import stored_priority, stored_spider_errors
from scrapy_apify_rq.entries.models import Entry


@dataclass(slots=True, eq=False)
class Visit:
    """One entry on its way through this process: from its add or claim until its ack or requeue is
    confirmed.
    """

    entry: Entry | None
    """None: the request cannot be written and lives in memory only."""
    request: Request | None = None
    """The live request; None until a claimed entry is handed out."""
    priority: int = 0
    """Scrapy's: greater first."""
    is_retry: bool = False
    """It was tried before."""
    forefront: bool = False
    """The backend stores it at the front of the queue."""
    newest_first: bool = False
    """Among its equals it is handed out last in, first out (APIFY_RQ_ORDER = "lifo")."""
    is_start: bool = False
    """It comes from ``start()``; with ``newest_first`` its equals that do not go before it."""
    not_before: float = 0.0
    """The time of the monotonic clock before which it must not be handed out."""
    spider_errors: int = 0
    """How many times it was requeued because its callback raised."""
    lease: float | None = None
    """Unix time at which the lease ends, 0 once it is lost; None where no lease is needed."""
    size: int = 0
    """Bytes that it holds in memory, about. Not to be changed while it waits in the frontier."""
    items: EntryItems | None = None
    """What was scraped from it, to be saved with its ack or requeue."""
    slot: str | None = None
    """The download slot in whose line it waits; None until it has been in the window."""
    key: str = ""
    """The unique key of a request that lives in memory only."""

    @classmethod
    def of(cls, entry: Entry) -> Visit:
        """Of an entry that was claimed."""
        return cls(
            entry,
            priority=stored_priority(entry),
            is_retry=entry.retry_count > 0,
            spider_errors=stored_spider_errors(entry),
            size=entry.size,
        )


def entry_of(visit: Visit) -> Entry:
    """The entry of a visit that must have one: outbox and backend hold no others."""
    assert visit.entry is not None
    return visit.entry
