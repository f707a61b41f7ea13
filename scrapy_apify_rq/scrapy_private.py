"""All that a crawl uses of Scrapy's private names: a new version of Scrapy can break one file only.

There is no public signal for "Scrapy has finished with this request" and no public call that makes
the engine ask the scheduler again, hence ``engine._slot.inprogress`` and
``engine._slot.nextcall.schedule`` (scrapy/core/engine.py, the same from 2.13 to 2.19). Nor can a
spider be closed without waiting for its downloads, hence ``closing`` of the slots of engine and
scraper, without which only a stop in haste is slower. The rest is undocumented rather than private,
and nothing is lost where it changes: the list of spider middlewares, which matters before 2.16, and
the module names of Scrapy's commands.

``scrapy rq import-jobdir`` depends on more, and no crawl on it: ``jobdir`` reads the files that
Scrapy's scheduler wrote, and the command shows its queues an idle ``engine.downloader.slots``.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any

from scrapy import Request, __version__
from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from scrapy.core.engine import ExecutionEngine
    from scrapy.crawler import Crawler


def verify(engine: ExecutionEngine) -> None:
    """Raise RuntimeError unless the private names that we rely on are there."""
    slot = getattr(engine, "_slot", None)
    inprogress = getattr(slot, "inprogress", None)
    schedule = getattr(getattr(slot, "nextcall", None), "schedule", None)
    if not isinstance(inprogress, set) or not callable(schedule):
        raise RuntimeError(
            f"scrapy-apify-rq does not know the engine of Scrapy {__version__}: it lacks"
            " _slot.inprogress or _slot.nextcall.schedule. Install a version of scrapy-apify-rq"
            " that supports it."
        )


def running(engine: ExecutionEngine) -> AbstractSet[Request]:
    """The requests handed out whose callback and item pipelines have not ended yet."""
    slot = engine._slot
    return slot.inprogress if slot is not None else frozenset()


def wake(engine: ExecutionEngine) -> None:
    """Make the engine ask the scheduler soon instead of at its next heartbeat (5 seconds)."""
    if engine._slot is not None:
        engine._slot.nextcall.schedule()


def is_closing(engine: ExecutionEngine) -> bool:
    """The spider is being closed, or is closed already."""
    return engine._slot is None or engine._slot.closing is not None


def abandon(engine: ExecutionEngine) -> None:
    """Let a spider that is being closed wait no more for its downloads and callbacks."""
    for slot in (engine._slot, engine.scraper.slot):
        if slot is not None and slot.closing is not None and not slot.closing.called:
            # What ends later than this fires the new one, for which nobody waits.
            closing: Deferred[Any] = slot.closing
            slot.closing = Deferred()
            closing.callback(None)


def has_sync_only_middleware(engine: ExecutionEngine) -> bool:
    """True if a spider middleware takes no asynchronous output; Scrapy 2.16 and later refuse it."""
    methods = engine.scraper.spidermw.methods["process_spider_output"]
    return any(callable(method) and not isasyncgenfunction(method) for method in methods)


def is_crawl(crawler: Crawler) -> bool:
    """False in ``scrapy shell``, ``fetch``, ``view``, ``parse`` and ``check``.

    They run a spider of the project on requests of their own, which are none of the queue's
    business. The shell drives the engine itself, without ``Crawler.crawl()``; the others put a
    ``start`` of their own in the place of the spider's (scrapy/commands/).
    """
    start = getattr(crawler.spidercls, "start", None)
    return crawler.crawling and not getattr(start, "__module__", "").startswith("scrapy.commands.")
