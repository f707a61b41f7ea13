"""An embedded queue that somebody deletes or empties while it is crawled."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.backends.sqlite.store import Store
from tests.support.crawling import Crawls
from tests.support.queues import NAME, Queue
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, begun, links


async def delete_file(queue: Queue) -> None:
    shutil.rmtree(queue.folder)


async def delete_queue(queue: Queue) -> None:
    """As a client of ``scrapy rq serve`` may do, and make it again."""
    store = Store(queue.folder, 0, time.time)
    await store.open()
    record = await store.find(name=NAME)
    assert record is not None
    await store.drop(record.key)
    await store.get_or_create(NAME)
    await store.close()


async def empty_queue(queue: Queue) -> None:
    backend = SqliteBackend(queue.folder, name=NAME)
    await backend.open()
    await backend.purge()
    await backend.close()


@pytest.mark.parametrize("access", ["single", "shared"])
@pytest.mark.parametrize("happens", [delete_file, delete_queue, empty_queue])
async def test_crawl_of_a_queue_that_is_gone(
    site: Site, queue: Queue, crawls: Crawls, happens: Callable[[Queue], Any], access: str
) -> None:
    """It is noticed although the crawl does nothing but wait for its pages."""
    held = [Held("page"), Held("page")]
    paths = {f"/{number}": "page" for number in range(20)}
    site.serve({"/": links("/a", "/b", *paths), "/a": held[0], "/b": held[1], **paths})
    settings = {"CONCURRENT_REQUESTS": 2, "APIFY_RQ_ACCESS": access}
    crawl = await crawls.start(Links, settings, site=site.url)
    await begun(*held)
    await wait_until(lambda: queue.handled == 1)
    await happens(queue)
    await wait_until(lambda: "(apify_rq_gone)" in crawl.log_text)
    for page in held:
        page.go.set()
    await crawl.end()
    assert crawl.reason == "apify_rq_gone"
    assert len([record for record in crawl.log if record.levelname == "ERROR"]) == 1
    assert "was deleted or emptied by somebody else" in crawl.closing_line
    assert "after this run had handled 1." in crawl.closing_line
    again = await crawls.run(Links, settings, site=site.url)
    assert again.reason == "finished"
    assert set(again.paths) == {"/", "/a", "/b", *paths}
    assert (await queue.info()).handled == 23
