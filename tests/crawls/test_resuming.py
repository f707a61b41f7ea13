"""What a killed crawl has left is resumed. What a kill leaves: ``copied``; real ones: processes."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from scrapy import FormRequest, Request
from scrapy.http import Response

from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue, ServedQueue, copied
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Hit, Page, Site, begun, let_go, links


async def test_killed_during_the_first_page(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    first = Held(links("/a"))
    site.serve({"/": first, "/a": "page"})
    crawl = await crawls.start(Links, queue=any_queue, site=site.url)
    await begun(first)
    with copied(any_queue) as left:
        let_go(first)
        await crawl.end()
        assert (await left.info()).pending == 1
        resumed = await crawls.run(Links, queue=left, site=site.url)
        assert "resuming, 1 pending, 0 handled" in resumed.log_text
        assert resumed.paths == ["/", "/a"]
        assert left.handled == 2


class Waits(Links):
    """Waits before it starts."""

    def __init__(self, site: str, begun: asyncio.Event, go: asyncio.Event) -> None:
        super().__init__(site)
        self.begun, self.go = begun, go

    async def start(self) -> AsyncIterator[Any]:
        self.begun.set()
        await self.go.wait()
        yield Request(f"{self.site}/")


async def test_killed_before_the_first_add(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    site.serve({"/": "page"})
    events = {"begun": asyncio.Event(), "go": asyncio.Event()}
    crawl = await crawls.start(Waits, queue=any_queue, site=site.url, **events)
    await events["begun"].wait()
    with copied(any_queue) as left:
        events["go"].set()
        await crawl.end()
        assert await left.entries() == []
        resumed = await crawls.run(Waits, queue=left, site=site.url, **events)
        assert "resuming" not in resumed.log_text
        assert resumed.paths == ["/"]
        assert left.handled == 1


async def test_a_queue_with_no_name(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """It is resumed, too. Once its crawl is finished, the embedded one starts afresh."""
    held = Held("page")
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": held})
    settings = {"APIFY_RQ_NAME": None, "BOT_NAME": "bot"}
    crawl = await crawls.start(Links, settings, queue=any_queue, site=site.url)
    await wait_until(lambda: held.begun.is_set() and any_queue.handled == 2)
    with copied(any_queue) as left:
        let_go(held)
        await crawl.end()
        resumed = await crawls.run(Links, settings, queue=left, site=site.url)
        assert "Request queue 'bot-spider-" in resumed.closing_line
        assert "resuming, 1 pending, 2 handled" in resumed.log_text
        assert resumed.paths == ["/b"]
        again = await crawls.run(Links, settings, queue=left, site=site.url)
        if isinstance(any_queue, ServedQueue):
            assert "is finished: 3 handled, none pending" in again.log_text
            assert "-s APIFY_RQ_PURGE_ON_START=True" in again.log_text
            assert again.paths == []
        else:
            assert "emptied of 3 entries, its crawl was finished" in again.log_text
            assert sorted(again.paths) == ["/", "/a", "/b"]
        assert left.handled == 3


class Searches(SiteSpider):
    """Makes requests that have all that a request can have."""

    def parse(self, response: Response) -> Iterator[Any]:
        for number, query in enumerate(["red", "café", "a&b=c"]):
            yield FormRequest(
                f"{self.site}/search",
                self.parse_search,
                errback=self.failed,
                formdata={"q": query},
                cookies={"basket": f"{number}-é"},
                headers={"X-Session": ["a", "b"]},
                cb_kwargs={"query": query, "seen": datetime.date(2020, 2, number + 1)},
                meta={"place": (number, {"shelf"}), "cookiejar": number},
                flags=["search"],
                priority=number - 1,
            )
        yield Request(
            f"{self.site}/raw",
            self.parse_search,
            method="PUT",
            body=b"\xff\x00",
            cb_kwargs={"query": 0},
            meta={"cookiejar": "raw"},
        )

    def parse_search(self, response: Any, query: Any, seen: Any = None) -> Iterator[Any]:
        request = response.request
        functions = request.callback, request.errback
        yield {
            "echo": response.text,
            "query": query,
            "seen": repr(seen),
            "place": repr(response.meta.get("place")),
            "cookiejar": response.meta["cookiejar"],
            "depth": response.meta["depth"],
            "class": type(request).__name__,
            "request": [request.method, request.priority, request.flags, request.dont_filter],
            "callbacks": [getattr(function, "__name__", None) for function in functions],
        }

    def failed(self, failure: Any) -> None:
        raise failure.value


def echo(hit: Hit) -> Page:
    """Tell the crawler what it sent."""
    return Page(json.dumps([hit.method, hit.path, hit.body.decode("latin-1"), hit.headers]))


def searches(crawl: Crawl) -> list[str]:
    return sorted(json.dumps(item) for item in crawl.items)


async def test_a_resumed_request_is_the_same_as_one_that_never_left(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    held = [Held(echo) for _ in range(4)]
    site.serve({"/": "home", "/search": [*held[:3], echo], "/raw": [held[3], echo]})
    whole = await crawls.start(Searches, queue=any_queue, site=site.url)
    await begun(*held)
    await wait_until(lambda: any_queue.handled == 1)
    with copied(any_queue) as left:
        let_go(*held)
        await whole.end()
        resumed = await crawls.run(Searches, queue=left, site=site.url)
        assert "resuming, 4 pending, 1 handled" in resumed.log_text
        assert len(whole.items) == 4
        assert searches(resumed) == searches(whole)
        assert site.paths.count("/") == 1
        assert (await left.info()).pending == 0
