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

from scrapy_apify_rq.entries.models import Entry
from tests.support.comparing import stock_and_ours
from tests.support.crawling import Crawls
from tests.support.queues import ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.website import Page, Site


def path_of(it: Any) -> str:
    return urlsplit(it.url).path


class Component:
    def __init__(self, crawler: Crawler) -> None:
        self.crawler: Any = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Component:
        return cls(crawler)

    def request(self, path: str) -> Any:
        return self.crawler.spider.request(path)


class Middleware(Component):
    """Of downloaders it does all that one may do; of spiders it filters, adds, and recovers."""

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

    async def process_spider_output(self, response: Response, result: Any) -> AsyncIterator[Any]:
        async for output in result:
            if not (isinstance(output, Request) and path_of(output) == "/unwanted"):
                yield output
        if path_of(response) == "/generated":
            yield self.request("/added")

    def process_spider_exception(self, response: Response, exception: Exception) -> Any:
        is_recovered = path_of(response) == "/recovered"
        return [{"of": "/recovered"}, self.request("/recovery")] if is_recovered else None


class Extension(Component):
    """Crawls on its own account, in the middle of the crawl and when it is idle."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self.left = ["/idle-2", "/idle-1"]
        crawler.signals.connect(self.received, signals.response_received)
        crawler.signals.connect(self.idle, signals.spider_idle)
        crawler.signals.connect(self.scheduled, signals.request_scheduled)

    def received(self, response: Response) -> None:
        if path_of(response) == "/watched":
            self.crawler.engine.crawl(self.request("/from-extension"))

    def idle(self) -> None:
        if self.left:
            self.crawler.engine.crawl(self.request(self.left.pop()))
            raise DontCloseSpider

    def scheduled(self, request: Request) -> None:
        if path_of(request) == "/vetoed":
            raise IgnoreRequest


class SlowPipeline(Component):
    """Looks into the queue while its page is not finished yet."""

    async def process_item(self, item: Any) -> Any:
        queue = self.crawler.settings["QUEUE"]
        if item["of"] == "/slow" and await queue.entries():  # not in stock Scrapy
            await asyncio.sleep(0.3)
            self.crawler.spider.handled.append((await queue.entry("/slow")).is_handled)
        return item


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
    "/lambda": [503, "page"],
    "/down": 503,
    "/retried": ["not yet", "not yet", "page"],
}


class Ways(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        yield {"of": "/start"}
        for url in (*(self.site + path for path in PLAIN), f"{NOBODY}/rescued", f"{NOBODY}/detour"):
            yield Request(url, callback=self.report, errback=self.failed)
        for name in ("retried", "returned", "listed", "awaited", "generated", "downloads"):
            yield Request(f"{self.site}/{name}", getattr(self, name))
        for name in ("recovered", "raised"):
            yield Request(f"{self.site}/{name}", self.buggy)
        yield Request(f"{self.site}/lambda", callback=lambda response: self.report(response))
        yield {"of": "/start"}

    def request(self, path: str) -> Request:
        return Request(self.site + path, callback=self.report)

    def report(self, response: Any) -> Iterator[Any]:
        meta = [response.meta.get(name) for name in ("redirect_urls", "retry_times", "depth")]
        of = path_of(response.request)
        yield {"of": of, "url": response.url, "text": response.text, "meta": meta}

    def failed(self, failure: Any) -> Iterator[Any]:
        path = path_of(failure.request)
        yield {"of": path, "failure": type(failure.value)}
        yield self.request(f"/failed{path}")

    # Callbacks of all forms.

    def retried(self, response: Any) -> Any:
        if response.text == "not yet":
            return get_retry_request(response.request, spider=self, reason="not yet")
        return list(self.report(response))

    def returned(self, response: Response) -> Any:
        return self.request("/returned-to")

    def listed(self, response: Response) -> Any:
        path = path_of(response)
        return [self.request(f"{path}-1"), {"of": path}, self.request(f"{path}-2")]

    async def awaited(self, response: Response) -> Any:
        await asyncio.sleep(0.01)
        return self.listed(response)

    async def generated(self, response: Response) -> AsyncIterator[Any]:
        yield self.request("/unwanted")
        await asyncio.sleep(0.01)
        yield {"of": "/generated"}
        yield self.request("/wanted")

    def buggy(self, response: Response) -> Iterator[Any]:
        yield self.request(f"/before{path_of(response)}")
        raise ValueError("a bug")

    async def downloads(self, response: Response) -> AsyncIterator[Any]:
        inner = await self.crawler.engine.download_async(Request(f"{self.site}/downloaded"))
        yield {"of": "/downloads", "text": inner.text, "file_urls": [f"{self.site}/file.bin"]}
        yield self.request("/after-download")


# How often a page is fetched and scraped, its entries, and those that have failed.
EXPECTED = {
    (1, 1, 1, 0): (
        *("/watched", "/seen", "/slow", "/listed", "/awaited", "/generated", "/downloads"),
        *("/recovered", "/returned-to", "/listed-1", "/listed-2", "/awaited-1", "/awaited-2"),
        *("/wanted", "/added", "/before/recovered", "/before/raised", "/after-download"),
        *("/recovery", "/from-extension", "/idle-1", "/idle-2", "/replacement", "/redone-as"),
        *("/detoured", "/target", "/refreshed", "/failed/refused", "/failed/request-bug"),
        *("/failed/unwanted-answer", "/failed/down", "/failed/robbed"),
    ),
    (1, 0, 1, 0): ("/returned", "/redirect", "/redirect-to-seen", "/refresh", "/hop"),
    (1, 0, 1, 1): ("/raised", "/redone"),  # another page in its place, and it is no redirect
    (0, 0, 1, 0): ("/replaced",),
    (0, 0, 1, 1): ("/detour",),
    (0, 1, 1, 0): ("/answered", "/rescued"),
    (0, 1, 1, 1): ("/refused", "/request-bug", "/robbed"),
    (1, 1, 1, 1): ("/unwanted-answer",),
    (3, 1, 1, 1): ("/down",),
    (2, 1, 1, 0): ("/flaky", "/fetched-twice"),
    (3, 1, 1, 0): ("/retried",),
    (2, 1, 2, 0): ("/again",),
    (0, 2, 0, 0): ("/start",),
    (2, 1, 0, 0): ("/lambda",),
    (1, 0, 0, 0): ("/downloaded", "/file.bin", "/robots.txt"),
}


async def test_all_ways(served: ServedQueue, crawls: Crawls, tmp_path: Path) -> None:
    settings = {
        "DOWNLOADER_MIDDLEWARES": {Middleware: 560},
        "SPIDER_MIDDLEWARES": {Middleware: 500},
        "ITEM_PIPELINES": {SlowPipeline: 100, FilesPipeline: 200},
        "EXTENSIONS": {Extension: 0},
        "FILES_STORE": str(tmp_path),
        "FILES_EXPIRES": 0,  # the second crawl downloads it, too
        "ROBOTSTXT_OBEY": True,
        "QUEUE": served,
    }
    with Site(PAGES, default="page") as site:
        stock, ours = await stock_and_ours(crawls, Ways, site, served, settings)
    assert ours.outcome == stock.outcome

    entries: dict[str, list[Entry]] = {}
    for entry in await served.entries():
        assert entry.is_handled
        entries.setdefault(path_of(entry), []).append(entry)
    scraped = Counter(item["of"] for item in ours.crawl.items)
    seen: dict[tuple[int, ...], set[str]] = {}
    for path in {*ours.paths, *scraped, *entries}:
        stored = entries.get(path, [])
        counts = (ours.paths[path], scraped[path], len(stored), sum(one.failed for one in stored))
        seen.setdefault(counts, set()).add(path)
    assert seen == {counts: set(paths) for counts, paths in EXPECTED.items()}

    assert entries["/raised"][0].error_messages == ["ValueError: a bug"]
    assert "robots.txt" in entries["/robbed"][0].error_messages[0]
    assert entries["/retried"][0].retry_count == 2
    for path in ("/answered", "/rescued", "/fetched-twice"):
        assert str(entries[path][0].loaded_url).endswith(path)
    assert ours.crawl.spider.handled == [False]  # "/slow" was not acked before its pipelines ended
    assert ours.crawl.stats["scheduler/unserializable"] == 1
    assert ours.crawl.stats["scheduler/dequeued/memory"] == 2
    assert "Unable to serialize request" in ours.crawl.log_text
