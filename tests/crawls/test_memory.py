"""What waits in this process is bounded in bytes as well, and what is its own affair is left alone.

The limit is scaled down to 1 MB, and entries of 5 MB to 200 kB; measured is what Python allocates.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scrapy import Field, Item, Request
from scrapy.http import Response

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.api_calls import Call
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import PATIENCE, wait_until
from tests.support.website import Held, Hit, Page, Site

SIZE = 200_000
COUNT = 30
LIMITED = {"APIFY_RQ_MEMORY_MB": 1, "CONCURRENT_REQUESTS": 1}
# The limit, what is in flight, and all else that a crawl allocates. All entries hold 6 MB, and
# they took 11 MB to 22 MB while there was no limit.
MOST = 6_000_000


@contextmanager
def allocations() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def large(address: str, number: int, size: int = SIZE) -> Entry:
    return Entry(
        id=request_id(f"key {number}"),
        unique_key=f"key {number}",
        url=f"{address}/{number}",
        method="POST",
        payload=f"{number:05}" + "x" * (size - 5),
        user_data={"scrapy": {"v": 1, "callback": "parse_page"}, "label": "parse_page"},
    )


class Posts(SiteSpider):
    def parse(self, response: Response) -> None:
        self.note(response)

    def parse_page(self, response: Response) -> None:
        self.note(response)


@pytest.mark.parametrize("where", ["embedded", "served"])
async def test_window(
    site: Site, queue: Queue, served: ServedQueue, crawls: Crawls, where: str
) -> None:
    """Many large entries are pending, and the crawl takes its time."""
    used = queue if where == "embedded" else served
    held = Held("page")
    paths = [f"/{number}" for number in range(COUNT)]
    site.serve({"/": "page", **dict.fromkeys(paths, "page"), "/7": held})
    await used.add(*(large(site.url, number) for number in range(COUNT)))
    # What a crawl imports is not of interest.
    await crawls.run(Posts, {**LIMITED, "APIFY_RQ_NAME": "first"}, queue=used, site=site.url)
    with allocations():
        crawl = await crawls.start(Posts, LIMITED, queue=used, site=site.url)
        await wait_until(held.begun.is_set)
        await wait_until(lambda: crawl.stats.get("apify_rq/handled", 0) >= 7)
        gc.collect()
        current, _ = tracemalloc.get_traced_memory()
        # The site keeps what it was sent.
        sent = sum(len(hit.body) for hit in site.hits)
    held.go.set()
    await crawl.end()
    assert current - sent < MOST
    assert crawl.reason == "finished"
    assert sorted(crawl.spider.handled) == sorted(["/", *paths])


async def test_in_flight(site: Site, queue: Queue, crawls: Crawls) -> None:
    """So many large requests are not handed out at a time, but always one."""
    count, at_a_time, most = threading.Lock(), 0, 0
    is_second = threading.Event()

    def page(hit: Hit) -> Page:
        nonlocal at_a_time, most
        with count:
            at_a_time += 1
            most = max(most, at_a_time)
            if most == 2:
                is_second.set()
        is_second.wait(PATIENCE)
        time.sleep(0.02)
        with count:
            at_a_time -= 1
        return Page("page")

    paths = [f"/{number}" for number in range(20)]
    site.serve({"/": "page", **dict.fromkeys(paths, page)})
    await queue.add(*(large(site.url, number) for number in range(20)))
    settings = {"APIFY_RQ_MEMORY_MB": 1, "CONCURRENT_REQUESTS": 8}
    crawl = await crawls.run(Posts, settings, site=site.url)
    assert sorted(crawl.spider.handled) == sorted(["/", *paths])
    # Half a megabyte, and the one that exceeds it; each counts twice, as entry and request.
    assert most == 2


class YieldsInMemory(Posts):
    def parse_page(self, response: Response) -> Any:
        self.note(response)
        yield Request(f"{response.url}/child", lambda response: self.note(response))


async def test_large_pages_that_wait_for_their_children(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """They are not in Scrapy's hands any more, so their children can be handed out."""
    paths = [f"/{number}" for number in range(8)]
    children = [f"{path}/child" for path in paths]
    site.serve({"/": "page", **dict.fromkeys(paths + children, "page")})
    await queue.add(*(large(site.url, number) for number in range(8)))
    settings = {"APIFY_RQ_MEMORY_MB": 1, "CONCURRENT_REQUESTS": 8}
    crawl = await crawls.run(YieldsInMemory, settings, site=site.url)
    assert sorted(crawl.spider.handled) == sorted(["/", *paths, *children])
    assert (await queue.info()).pending == 0


class Product(Item):
    texts = Field()


class YieldsLarge(SiteSpider):
    """Its first page yields large requests faster than the queue takes them."""

    yielded = 0
    where = "body"

    def parse(self, response: Response) -> Any:
        self.note(response)
        for number in range(COUNT):
            self.yielded += 1
            yield Request(f"{self.site}/{number}", self.parse_page, **self.options(number))

    def options(self, number: int) -> dict[str, Any]:
        if self.where == "body":
            return {"method": "POST", "body": f"{number:05}" + "x" * (SIZE - 5)}
        return {"meta": {"item": Product(texts=[{"text": "x" * 90}] * (SIZE // 100))}}

    def parse_page(self, response: Response) -> None:
        self.note(response)


@pytest.mark.parametrize("where", ["body", "meta"])
async def test_outbox(site: Site, served: ServedQueue, crawls: Crawls, where: str) -> None:
    """What the spider has yielded and the queue has not confirmed fits into half of the memory."""
    paths = [f"/{number}" for number in range(COUNT)]
    site.serve({"/": "page", **dict.fromkeys(paths, "page")})
    most = stored = 0

    def after(call: Call, data: Any) -> Any:
        nonlocal most, stored
        if call.is_("POST", "/requests/batch"):
            time.sleep(0.02)
            most = max(most, crawl.spider.yielded - stored)
            stored += len(call.json)
        return data

    served.api.after = after
    # Scrapy takes so many outputs of a callback at a time.
    settings = {**LIMITED, "CONCURRENT_ITEMS": 4}
    crawl = await crawls.start(YieldsLarge, settings, queue=served, site=site.url, where=where)
    await crawl.end()
    assert SIZE * most < 500_000 + SIZE * 5
    assert sorted(crawl.spider.handled) == sorted(["/", *paths])


@pytest.mark.parametrize("where", ["embedded", "served"])
async def test_one_entry_always_fits(
    site: Site, queue: Queue, served: ServedQueue, crawls: Crawls, where: str
) -> None:
    used = queue if where == "embedded" else served
    paths = [f"/{number}" for number in range(3)]
    site.serve({"/": "page", **dict.fromkeys(paths, "page")})
    await used.add(*(large(site.url, number, 2_500_000) for number in range(3)))
    crawl = await crawls.run(Posts, LIMITED, queue=used, site=site.url)
    assert crawl.reason == "finished"
    assert sorted(crawl.spider.handled) == sorted(["/", *paths])
    assert [len(hit.body) for hit in site.hits if hit.path != "/"] == [2_500_000] * 3


async def test_one_add_always_fits(site: Site, crawls: Crawls) -> None:
    class YieldsOne(YieldsLarge):
        def parse(self, response: Response) -> Any:
            self.note(response)
            for number in range(2):
                url = f"{self.site}/{number}"
                yield Request(url, self.parse_page, method="POST", body="x" * 2_500_000)

    site.serve({"/": "page", "/0": "page", "/1": "page"})
    crawl = await crawls.run(YieldsOne, LIMITED, site=site.url)
    assert crawl.reason == "finished"
    assert sorted(crawl.spider.handled) == ["/", "/0", "/1"]


class Counts(Links):
    """Keeps how many objects are frozen while it crawls."""

    frozen = -1

    def parse(self, response: Response) -> Any:
        self.frozen = gc.get_freeze_count()
        yield from super().parse(response)


@pytest.mark.parametrize(
    ("settings", "freezes"),
    [({}, False), ({"APIFY_RQ_GC_FREEZE": False}, False), ({"APIFY_RQ_GC_FREEZE": True}, True)],
)
async def test_garbage_collector(
    site: Site, crawls: Crawls, settings: dict[str, Any], freezes: bool
) -> None:
    """A library does not change what is the whole process's, unless the project asks for it."""
    site.serve({"/": "page"})
    gc.unfreeze()  # what tests/conftest.py has frozen
    crawl = await crawls.run(Counts, settings, site=site.url)
    assert (crawl.spider.frozen > 0) == freezes
    assert gc.get_freeze_count() == 0
    gc.freeze()
