"""Another program locks the embedded queue: a while is waited for, longer closes the spider."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from scrapy import Request

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

PATHS = [f"/{n}" for n in range(40)]
IMPATIENT = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5}
ONE_PAGE = {"CLOSESPIDER_PAGECOUNT": 1}


@contextmanager
def locked(queue: Queue) -> Iterator[None]:
    with closing(sqlite3.connect(queue.folder / FILE_NAME, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


async def longest_stall(seconds: float) -> float:
    """How long the event loop stood still at most, in the next so many seconds."""
    loop = asyncio.get_running_loop()
    last = begun = loop.time()
    longest = 0.0
    while last < begun + seconds:
        await asyncio.sleep(0.01)
        last, before = loop.time(), last
        longest = max(longest, last - before)
    return longest


async def crawl_until_20(site: Site, crawls: Crawls, **settings: Any) -> tuple[Crawl, Held]:
    """All 41 requests are in the queue by then."""
    held = Held("page")
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, "page"), "/20": held})
    crawl = await crawls.start(Links, settings, site=site.url)
    await wait_until(held.begun.is_set)
    await wait_until(lambda: crawl.stats["apify_rq/enqueued"] == 41)
    return crawl, held


async def test_too_long_a_lock_closes_the_spider(site: Site, queue: Queue, crawls: Crawls) -> None:
    crawl, held = await crawl_until_20(site, crawls, **IMPATIENT)
    with locked(queue):
        held.go.set()
        await crawl.end()
    assert crawl.reason == "apify_rq_unavailable"
    assert crawl.log_text.count("The spider is closed (apify_rq_unavailable)") == 1
    assert "Not saved: " in crawl.log_text
    assert not any(record.exc_info for record in crawl.log)
    pending = (await queue.info()).pending
    assert pending > 0
    again = await crawls.run(Links, site=site.url)
    assert len(again.paths) == pending == again.stats["apify_rq/handled"]
    assert set(site.paths) == {"/", *PATHS}
    assert again.reason == "finished"
    assert (await queue.info()).pending == 0


async def test_a_shorter_lock_is_waited_for(site: Site, queue: Queue, crawls: Crawls) -> None:
    crawl, held = await crawl_until_20(site, crawls)
    with locked(queue):
        held.go.set()
        assert await longest_stall(1.2) < 0.6
        assert not crawl.task.done()
    await crawl.end()
    assert crawl.reason == "finished"
    assert sorted(site.paths) == sorted(["/", *PATHS])
    assert crawl.stats["apify_rq/handled"] == 41


async def crawl_until_first(
    site: Site, crawls: Crawls, page: str, **settings: Any
) -> tuple[Crawl, Held]:
    held = Held(page)
    site.serve({"/": held})
    crawl = await crawls.start(Counts, settings, site=site.url)
    await wait_until(held.begun.is_set)
    return crawl, held


class Counts(Links):
    """Counts what is in the queue when the spider is closed: in all, and handled."""

    counted = (-1, -1)

    def closed(self, reason: str) -> None:
        settings = self.crawler.settings
        file = Path(settings["APIFY_RQ_STORAGE_DIR"]) / FILE_NAME
        with closing(sqlite3.connect(file)) as db:
            self.counted = db.execute("SELECT total, handled FROM queues").fetchone()


async def test_a_flush_that_fails_is_reported(site: Site, queue: Queue, crawls: Crawls) -> None:
    settings = {**IMPATIENT, **ONE_PAGE}
    crawl, held = await crawl_until_first(site, crawls, links("/a", "/b"), **settings)
    with locked(queue):
        held.go.set()
        await crawl.end()
    assert crawl.reason == "closespider_pagecount"
    assert "Not saved: 1 requests that were finished or retried" in crawl.log_text
    assert "and 2 new requests, which are not in the queue" in crawl.log_text
    assert "never retrieved" not in crawl.log_text
    assert not (await queue.entry("/")).is_handled


async def test_close_flushes_and_leaves_the_rest_pending(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """The queue is locked while the spider closes, so that nothing can be saved at once."""
    paths = [f"/{n}" for n in range(300)]
    site.serve(dict.fromkeys(paths, "page"))
    crawl, held = await crawl_until_first(site, crawls, links(*paths), **ONE_PAGE)
    with locked(queue):
        held.go.set()
        await asyncio.sleep(0.7)
        assert not crawl.task.done()
    await crawl.end()
    assert crawl.reason == "closespider_pagecount"
    assert crawl.spider.counted == (301, len(set(site.paths)))
    entries = await queue.entries()
    pending = {entry.url.removeprefix(site.url) for entry in entries if not entry.is_handled}
    assert pending == {"/", *paths} - set(site.paths)


class StartsWithoutEnd(Counts):
    async def start(self) -> AsyncIterator[Any]:
        n = 0
        while True:
            yield Request(f"{self.site}/{n}", self.note)
            n += 1


async def test_close_does_not_wait_for_a_start_without_end(queue: Queue, crawls: Crawls) -> None:
    settings = {"CLOSESPIDER_PAGECOUNT": 5, "APIFY_RQ_OUTBOX": 50}
    with Site({}, default="page") as site:
        crawl = await crawls.run(StartsWithoutEnd, settings, site=site.url)
    assert crawl.reason == "closespider_pagecount"
    info = await queue.info()
    assert crawl.spider.counted == (info.total, info.handled)
    assert info.handled == len(site.paths)


async def test_a_start_without_end_does_not_keep_a_failed_crawl_open(
    queue: Queue, crawls: Crawls
) -> None:
    held = Held("page")
    with Site({"/5": held}, default="page") as site:
        settings = {**IMPATIENT, "APIFY_RQ_OUTBOX": 50}
        crawl = await crawls.start(StartsWithoutEnd, settings, site=site.url)
        await wait_until(held.begun.is_set)
        with locked(queue):
            held.go.set()
            await crawl.end()
    assert crawl.reason == "apify_rq_unavailable"
