"""A response is credited to the request in flight that it answers, whatever its ``request`` is."""

from __future__ import annotations

from typing import Any

from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.http import HtmlResponse, Response

from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider, Twins
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

PATHS = [f"/{number}" for number in range(12)]


def serve(site: Site) -> None:
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, "page")})


async def assert_all_good(crawl: Crawl, queue: Queue, site: Site) -> None:
    entries = await queue.entries()
    assert len(entries) == 13
    assert {entry.url: entry.error_messages for entry in entries if entry.error_messages} == {}
    assert all(entry.is_handled for entry in entries)
    assert crawl.stats["apify_rq/handled"] == 13
    assert "apify_rq/failed" not in crawl.stats
    assert sorted(crawl.spider.handled) == sorted(["/", *PATHS])
    assert "no request" not in crawl.log_text


class GivesACopy:
    """What it returns belongs to a copy of the request that it was asked for."""

    def process_response(self, request: Request, response: Response) -> Response:
        return response.replace(request=request.copy())


async def test_copy_of_the_request(site: Site, queue: Queue, crawls: Crawls) -> None:
    serve(site)
    crawl = await crawls.run(Links, {"DOWNLOADER_MIDDLEWARES": {GivesACopy: 500}}, site=site.url)
    await assert_all_good(crawl, queue, site)


async def test_copy_while_a_twin_is_downloading(site: Site, queue: Queue, crawls: Crawls) -> None:
    first = Held(404)
    site.serve({"/page": [first, "B"]})
    crawl = await crawls.start(Twins, {"DOWNLOADER_MIDDLEWARES": {GivesACopy: 500}}, site=site.url)
    await wait_until(first.begun.is_set)
    crawl.spider.second.set()
    await wait_until(lambda: crawl.spider.handled == ["B"])
    first.go.set()
    await crawl.end()
    stored = {
        entry.user_data["scrapy"]["cb_kwargs"]["who"]: entry for entry in await queue.entries()
    }
    assert stored["B"].error_messages == []
    assert stored["B"].loaded_url == f"{site.url}/page"
    assert len(stored["A"].error_messages) == 1
    assert "404" in stored["A"].error_messages[0]
    assert stored["A"].loaded_url is None


class GivesAChangedCopy:
    """As those do that render pages elsewhere: the request they keep has another URL."""

    def process_response(self, request: Request, response: Response) -> Response:
        return response.replace(request=request.replace(url=f"{request.url}?rendered=1"))


async def test_copy_with_another_url(site: Site, queue: Queue, crawls: Crawls) -> None:
    serve(site)
    crawl = await crawls.run(
        Links, {"DOWNLOADER_MIDDLEWARES": {GivesAChangedCopy: 500}}, site=site.url
    )
    await assert_all_good(crawl, queue, site)


class AsksAnother:
    """Answers with what it has downloaded by a request of its own, beside the site's page."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> AsksAnother:
        return cls(crawler)

    async def process_request(self, request: Request) -> Response | None:
        if request.meta.get("mine"):
            return None
        mine = Request(f"{request.url}?raw=1", meta={"mine": True})
        assert self._crawler.engine is not None
        response = await self._crawler.engine.download_async(mine)
        return response.replace(url=request.url)


async def test_request_of_its_own(site: Site, queue: Queue, crawls: Crawls) -> None:
    raw = {f"{path}?raw=1": "page" for path in PATHS}
    site.serve({"/?raw=1": links(*PATHS), **raw})
    crawl = await crawls.run(Links, {"DOWNLOADER_MIDDLEWARES": {AsksAnother: 500}}, site=site.url)
    await assert_all_good(crawl, queue, site)


class OneForAll:
    """Answers from a cache: one response object, for as many requests as want it."""

    def __init__(self) -> None:
        self._page = HtmlResponse("http://cache/", body=b"page")

    def process_request(self, request: Request) -> Response | None:
        return None if request.url.endswith("/") else self._page


class Listed(SiteSpider):
    """Its requests are told apart by nothing in the response."""

    def parse(self, response: Response) -> Any:
        for path in PATHS:
            yield Request(f"{self.site}{path}", callback=self.parse_page)

    def parse_page(self, response: Response) -> None:
        self.handled.append("page")


async def test_one_response_for_many_requests(site: Site, queue: Queue, crawls: Crawls) -> None:
    site.serve({"/": "page"})
    crawl = await crawls.run(Listed, {"DOWNLOADER_MIDDLEWARES": {OneForAll: 500}}, site=site.url)
    entries = await queue.entries()
    assert len(entries) == 13
    assert {entry.url: entry.error_messages for entry in entries if entry.error_messages} == {}
    assert crawl.spider.handled == ["page"] * 12
    assert "apify_rq/failed" not in crawl.stats


class RaisesOnOdd(Links):
    def parse(self, response: Response) -> Any:
        if response.url.endswith(("1", "3", "5")):
            raise ValueError(response.url)
        yield from super().parse(response)


async def test_error_of_a_callback_that_had_a_copy(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    serve(site)
    crawl = await crawls.run(
        RaisesOnOdd, {"DOWNLOADER_MIDDLEWARES": {GivesAChangedCopy: 500}}, site=site.url
    )
    for entry in await queue.entries():
        odd = entry.url.endswith(("1", "3", "5"))
        assert entry.error_messages == ([f"ValueError: {entry.url}"] if odd else [])
    assert crawl.stats["apify_rq/failed"] == crawl.stats["spider_exceptions/ValueError"]


class Hides:
    """A spider middleware that keeps good pages from the callback: that is an error still."""

    def process_spider_input(self, response: Response) -> None:
        if response.url.endswith("/3"):
            raise LookupError("not this one")


async def test_page_that_no_callback_has_had(site: Site, queue: Queue, crawls: Crawls) -> None:
    serve(site)
    settings = {
        "DOWNLOADER_MIDDLEWARES": {GivesACopy: 500},
        "SPIDER_MIDDLEWARES": {Hides: 500},
    }
    await crawls.run(Links, settings, site=site.url)
    failed = [entry.url for entry in await queue.entries() if entry.failed]
    assert failed == [f"{site.url}/3"]
