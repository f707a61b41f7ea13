"""Another program locks the embedded queue: a while is waited for, longer closes the spider."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
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


class Counts(Links):
    """Counts what is in the queue when the spider is closed: in all, and handled."""

    counted = (-1, -1)

    def closed(self, reason: str) -> None:
        file = Path(self.crawler.settings["APIFY_RQ_STORAGE_DIR"]) / FILE_NAME
        with closing(sqlite3.connect(file)) as db:
            self.counted = db.execute("SELECT total, handled FROM queues").fetchone()


class StartsWithoutEnd(Counts):
    async def start(self) -> AsyncIterator[Any]:
        n = 0
        while True:
            yield Request(f"{self.site}/{n}", self.note)
            n += 1


async def crawl_until(
    held: Held, site: Site, crawls: Crawls, spider: type = Counts, **settings: Any
) -> Crawl:
    crawl = await crawls.start(spider, settings, site=site.url)
    await wait_until(held.begun.is_set)
    return crawl


async def test_too_long_a_lock_closes_the_spider(site: Site, queue: Queue, crawls: Crawls) -> None:
    held = Held("page")
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, "page"), "/20": held})
    crawl = await crawl_until(held, site, crawls, **IMPATIENT)
    await wait_until(lambda: crawl.stats["apify_rq/enqueued"] == 41)
    with queue.locked_file():
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


async def test_a_flush_that_fails_is_reported(site: Site, queue: Queue, crawls: Crawls) -> None:
    held = Held(links("/a", "/b"))
    site.serve({"/": held})
    crawl = await crawl_until(held, site, crawls, **IMPATIENT, CLOSESPIDER_PAGECOUNT=1)
    with queue.locked_file():
        held.go.set()
        await crawl.end()
    assert crawl.reason == "closespider_pagecount"
    assert "Not saved: the end or retry of 1 request, still pending" in crawl.log_text
    assert "and 2 new requests, not in the queue" in crawl.log_text
    assert "never retrieved" not in crawl.log_text
    assert not (await queue.entry("/")).is_handled


async def test_close_waits_flushes_and_leaves_the_rest_pending(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """The queue is locked while the spider closes, so that nothing can be saved at once."""
    paths = [f"/{n}" for n in range(300)]
    held = Held(links(*paths))
    site.serve({**dict.fromkeys(paths, "page"), "/": held})
    crawl = await crawl_until(held, site, crawls, CLOSESPIDER_PAGECOUNT=1)
    with queue.locked_file():
        held.go.set()
        await asyncio.sleep(0.7)
        assert not crawl.task.done()
    await crawl.end()
    assert crawl.reason == "closespider_pagecount"
    assert crawl.spider.counted == (301, len(set(site.paths)))
    entries = await queue.entries()
    pending = {entry.url.removeprefix(site.url) for entry in entries if not entry.is_handled}
    assert pending == {"/", *paths} - set(site.paths)


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
        crawl = await crawl_until(held, site, crawls, StartsWithoutEnd, **settings)
        with queue.locked_file():
            held.go.set()
            await crawl.end()
    assert crawl.reason == "apify_rq_unavailable"
