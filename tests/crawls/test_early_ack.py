"""A page is acked when Scrapy has finished with it, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue, copied
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site

# Seconds in which a page would be acked too early, if it were.
A_WHILE = 0.15


class AsksAgain(SiteSpider):
    """Its callback hands its own request to the engine again, and has work left to do after it."""

    def __init__(self, site: str, **arguments: Any) -> None:
        super().__init__(site, **arguments)
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def parse(self, response: Response) -> AsyncIterator[Any]:
        assert response.request is not None
        if response.url.endswith("/child"):
            self.note(response)
            return
        again = await self.crawler.engine.download_async(response.request)
        self.begun.set()
        await self.go.wait()
        self.note(again)
        yield response.follow("/child")


# Scrapy itself complains that the request has left its slot by then.
@pytest.mark.filterwarnings("ignore")
async def test_page_whose_callback_downloads_its_request_again(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": "page", "/child": "page"})
    crawl = await crawls.start(AsksAgain, site=site.url)
    await crawl.spider.begun.wait()
    await asyncio.sleep(A_WHILE)
    copy = queue.copy()
    assert not (await copy.entry("/")).is_handled
    crawl.spider.go.set()
    await crawl.end()
    assert crawl.spider.handled == ["/", "/child"]
    assert (await queue.info()).pending == 0

    resumed = await crawls.start(AsksAgain, queue=copy, site=site.url)
    await wait_until(lambda: resumed.spider.begun.is_set(), "the page to be crawled again")
    resumed.spider.go.set()
    await resumed.end()
    assert resumed.spider.handled == ["/", "/child"]


class Unwritable(SiteSpider):
    """Its page has a child that cannot be written: its callback is no method of the spider. The
    child has one, too.
    """

    def parse(self, response: Response) -> Any:
        self.note(response)
        if not response.url.endswith("/child/child"):
            path = response.url.removeprefix(self.site).rstrip("/")
            yield Request(f"{self.site}{path}/child", lambda response: self.parse(response))


class Large(SiteSpider):
    """Its page has a child with more bytes than the API takes."""

    def parse(self, response: Response) -> Any:
        self.note(response)
        if response.url == f"{self.site}/":
            yield Request(f"{self.site}/child", method="POST", body="x" * 9_500_000)


FAMILY = ["/", "/child", "/child/child"]
IN_MEMORY: list[Any] = [("sqlite", Unwritable, FAMILY[:2], FAMILY)]
IN_MEMORY += [("sqlite", Unwritable, FAMILY, FAMILY), ("apify", Large, FAMILY[:2], FAMILY[:2])]


@pytest.mark.parametrize(
    ("any_queue", "spider", "crawled", "pages"), IN_MEMORY, indirect=["any_queue"]
)
async def test_page_whose_descendants_are_in_memory_only(
    site: Site,
    any_queue: Queue,
    crawls: Crawls,
    spider: type[SiteSpider],
    crawled: list[str],
    pages: list[str],
) -> None:
    """The crawl is killed while the last page of ``crawled`` is on its way."""
    held = Held("page")
    site.serve({**dict.fromkeys(pages, "page"), crawled[-1]: held})
    crawl = await crawls.start(spider, queue=any_queue, site=site.url)
    await wait_until(held.begun.is_set)
    await asyncio.sleep(A_WHILE)
    with copied(any_queue) as copy:
        held.go.set()
        await crawl.end()
        assert crawl.stats["scheduler/unserializable"] == len(pages) - 1
        assert (await any_queue.entry("/")).is_handled
        assert not (await copy.entry("/")).is_handled

        resumed = await crawls.run(spider, queue=copy, site=site.url)
        assert resumed.spider.handled == pages
