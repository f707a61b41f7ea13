"""Scrapy's ways of steering a crawl work as in stock Scrapy: middlewares, extensions, callbacks.

One project uses all of them, each on a page of its own; it is crawled with and without the add-on.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from scrapy import Spider

from scrapy_apify_rq.entries.models import Entry
from tests.compare import STOCK, Run, run
from tests.project import Project
from tests.support.website import Page, Site

pytestmark = pytest.mark.usefixtures("backend")

WAYS = """
import asyncio
import json
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from scrapy import signals
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import DontCloseSpider, IgnoreRequest
from scrapy.http import HtmlResponse
from scrapy.pipelines.files import FilesPipeline


class Component:
    def __init__(self, crawler):
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler):
        return cls(crawler)


class Downloads(Component):
    '''A downloader middleware that does all that one may do.'''

    async def process_request(self, request):
        match urlsplit(request.url).path:
            case "/answered":
                return HtmlResponse(request.url, body=b"made up")
            case "/replaced":
                return request.replace(url=SITE + "/replacement")
            case "/refused":
                raise IgnoreRequest("not this one")
            case "/request-bug":
                raise KeyError("a bug in process_request")

    async def process_response(self, request, response):
        match urlsplit(request.url).path:
            case "/again" if "again" not in request.meta:
                request.meta["again"] = request.dont_filter = True
                return request
            case "/redone":
                return request.replace(url=SITE + "/redone-as", dont_filter=True)
            case "/fetched-twice" if "inner" not in request.meta:
                inner = request.replace(meta={"inner": True})
                return await self.crawler.engine.download_async(inner)
            case "/unwanted-answer":
                raise IgnoreRequest("not this answer")
        return response

    def process_exception(self, request, exception):
        match urlsplit(request.url).path:
            case "/rescued":
                return HtmlResponse(request.url, body=b"rescued", request=request)
            case "/detour":
                return request.replace(url=SITE + "/detoured")


class Spiders(Component):
    '''A spider middleware that filters requests, adds some, and handles exceptions.'''

    async def process_spider_output(self, response, result):
        async for output in result:
            if not (isinstance(output, scrapy.Request) and "/unwanted" in output.url):
                yield output
        if response.url.endswith("/filtered"):
            yield scrapy.Request(SITE + "/added", callback=self.crawler.spider.report)

    def process_spider_exception(self, response, exception):
        if response.url.endswith("/recovered"):
            return [
                {"kind": "/recovered", "error": repr(exception)},
                scrapy.Request(SITE + "/recovery", callback=self.crawler.spider.report),
            ]


class Extension(Component):
    '''Crawls on its own account, in the middle of the crawl and when it is idle.'''

    rounds = 0

    def __init__(self, crawler):
        super().__init__(crawler)
        crawler.signals.connect(self.received, signals.response_received)
        crawler.signals.connect(self.idle, signals.spider_idle)
        crawler.signals.connect(self.scheduled, signals.request_scheduled)

    def crawl(self, path):
        self.crawler.engine.crawl(scrapy.Request(SITE + path, callback=self.crawler.spider.report))

    def received(self, response):
        if response.url.endswith("/watched"):
            self.crawl("/from-extension")

    def idle(self):
        if self.rounds < 2:
            self.rounds += 1
            self.crawl(f"/idle-{self.rounds}")
            raise DontCloseSpider

    def scheduled(self, request):
        if request.url.endswith("/vetoed"):
            raise IgnoreRequest


class SlowPipeline(Component):
    '''Looks into the queue while its page is not finished yet.'''

    async def process_item(self, item):
        if item["kind"] == "/slow":
            await asyncio.sleep(0.3)
            for file in Path().glob("*/request_queues.sqlite"):  # ours, or the API server's
                db = sqlite3.connect(file)
                rows = [json.loads(row) for row, in db.execute("SELECT json FROM requests")]
                db.close()
                early = ["handledAt" in row for row in rows if row["url"].endswith("/slow")]
                self.crawler.stats.set_value("test/handled_early", early)
        return item


class Files(FilesPipeline):
    def file_path(self, request, response=None, info=None, *, item=None):
        return "file.bin"


PLAIN = [
    "/answered", "/replaced", "/refused", "/request-bug", "/again", "/redone", "/fetched-twice",
    "/unwanted-answer", "/watched", "/seen", "/redirect-to-seen",
    "/redirect", "/refresh", "/flaky", "/down", "/slow", "/vetoed", "/robbed",
]
OTHERS = ["retried", "returned", "listed", "awaited", "generated", "filtered", "recovered",
          "raised", "downloads", "files"]


class Spider(scrapy.Spider):
    name = "spider"
    custom_settings = {
        "DOWNLOADER_MIDDLEWARES": {Downloads: 560},
        "SPIDER_MIDDLEWARES": {Spiders: 500},
        "ITEM_PIPELINES": {SlowPipeline: 100, Files: 200},
        "FILES_STORE": "files",
        "ROBOTSTXT_OBEY": True,
    }

    @classmethod
    def from_crawler(cls, crawler, *args, **kwargs):
        spider = super().from_crawler(crawler, *args, **kwargs)
        spider.extension = Extension(crawler)
        return spider

    async def start(self):
        yield {"kind": "/start", "first": True}
        for path in PLAIN:
            yield scrapy.Request(SITE + path, callback=self.report, errback=self.failed)
        for path in ("/rescued", "/detour"):
            url = f"http://127.0.0.1:1{path}"  # where nobody listens
            yield scrapy.Request(url, callback=self.report, errback=self.failed)
        for name in OTHERS:
            yield scrapy.Request(f"{SITE}/{name}", callback=getattr(self, name))
        yield scrapy.Request(SITE + "/lambda", callback=lambda response: self.report(response))
        yield {"kind": "/start", "first": False}

    def report(self, response):
        yield {
            "kind": "/" + response.request.url.rpartition("/")[2],
            "url": response.url,
            "text": response.text,
            "redirects": response.meta.get("redirect_urls"),
            "retries": response.meta.get("retry_times"),
            "depth": response.meta["depth"],
        }

    def request(self, path):
        return scrapy.Request(SITE + path, callback=self.report)

    def failed(self, failure):
        path = urlsplit(failure.request.url).path
        yield {"kind": path, "failure": repr(failure.value).partition("(")[0]}
        yield self.request(f"/failed{path}")

    def retried(self, response):
        if response.text == "not yet":
            return get_retry_request(response.request, spider=self, reason="not yet")
        return list(self.report(response))

    def returned(self, response):
        return self.request("/returned-to")

    def listed(self, response):
        return [self.request("/listed-1"), {"kind": "/listed"}, self.request("/listed-2")]

    async def awaited(self, response):
        await asyncio.sleep(0.01)
        return [self.request("/awaited-1"), {"kind": "/awaited"}]

    async def generated(self, response):
        yield self.request("/generated-1")
        await asyncio.sleep(0.01)
        yield {"kind": "/generated"}

    def filtered(self, response):
        yield self.request("/unwanted")
        yield self.request("/wanted")

    def recovered(self, response):
        yield self.request("/before-the-bug")
        raise ValueError("a bug in the callback")

    def raised(self, response):
        yield self.request("/before-the-other-bug")
        raise ValueError("another bug")

    async def downloads(self, response):
        inner = await self.crawler.engine.download_async(scrapy.Request(SITE + "/downloaded"))
        yield {"kind": "/downloads", "text": inner.text}
        yield self.request("/after-download")

    def files(self, response):
        yield {"kind": "/files", "file_urls": [SITE + "/file.bin"]}
"""
WAYS_SITE = {
    "/robots.txt": "User-agent: *\nDisallow: /robbed",
    "/redirect-to-seen": Page(status=302, headers={"Location": "/seen"}),
    "/redirect": Page(status=302, headers={"Location": "/hop"}),
    "/hop": Page(status=301, headers={"Location": "/target"}),
    "/refresh": '<html><head><meta http-equiv="refresh" content="0; url=/refreshed"></head></html>',
    "/flaky": [503, "page"],
    "/down": 503,
    "/retried": ["not yet", "not yet", "page"],
}


@pytest.fixture(scope="module")
def stock_and_ours(
    tmp_path_factory: pytest.TempPathFactory, backend: str
) -> tuple[Run, Run, Project]:
    def crawl(*options: str) -> tuple[Run, Project]:
        with Site(WAYS_SITE, default="page") as site:
            project = Project(tmp_path_factory.mktemp("ways"), WAYS, site=site.url)
            return run(project, site, *options), project

    stock, _ = crawl(*STOCK)
    return stock, *crawl()


@pytest.fixture(scope="module")
def ways(stock_and_ours: tuple[Run, Run, Project]) -> Run:
    return stock_and_ours[1]


@pytest.fixture(scope="module")
def entries(stock_and_ours: tuple[Run, Run, Project]) -> dict[str, list[Entry]]:
    """All that the queue holds in the end, by path."""
    by_path: dict[str, list[Entry]] = {}
    for entry in stock_and_ours[2].entries():
        by_path.setdefault(urlsplit(entry.url).path, []).append(entry)
    return by_path


def test_the_site_is_asked_for_the_same_pages_as_by_stock_scrapy(
    stock_and_ours: tuple[Run, Run, Project],
) -> None:
    stock, ours, _ = stock_and_ours
    assert ours.paths == stock.paths


def test_the_same_items_are_scraped_as_by_stock_scrapy(
    stock_and_ours: tuple[Run, Run, Project],
) -> None:
    stock, ours, _ = stock_and_ours
    assert sorted(map(repr, ours.items)) == sorted(map(repr, stock.items))


def test_the_same_errors_are_counted_as_by_stock_scrapy(
    stock_and_ours: tuple[Run, Run, Project],
) -> None:
    stock, ours, _ = stock_and_ours
    for name in (
        "spider_exceptions/count",
        "dupefilter/filtered",
        "retry/count",
        "downloader/exception_count",
        "scheduler/enqueued",
        "scheduler/dequeued",
        "finish_reason",
    ):
        assert ours.stats[name] == stock.stats[name], name


def test_all_is_handled_in_the_end(entries: dict[str, list[Entry]]) -> None:
    assert [path for path, (entry, *_) in entries.items() if entry.handled_at is None] == []


# Callbacks.


def test_items_of_start_are_scraped(ways: Run) -> None:
    assert [item["first"] for item in ways.found("/start")] == [False, True]


@pytest.mark.parametrize(
    "path",
    ["/returned-to", "/listed-1", "/listed-2", "/awaited-1", "/generated-1", "/after-download"],
)
def test_what_a_callback_returns_is_crawled_as_what_it_yields(ways: Run, path: str) -> None:
    assert ways.paths[path] == 1
    assert len(ways.found(path)) == 1


def test_a_lambda_as_callback_is_crawled_from_memory(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert len(ways.found("/lambda")) == 1
    assert "/lambda" not in entries
    assert ways.stats["scheduler/unserializable"] == 1
    assert ways.stats["scheduler/dequeued/memory"] == 1
    assert "Unable to serialize request" in ways.crawl.log


def test_get_retry_request_in_a_callback_requeues_the_entry(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert ways.paths["/retried"] == 3
    (entry,) = entries["/retried"]
    assert (entry.retry_count, entry.failed) == (2, False)


@pytest.mark.parametrize("path", ["/refused", "/request-bug", "/unwanted-answer", "/down"])
def test_an_errback_gets_the_failure_and_its_requests_are_crawled(
    ways: Run, entries: dict[str, list[Entry]], path: str
) -> None:
    assert [item for item in ways.found(path) if "failure" in item]
    assert ways.paths[f"/failed{path}"] == 1
    assert entries[path][0].failed


def test_requests_yielded_before_a_callback_raised_are_crawled(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert ways.paths["/before-the-bug"] == ways.paths["/before-the-other-bug"] == 1
    assert entries["/raised"][0].error_messages == ["ValueError: another bug"]


def test_engine_download_in_a_callback_leaves_the_queue_alone(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert ways.paths["/downloaded"] == 1
    assert ways.paths["/file.bin"] == 1
    assert not {"/downloaded", "/file.bin", "/robots.txt"} & entries.keys()


# Components.


def test_a_page_is_not_acked_before_its_item_pipelines_have_ended(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert ways.stats["test/handled_early"] == [False]
    assert entries["/slow"][0].handled_at is not None


@pytest.mark.parametrize(
    ("path", "crawled"),
    [
        ("/answered", {}),
        ("/rescued", {}),
        ("/fetched-twice", {"/fetched-twice": 2}),
    ],
)
def test_a_response_made_by_a_downloader_middleware_is_no_failure(
    ways: Run, entries: dict[str, list[Entry]], path: str, crawled: dict[str, int]
) -> None:
    assert {hit: count for hit, count in ways.paths.items() if hit == path} == crawled
    assert len(ways.found(path)) == 1
    (entry,) = entries[path]
    assert not entry.failed
    assert entry.loaded_url is not None
    assert entry.loaded_url.endswith(path)


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/replaced", "/replacement"),
        ("/redone", "/redone-as"),
        ("/detour", "/detoured"),
        ("/redirect", "/target"),
        ("/redirect-to-seen", "/seen"),
        ("/refresh", "/refreshed"),
    ],
)
def test_a_request_that_a_downloader_middleware_returns_is_crawled_instead(
    ways: Run, entries: dict[str, list[Entry]], path: str, instead: str
) -> None:
    assert not ways.found(path)
    assert len(ways.found(instead)) == 1
    assert ways.paths[instead] == len(entries[instead]) == 1


def test_a_request_that_a_downloader_middleware_returns_unchanged_is_crawled_again(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert ways.paths["/again"] == len(entries["/again"]) == 2
    assert len(ways.found("/again")) == 1


def test_a_spider_middleware_filters_and_adds(ways: Run, entries: dict[str, list[Entry]]) -> None:
    assert ways.paths["/wanted"] == ways.paths["/added"] == 1
    assert "/unwanted" not in entries


def test_a_spider_middleware_that_handles_the_exception_makes_it_no_failure(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert len(ways.found("/recovered")) == 1
    assert ways.paths["/recovery"] == 1
    assert not entries["/recovered"][0].failed


def test_an_extension_crawls_while_others_do_and_when_the_spider_is_idle(ways: Run) -> None:
    assert ways.paths["/from-extension"] == 1
    assert ways.paths["/idle-1"] == ways.paths["/idle-2"] == 1


def test_a_request_that_the_request_scheduled_signal_refuses_is_not_queued(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert "/vetoed" not in entries
    assert "/vetoed" not in ways.paths


def test_a_page_that_robots_txt_forbids_is_not_fetched(
    ways: Run, entries: dict[str, list[Entry]]
) -> None:
    assert "/robbed" not in ways.paths
    assert "robots.txt" in entries["/robbed"][0].error_messages[0]


OLD = """
class OldStart:
    def process_start_requests(self, start_requests, spider):
        yield from start_requests
        yield scrapy.Request(SITE + "/start", callback=spider.parse)


class OldOutput:
    def process_spider_output(self, response, result, spider):
        for output in result:
            yield output.replace(url=output.url + "?old")


class Spider(scrapy.Spider):
    name = "spider"

    def start_requests(self):
        yield scrapy.Request(SITE + "/")

    def parse(self, response):
        if response.url == SITE + "/":
            yield scrapy.Request(SITE + "/before-the-bug")
            raise ValueError("a bug in the callback")
"""


@pytest.mark.skipif(not hasattr(Spider, "start_requests"), reason="gone since Scrapy 2.16")
@pytest.mark.parametrize(
    ("middleware", "paths"),
    [
        ("OldStart", ["/", "/before-the-bug", "/start"]),
        ("OldOutput", ["/", "/before-the-bug?old"]),
    ],
)
def test_spider_middlewares_in_the_style_of_scrapy_before_2_13_work(
    tmp_path: Path, middleware: str, paths: list[str]
) -> None:
    settings = {"SPIDER_MIDDLEWARES": {f"project.spiders.{middleware}": 500}}
    script = """
        import warnings
        from scrapy.cmdline import execute

        warnings.filterwarnings("ignore", module="scrapy")  # they are deprecated
        execute()
    """
    with Site({}, default="page") as site:
        project = Project(tmp_path, OLD, site=site.url, settings=settings)
        crawl = project.run("crawl", "spider", script=script)
    assert sorted(site.paths) == paths, crawl.log
    assert "downgraded" not in crawl.log
    assert project.info().handled == len(paths)
