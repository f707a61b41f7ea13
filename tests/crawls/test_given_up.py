"""Requests that live in memory only, when a crawl ends before they are crawled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import Request, signals
from scrapy.http import Response

from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.website import Held, Site, begun, let_go

ONE_BY_ONE = {"CONCURRENT_REQUESTS": 1}
CHILDREN = [f"/child/{number}" for number in range(4)]
GRANDCHILDREN = [f"{path}/child" for path in CHILDREN]


class Family(SiteSpider):
    """Its page has children, and these have children; the queue can hold none of them."""

    def parse(self, response: Response) -> Any:
        self.note(response)
        for path in CHILDREN:
            yield Request(self.site + path, lambda response: self.parse_child(response))

    def parse_child(self, response: Response) -> Any:
        self.note(response)
        yield Request(f"{response.url}/child", lambda response: self.note(response))


class Outsider(SiteSpider):
    """Something beside its pages asks for three requests that the queue cannot hold."""

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Any:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.opened, signals.spider_opened)
        return spider

    def opened(self) -> None:
        for number in range(3):
            self.crawler.engine.crawl(Request(f"{self.site}/{number}", lambda response: None))

    def parse(self, response: Response) -> None:
        self.note(response)


def errors(crawl: Crawl) -> list[str]:
    return [one.getMessage() for one in crawl.log if one.levelno >= logging.ERROR]


@pytest.mark.parametrize("pages", [1, 3, 7])
async def test_pages_lead_to_them_again(
    site: Site, any_queue: Queue, crawls: Crawls, pages: int
) -> None:
    """Their page is not acked before their children are crawled."""
    site.serve(dict.fromkeys(["/", *CHILDREN, *GRANDCHILDREN], "page"))
    settings = {**ONE_BY_ONE, "CLOSESPIDER_PAGECOUNT": pages}
    crawl = await crawls.run(Family, settings, queue=any_queue, site=site.url)
    assert crawl.reason == "closespider_pagecount"
    known = 1 + len(CHILDREN) + sum(path in CHILDREN for path in crawl.spider.handled)
    left = known - len(crawl.spider.handled)
    assert left > 0
    assert crawl.stats["apify_rq/given_up"] == left
    assert "apify_rq/lost" not in crawl.stats
    assert errors(crawl) == []
    ending = f"; given up, since in memory only: {left} requests, {left} the next run comes across"
    assert ending in crawl.closing_line
    assert (await any_queue.info()).pending == 1
    resumed = await crawls.run(Family, queue=any_queue, site=site.url)
    assert sorted(resumed.spider.handled) == sorted(["/", *CHILDREN, *GRANDCHILDREN])
    assert (resumed.reason, (await any_queue.info()).pending) == ("finished", 0)
    assert "given up" not in resumed.closing_line
    assert "apify_rq/given_up" not in resumed.stats


class InMemoryFromTheStart(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        for path in CHILDREN:
            yield Request(self.site + path, lambda response: self.note(response))


async def test_start_leads_to_them_again(site: Site, queue: Queue, crawls: Crawls) -> None:
    site.serve(dict.fromkeys(CHILDREN, "page"))
    settings = {**ONE_BY_ONE, "CLOSESPIDER_PAGECOUNT": 1}
    crawl = await crawls.run(InMemoryFromTheStart, settings, site=site.url)
    assert crawl.stats["apify_rq/given_up"] == len(CHILDREN) - len(crawl.spider.handled)
    assert "apify_rq/lost" not in crawl.stats
    resumed = await crawls.run(InMemoryFromTheStart, site=site.url)
    assert sorted(resumed.spider.handled) == CHILDREN


async def test_nothing_leads_to_them_again(site: Site, queue: Queue, crawls: Crawls) -> None:
    """The finish reason and an error in the log show it, also to a script."""
    held = Held("page")
    site.serve({"/": "page", **dict.fromkeys(["/1", "/2"], "page"), "/0": held})
    crawl = await crawls.start(Outsider, ONE_BY_ONE, site=site.url)
    await begun(held)
    stopping = asyncio.ensure_future(crawl.crawler.stop_async())
    let_go(held)
    await stopping
    await crawl.end()
    assert crawl.reason == "shutdown"
    assert (crawl.stats["apify_rq/given_up"], crawl.stats["apify_rq/lost"]) == (2, 2)
    assert "; given up, since in memory only: 2 requests, 2 lost" in crawl.closing_line
    (error,) = errors(crawl)
    assert error.startswith("2 requests in memory only will not be crawled")
    finished = await crawls.run(Outsider, site=site.url)
    assert finished.reason == "finished"
    assert (errors(finished), "given up" in finished.closing_line) == ([], False)
