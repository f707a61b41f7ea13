"""A page is acked when Scrapy has finished with it, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue
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
    await asyncio.wait_for(crawl.spider.begun.wait(), 5)
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
    """Its page has a child that cannot be written: its callback is no method of the spider."""

    def parse(self, response: Response) -> Any:
        self.note(response)

        def parse_child(response: Response) -> None:
            self.note(response)

        yield Request(f"{self.site}/child", callback=parse_child)


async def test_page_whose_child_is_in_memory_only(site: Site, queue: Queue, crawls: Crawls) -> None:
    child = Held("page")
    site.serve({"/": "page", "/child": child})
    crawl = await crawls.start(Unwritable, site=site.url)
    await wait_until(child.begun.is_set)
    await asyncio.sleep(A_WHILE)
    copy = queue.copy()
    child.go.set()
    await crawl.end()
    assert crawl.stats["scheduler/unserializable"] == 1
    assert (await queue.entry("/")).is_handled
    assert not (await copy.entry("/")).is_handled

    resumed = await crawls.run(Unwritable, queue=copy, site=site.url)
    assert resumed.spider.handled == ["/", "/child"]
