"""Start requests are known again by a resumed crawl, whatever a middleware makes of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site

PATHS = [f"/{number}" for number in range(6)]


class Starts(SiteSpider):
    """Starts with all pages, as ``start_urls`` does it: not to be filtered."""

    async def start(self) -> AsyncIterator[Any]:
        for path in PATHS:
            yield Request(f"{self.site}{path}", dont_filter=True)

    def parse(self, response: Response) -> Any:
        self.note(response)


class Replaces:
    """Puts another object in the place of each start request."""

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in start:
            yield request.replace(headers={"X-Mine": "yes"})


class Copies:
    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in start:
            yield request.copy()


class AddsOne:
    """Begins with a request of its own."""

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        first = True
        async for request in start:
            if first:
                yield request.replace(url=f"{request.url}?first=1")
                first = False
            yield request


class Reverses:
    """Waits for all of them, and begins with the last."""

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        requests = [request.copy() async for request in start]
        for request in reversed(requests):
            yield request


def serve(site: Site) -> None:
    site.serve({**dict.fromkeys(PATHS, "page"), "/0?first=1": "page"})


@pytest.mark.parametrize("middleware", [None, Replaces, Copies, AddsOne, Reverses])
@pytest.mark.parametrize("place", [50, 543, 20_000])
async def test_resumed_crawl_repeats_none(
    site: Site, queue: Queue, crawls: Crawls, middleware: type | None, place: int
) -> None:
    serve(site)
    settings = {"SPIDER_MIDDLEWARES": {middleware: place} if middleware else {}}
    first = await crawls.run(Starts, settings, site=site.url)
    pages = 7 if middleware is AddsOne else 6
    assert len(first.paths) == len(set(first.paths)) == pages
    again = await crawls.run(Starts, settings, site=site.url)
    assert again.paths == []
    assert (await queue.info()).total == pages


async def test_crash_repeats_only_what_was_in_flight(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    last = Held("page")
    serve(site)
    site.serve({PATHS[-1]: last})
    settings = {"SPIDER_MIDDLEWARES": {Replaces: 543}}
    crawl = await crawls.start(Starts, settings, site=site.url)
    await wait_until(lambda: crawl.stats.get("apify_rq/handled") == 5)
    await wait_until(last.begun.is_set)
    copy = queue.copy()
    last.go.set()
    await crawl.end()
    resumed = await crawls.run(Starts, settings, queue=copy, site=site.url)
    assert resumed.paths == [PATHS[-1]]
    assert (await copy.info()).total == 6


async def test_workers_crawl_each_once(site: Site, served: ServedQueue, crawls: Crawls) -> None:
    serve(site)
    settings = {"SPIDER_MIDDLEWARES": {Replaces: 543}, "APIFY_RQ_ACCESS": "shared"}
    workers = [
        await crawls.start(
            Starts, {**settings, "APIFY_RQ_CLIENT_KEY": name}, queue=served, site=site.url
        )
        for name in ("one", "two")
    ]
    await asyncio.gather(*(worker.end() for worker in workers))
    assert Counter(workers[0].paths + workers[1].paths) == Counter(PATHS)
    assert (await served.info()).total == 6
