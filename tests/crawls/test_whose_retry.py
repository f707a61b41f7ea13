"""A retry, a redirect and an error are credited to the request that they belong to.

Each test has two requests for one URL in flight, which differ only in what nobody sees in the URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from scrapy import Request
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from scrapy_apify_rq.entries.models import Entry
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import Twins
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site


async def by_name(queue: Queue) -> dict[str, Entry]:
    """The entries of both, by the ``who`` that is stored in them."""
    entries = await queue.entries()
    found = {entry.user_data["scrapy"]["cb_kwargs"]["who"]: entry for entry in entries}
    assert len(found) == len(entries), "the arguments of one were written over those of another"
    return found


async def test_retry_while_its_twin_is_downloading(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    first, again = Held("A"), Held("B")
    site.serve({"/page": [first, 503, again, "after the crash"]})
    crawl = await crawls.start(Twins, site=site.url)
    await wait_until(first.begun.is_set)
    crawl.spider.second.set()
    await wait_until(again.begun.is_set, "the second try of B")
    await wait_until(lambda: crawl.stats.get("apify_rq/retried") == 1)
    copy = queue.copy()
    stored = await by_name(copy)
    assert (stored["A"].retry_count, stored["A"].error_messages) == (0, [])
    assert stored["B"].retry_count == 1
    assert len(stored["B"].error_messages) == 1
    assert "503" in stored["B"].error_messages[0]
    assert not stored["A"].is_handled
    assert not stored["B"].is_handled

    first.go.set()
    again.go.set()
    await crawl.end()
    assert sorted(crawl.spider.handled) == ["A", "B"]
    stored = await by_name(queue)
    assert not any(entry.failed for entry in stored.values())
    assert stored["B"].retry_count == 1

    resumed = await crawls.start(Twins, queue=copy, site=site.url)
    resumed.spider.second.set()
    await resumed.end()
    assert sorted(resumed.spider.handled) == ["A", "B"]


async def test_retry_from_a_callback_while_its_twin_is_downloading(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    class Again(Twins):
        def parse(self, response: Response, who: str) -> Iterator[Any]:
            yield from super().parse(response, who)
            if response.text == "not yet":
                assert response.request is not None
                yield get_retry_request(response.request, spider=self, reason="not yet")

    first = Held("A")
    site.serve({"/page": [first, "not yet", "B"]})
    crawl = await crawls.start(Again, site=site.url)
    await wait_until(first.begun.is_set)
    crawl.spider.second.set()
    await wait_until(lambda: crawl.spider.handled == ["B", "B"], "the second try of B")
    first.go.set()
    await crawl.end()
    stored = await by_name(queue)
    assert {who: entry.retry_count for who, entry in stored.items()} == {"A": 0, "B": 1}
    assert sorted(crawl.spider.handled) == ["A", "B", "B"]


class Patient:
    """A downloader middleware that takes its time over a 404."""

    def __init__(self) -> None:
        self.got_404 = asyncio.Event()
        self.go = asyncio.Event()

    async def process_response(self, request: Request, response: Response) -> Response:
        if response.status == 404:
            self.got_404.set()
            await self.go.wait()
        return response


async def test_404_while_its_twin_is_scheduled(site: Site, queue: Queue, crawls: Crawls) -> None:
    site.serve({"/page": [404, "B"]})
    crawl = await crawls.start(Twins, {"DOWNLOADER_MIDDLEWARES": {Patient: 500}}, site=site.url)
    patient = crawl.crawler.get_downloader_middleware(Patient)
    assert patient is not None
    await asyncio.wait_for(patient.got_404.wait(), 5)
    crawl.spider.second.set()
    await wait_until(lambda: crawl.spider.handled == ["B"])
    patient.go.set()
    await crawl.end()
    stored = await by_name(queue)
    assert stored["A"].failed
    assert "404" in stored["A"].error_messages[0]
    assert stored["A"].loaded_url is None
    assert stored["B"].loaded_url == f"{site.url}/page"
    assert not stored["B"].failed
    assert crawl.stats["apify_rq/failed"] == 1


async def test_redirect_while_its_twin_waits_with_a_404(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/page": [404, Page("", 302, {"Location": "/target"})], "/target": "B"})
    crawl = await crawls.start(Twins, {"DOWNLOADER_MIDDLEWARES": {Patient: 500}}, site=site.url)
    patient = crawl.crawler.get_downloader_middleware(Patient)
    assert patient is not None
    await asyncio.wait_for(patient.got_404.wait(), 5)
    crawl.spider.second.set()
    await wait_until(lambda: crawl.spider.handled == ["B"])
    patient.go.set()
    await crawl.end()
    entries = await queue.entries()
    stored = {
        (entry.user_data["scrapy"]["cb_kwargs"]["who"], entry.url.rpartition("/")[2]): entry
        for entry in entries
    }
    assert stored["A", "page"].failed
    assert stored["A", "page"].loaded_url is None
    assert not stored["B", "page"].failed
    assert stored["B", "page"].loaded_url == f"{site.url}/target"
    assert not stored["B", "target"].failed
