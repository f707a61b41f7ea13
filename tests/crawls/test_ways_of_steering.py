"""Scrapy's ways of steering a crawl work as in stock Scrapy: middlewares, extensions, callbacks.

One spider uses all of them, each on a page of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scrapy import Request, signals
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import DontCloseSpider, IgnoreRequest
from scrapy.http import HtmlResponse, Response
from scrapy.pipelines.files import FilesPipeline

from tests.support.comparing import stock_and_ours
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.website import Page, Site


def path_of(request: Request | Response) -> str:
    return urlsplit(request.url).path


class Component:
    def __init__(self, crawler: Crawler) -> None:
        self.crawler: Any = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Component:
        return cls(crawler)

    def request(self, path: str) -> Request:
        request: Request = self.crawler.spider.request(path)
        return request


class Downloads(Component):
    """A downloader middleware that does all that one may do."""

    async def process_request(self, request: Request) -> Any:
        match path_of(request):
            case "/answered":
                return HtmlResponse(request.url, body=b"made up")
            case "/replaced":
                return self.request("/replacement")
            case "/refused":
                raise IgnoreRequest("not this one")
            case "/request-bug":
                raise KeyError("a bug in process_request")

    async def process_response(self, request: Request, response: Response) -> Any:
        match path_of(request):
            case "/again" if "again" not in request.meta:
                request.meta["again"] = request.dont_filter = True
                return request
            case "/redone":
                return request.replace(url=response.urljoin("/redone-as"), dont_filter=True)
            case "/fetched-twice" if "inner" not in request.meta:
                inner = request.replace(meta={"inner": True})
                return await self.crawler.engine.download_async(inner)
            case "/unwanted-answer":
                raise IgnoreRequest("not this answer")
        return response

    def process_exception(self, request: Request, exception: Exception) -> Any:
        match path_of(request):
            case "/rescued":
                return HtmlResponse(request.url, body=b"rescued", request=request)
            case "/detour":
                return request.replace(url=f"{self.crawler.spider.site}/detoured")


class Spiders(Component):
    """A spider middleware that filters requests, adds some, and handles exceptions."""

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for output in start:
            yield output
        yield self.request("/more-to-start")

    async def process_spider_output(self, response: Response, result: Any) -> AsyncIterator[Any]:
        async for output in result:
            if not (isinstance(output, Request) and path_of(output) == "/unwanted"):
                yield output
        if path_of(response) == "/filtered":
            yield self.request("/added")

    def process_spider_exception(self, response: Response, exception: Exception) -> Any:
        if path_of(response) == "/recovered":
            item = {"kind": "/recovered", "error": repr(exception)}
            return [item, self.request("/recovery")]
        return None


class Extension(Component):
    """Crawls on its own account, in the middle of the crawl and when it is idle."""

    rounds = 0

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        crawler.signals.connect(self.received, signals.response_received)
        crawler.signals.connect(self.idle, signals.spider_idle)
        crawler.signals.connect(self.scheduled, signals.request_scheduled)

    def received(self, response: Response) -> None:
        if path_of(response) == "/watched":
            self.crawler.engine.crawl(self.request("/from-extension"))

    def idle(self) -> None:
        if self.rounds < 2:
            self.rounds += 1
            self.crawler.engine.crawl(self.request(f"/idle-{self.rounds}"))
            raise DontCloseSpider

    def scheduled(self, request: Request) -> None:
        if path_of(request) == "/vetoed":
            raise IgnoreRequest


class SlowPipeline(Component):
    """Looks into the queue while its page is not finished yet."""

    async def process_item(self, item: Any) -> Any:
        queue = self.crawler.settings["QUEUE"]
        if item["kind"] == "/slow" and await queue.entries():  # not in stock Scrapy
            await asyncio.sleep(0.3)
            self.crawler.spider.handled.append((await queue.entry("/slow")).is_handled)
        return item


class Files(FilesPipeline):
    def file_path(self, *args: Any, **options: Any) -> str:
        return "file.bin"


PLAIN = (
    *("/answered", "/replaced", "/refused", "/request-bug", "/again", "/redone", "/fetched-twice"),
    *("/unwanted-answer", "/watched", "/seen", "/redirect-to-seen", "/redirect", "/refresh"),
    *("/flaky", "/down", "/slow", "/vetoed", "/robbed"),
)
NOBODY = "http://127.0.0.1:1"
PAGES: dict[str, Any] = {
    "/robots.txt": "User-agent: *\nDisallow: /robbed",
    "/redirect-to-seen": Page(status=302, headers={"Location": "/seen"}),
    "/redirect": Page(status=302, headers={"Location": "/hop"}),
    "/hop": Page(status=301, headers={"Location": "/target"}),
    "/refresh": '<html><head><meta http-equiv="refresh" content="0; url=/refreshed"></head></html>',
    "/flaky": [503, "page"],
    "/down": 503,
    "/retried": ["not yet", "not yet", "page"],
}


class Ways(SiteSpider):
    """Each method without a docstring is the callback of the page of its name."""

    async def start(self) -> AsyncIterator[Any]:
        yield {"kind": "/start", "first": True}
        for url in (*(self.site + path for path in PLAIN), f"{NOBODY}/rescued", f"{NOBODY}/detour"):
            yield Request(url, callback=self.report, errback=self.failed)
        for callback in (self.retried, self.returned, self.listed, self.awaited, self.generated):
            yield Request(f"{self.site}/{callback.__name__}", callback)
        for callback in (self.filtered, self.recovered, self.raised, self.downloads, self.files):
            yield Request(f"{self.site}/{callback.__name__}", callback)
        yield Request(f"{self.site}/lambda", callback=lambda response: self.report(response))
        yield {"kind": "/start", "first": False}

    def request(self, path: str) -> Request:
        """For a page that is reported."""
        return Request(self.site + path, callback=self.report)

    def report(self, response: Any) -> Iterator[Any]:
        """Scrape what the callback sees."""
        seen = ("redirect_urls", "retry_times", "depth")
        meta = [response.meta.get(name) for name in seen]
        kind = path_of(response.request)
        yield {"kind": kind, "url": response.url, "text": response.text, "meta": meta}

    def failed(self, failure: Any) -> Iterator[Any]:
        """Be the errback."""
        path = path_of(failure.request)
        yield {"kind": path, "failure": type(failure.value)}
        yield self.request(f"/failed{path}")

    def retried(self, response: Response) -> Any:
        if response.text == "not yet":
            assert response.request is not None
            return get_retry_request(response.request, spider=self, reason="not yet")
        return list(self.report(response))

    def returned(self, response: Response) -> Any:
        return self.request("/returned-to")

    def listed(self, response: Response) -> Any:
        return [self.request("/listed-1"), {"kind": "/listed"}, self.request("/listed-2")]

    async def awaited(self, response: Response) -> Any:
        await asyncio.sleep(0.01)
        return [self.request("/awaited-1"), {"kind": "/awaited"}]

    async def generated(self, response: Response) -> AsyncIterator[Any]:
        yield self.request("/generated-1")
        await asyncio.sleep(0.01)
        yield {"kind": "/generated"}

    def filtered(self, response: Response) -> Iterator[Any]:
        yield self.request("/unwanted")
        yield self.request("/wanted")

    def recovered(self, response: Response) -> Iterator[Any]:
        yield self.request("/before-the-bug")
        raise ValueError("a bug in the callback")

    def raised(self, response: Response) -> Iterator[Any]:
        yield self.request("/before-the-other-bug")
        raise ValueError("another bug")

    async def downloads(self, response: Response) -> AsyncIterator[Any]:
        inner = await self.crawler.engine.download_async(Request(f"{self.site}/downloaded"))
        yield {"kind": "/downloads", "text": inner.text}
        yield self.request("/after-download")

    def files(self, response: Response) -> Iterator[Any]:
        yield {"kind": "/files", "file_urls": [f"{self.site}/file.bin"]}


async def test_all_ways(any_queue: Queue, crawls: Crawls, tmp_path: Path) -> None:
    settings = {
        "DOWNLOADER_MIDDLEWARES": {Downloads: 560},
        "SPIDER_MIDDLEWARES": {Spiders: 500},
        "ITEM_PIPELINES": {SlowPipeline: 100, Files: 200},
        "EXTENSIONS": {Extension: 0},
        "FILES_STORE": str(tmp_path),
        "FILES_EXPIRES": 0,  # the second crawl downloads it, too
        "ROBOTSTXT_OBEY": True,
        "QUEUE": any_queue,
    }
    with Site(PAGES, default="page") as site:
        stock, ours = await stock_and_ours(crawls, Ways, site, settings, any_queue)
    assert ours.outcome == stock.outcome

    by_path: dict[str, list[Any]] = {}
    for entry in await any_queue.entries():
        by_path.setdefault(urlsplit(entry.url).path, []).append(entry)
    entries = {path: found[-1] for path, found in by_path.items()}
    scraped = Counter(item["kind"] for item in ours.crawl.items)
    assert [path for path, entry in entries.items() if entry.handled_at is None] == []

    # What a callback returns is crawled as what it yields, also before it raises, as is what the
    # middlewares and extensions add; a request is crawled instead of the one it replaces.
    replaced = {"/replaced", "/redone", "/detour", "/redirect", "/redirect-to-seen", "/refresh"}
    once = (
        *("/returned-to", "/listed-1", "/listed-2", "/awaited-1", "/generated-1", "/wanted"),
        *("/after-download", "/before-the-bug", "/before-the-other-bug", "/added", "/recovery"),
        *("/from-extension", "/idle-1", "/idle-2", "/replacement", "/redone-as", "/detoured"),
        *("/target", "/seen", "/refreshed", "/more-to-start"),
    )
    for path in once:
        assert (ours.paths[path], scraped[path], len(by_path[path])) == (1, 1, 1), path
    never = {"/unwanted", "/vetoed"}
    not_ours = {"/downloaded", "/file.bin", "/robots.txt"}
    assert not (never | not_ours | {"/lambda"}) & entries.keys()
    assert not (never | {"/robbed", "/answered", "/rescued"}) & ours.paths.keys()
    assert not replaced & scraped.keys()
    assert all(ours.paths[path] == 1 for path in not_ours)
    assert (scraped["/start"], scraped["/lambda"], scraped["/recovered"]) == (2, 1, 1)

    # Who has failed, and who has not.
    failed = ("/refused", "/request-bug", "/unwanted-answer", "/down")
    for path in failed:
        assert (scraped[path], ours.paths[f"/failed{path}"]) == (1, 1), path
    no_callback = {"/robbed", "/redone", "/detour"}  # another page in their place is no redirect
    failures = {path for path in entries if entries[path].failed}
    assert failures == {*failed, *no_callback, "/raised"}
    assert entries["/raised"].error_messages == ["ValueError: another bug"]
    assert "robots.txt" in entries["/robbed"].error_messages[0]
    for path in ("/answered", "/rescued", "/fetched-twice"):
        assert (scraped[path], len(by_path[path])) == (1, 1), path
        assert entries[path].loaded_url.endswith(path)
    assert (ours.paths["/fetched-twice"], ours.paths["/again"], ours.paths["/retried"]) == (2, 2, 3)
    assert (len(by_path["/again"]), scraped["/again"]) == (2, 1)
    assert (len(by_path["/retried"]), entries["/retried"].retry_count) == (1, 2)
    assert ours.crawl.spider.handled == [False]  # "/slow" was not acked before its pipelines ended

    assert ours.crawl.stats["scheduler/unserializable"] == 1
    assert ours.crawl.stats["scheduler/dequeued/memory"] == 1
    assert "Unable to serialize request" in ours.crawl.log_text
