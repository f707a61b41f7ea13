"""Where a crawl begins: with a new queue, a resumed one, or one that is emptied first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from scrapy_apify_rq.actor.local_run import leave_mark, local_start
from scrapy_apify_rq.entries.foreign import apify_start_key
from scrapy_apify_rq.entries.unique_keys import request_id, start_key

if TYPE_CHECKING:
    from scrapy_apify_rq.backends.base import Backend
    from scrapy_apify_rq.config import Config
    from scrapy_apify_rq.crawl.feeds import History
    from scrapy_apify_rq.crawl.report import Report
    from scrapy_apify_rq.frontier.frontier import Frontier


class Beginning(NamedTuple):
    has_pending: bool
    """The queue holds pending entries."""
    is_new: bool
    """The queue holds nothing at all."""
    is_continued: bool
    """An earlier run has begun this crawl."""


async def begin(backend: Backend, config: Config, report: Report, history: History) -> Beginning:
    """Empty the queue if that is asked for, or if its last crawl is over and it is ours."""
    info = await backend.info()
    is_over = history.is_over and not info.pending
    # Over the API the queue may hold what others want to keep, as may a queue with a name. In
    # shared access a worker may start when the others have done everything.
    is_ours = config.queue_is_default and config.backend == "sqlite" and config.access == "single"
    has_any = info.total > 0 or history.crawl is not None
    start = local_start(config)
    why = "its crawl was finished" if is_over and is_ours and start != "go on" else None
    if config.purge_on_start:
        why = f"{info.pending} of them pending, since APIFY_RQ_PURGE_ON_START is set"
    elif start == "afresh":
        why = f"{info.pending} of them pending, since apify run was not told to --resurrect"
    leave_mark(config)
    if has_any and why is not None:
        items = 0 if backend.items is None else await backend.items.count()
        await backend.purge()
        report.emptied(info, items, why)
        return Beginning(has_pending=False, is_new=True, is_continued=False)
    report.opened(info, is_over=is_over)
    # What others have added to a queue with a name is another crawl.
    is_continued = history.crawl is not None and (
        not history.is_over or start == "go on" or (config.queue_is_default and info.pending > 0)
    )
    return Beginning(bool(info.pending), not info.total, is_continued)


async def remember_foreign_starts(backend: Backend, config: Config, frontier: Frontier) -> None:
    """Know what others have put into the queue that our start requests ask for, too.

    ``apify.scrapy`` puts random text before the keys of its start requests. The keys of Crawlee do
    not tell them from links, so each of its entries may be the page of one.
    """
    if config.unique_key == "fingerprint":
        return
    counts: Counter[str] = Counter()
    async for entry in backend.list():
        key = apify_start_key(entry)
        if key is None and config.unique_key != "extended" and "scrapy" not in entry.user_data:
            key = entry.unique_key
        if key is not None:
            counts[key] += 1
            frontier.remember(request_id(start_key(key, counts[key])))
