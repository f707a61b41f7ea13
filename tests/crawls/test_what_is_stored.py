"""Nothing that a downloader middleware puts on a request on its way out gets into the queue."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.downloadermiddlewares.retry import RetryMiddleware, get_retry_request
from scrapy.exceptions import IgnoreRequest
from scrapy.http import Response

from scrapy_apify_rq.entries.models import Entry
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Hit, Page, Site

SECRET = base64.b64encode(b"user:secret").decode()


class RotatingUserAgent:
    """As the middlewares of many projects do it."""

    def __init__(self) -> None:
        self._count = 0

    def process_request(self, request: Request) -> None:
        self._count += 1
        request.headers["User-Agent"] = f"browser {self._count}"


ROTATING = {"DOWNLOADER_MIDDLEWARES": {RotatingUserAgent: 450}}


def header(hit: Hit, name: str) -> str | None:
    return dict(hit.headers).get(name)


def hits(site: Site, path: str) -> list[Hit]:
    return [hit for hit in site.hits if hit.path.endswith(path)]


def stored_headers(entry: Entry) -> set[str]:
    """The names, in whichever of the two ways they are stored."""
    exact = entry.user_data["scrapy"].get("headers", [])
    return {name.lower() for name in (*(entry.headers or {}), *(pair[0] for pair in exact))}


def stored_meta(entry: Entry) -> dict[str, Any]:
    meta: dict[str, Any] = entry.user_data["scrapy"].get("meta", {})
    return meta


async def until_retried(crawls: Crawls, crawl: Crawl, again: Held) -> None:
    """Wait until the retry is saved, and the site has been asked again."""
    await wait_until(lambda: crawl.stats.get("apify_rq/retried") == 1, "the saving of the retry")
    await wait_until(again.begun.is_set, "the second try")


async def test_retry_without_credentials_of_the_environment(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", site.url.replace("//", "//user:secret@"))
    page = "http://example.com/"
    again = Held("page")
    site.serve({page: [503, again, "page"]})
    crawl = await crawls.start(Links, site="http://example.com")
    await until_retried(crawls, crawl, again)
    copy = queue.copy()
    again.go.set()
    await crawl.end()
    for entry in (await copy.entry("/"), await queue.entry("/")):
        text = entry.model_dump_json()
        assert entry.retry_count == 1
        assert "proxy-authorization" not in text.lower()
        assert SECRET not in text
        assert "_auth_proxy" not in text
        assert not stored_meta(entry).get("proxy")

    resumed = await crawls.run(Links, queue=copy, site="http://example.com")
    assert resumed.spider.handled == ["/"]
    assert [header(hit, "Proxy-Authorization") for hit in site.hits] == [f"Basic {SECRET}"] * 3


async def test_retry_with_the_credentials_that_the_spider_gave(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    proxy = site.url.replace("//", "//user:secret@")

    class ByProxy(SiteSpider):
        async def start(self) -> AsyncIterator[Any]:
            yield Request("http://example.com/", meta={"proxy": proxy})

        def parse(self, response: Response) -> None:
            self.note(response)

    again = Held("page")
    site.serve({"http://example.com/": [503, again, "page"]})
    crawl = await crawls.start(ByProxy)
    await until_retried(crawls, crawl, again)
    copy = queue.copy()
    again.go.set()
    await crawl.end()
    entry = await copy.entry("/")
    assert "proxy-authorization" not in stored_headers(entry)
    assert "_auth_proxy" not in stored_meta(entry)

    resumed = await crawls.run(ByProxy, queue=copy)
    assert resumed.spider.handled == ["/"]
    assert [header(hit, "Proxy-Authorization") for hit in site.hits] == [f"Basic {SECRET}"] * 3


class LogsIn(SiteSpider):
    """Is given a cookie by its first page, and goes on to /next in the way it is asked to."""

    way = "follow"

    def parse(self, response: Response) -> Iterator[Any]:
        self.note(response)
        if self.way == "replace":
            assert response.request is not None
            yield response.request.replace(url=f"{self.site}/next", callback=self.parse_next)
        else:
            yield response.follow("/next", callback=self.parse_next)

    def parse_next(self, response: Response) -> None:
        self.note(response)


async def test_retry_without_cookies_and_user_agent(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    again = Held("page")
    site.serve({"/": Page("in", headers={"Set-Cookie": "session=1"}), "/next": [503, again]})
    crawl = await crawls.start(LogsIn, ROTATING, site=site.url)
    await until_retried(crawls, crawl, again)
    entry = await queue.copy().entry("/next")
    again.go.set()
    await crawl.end()
    assert not {"cookie", "user-agent"} & stored_headers(entry)
    # In this process, the middlewares have put both on the retry as well.
    first, second = hits(site, "/next")
    assert header(first, "Cookie") == header(second, "Cookie") == "session=1"
    assert [header(hit, "User-Agent") for hit in (first, second)] == ["browser 2", "browser 3"]


async def test_retry_without_what_belongs_to_one_attempt(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    class WithMeta(LogsIn):
        def parse(self, response: Response) -> Iterator[Any]:
            self.note(response)
            yield response.follow("/next", meta={"mine": 1}, callback=self.parse_next)

    again = Held("page")
    site.serve({"/": "page", "/next": [503, again]})
    crawl = await crawls.start(WithMeta, site=site.url)
    await until_retried(crawls, crawl, again)
    meta = stored_meta(await queue.copy().entry("/next"))
    again.go.set()
    await crawl.end()
    lasting = {"mine": 1, "depth": 1, "retry_times": 1}
    assert {name: meta.get(name) for name in lasting} == lasting
    assert not {"download_latency", "download_slot", "download_timeout", "proxy"} & set(meta)


@pytest.mark.parametrize("way", ["follow", "replace", "meta"])
async def test_child_without_cookies_and_user_agent(
    site: Site, queue: Queue, crawls: Crawls, way: str
) -> None:
    """A spider that makes a request of the one that was sent copies what was put on that one. So
    does one that lets a request carry it, to ask for it again later.
    """

    class Again(SiteSpider):
        async def start(self) -> AsyncIterator[Any]:
            yield Request(f"{self.site}/login", callback=self.parse_login)

        def parse_login(self, response: Response) -> Iterator[Any]:
            yield response.follow("/")

        def parse(self, response: Response) -> Iterator[Any]:
            self.note(response)
            assert response.request is not None
            if response.url.endswith("/next"):
                return
            if way == "meta":
                yield Request(
                    f"{self.site}/between", self.parse_between, meta={"page": response.request}
                )
            elif way == "replace":
                yield response.request.replace(url=f"{self.site}/next")
            else:
                yield response.follow("/next")

        def parse_between(self, response: Response) -> Iterator[Any]:
            yield Request(f"{self.site}/next", meta={"page": [response.meta["page"]]})

    site.serve({"/login": Page("in", headers={"Set-Cookie": "a=1"}), "/": "page", "/next": "page"})
    site.serve({"/between": "page"})
    crawl = await crawls.run(Again, ROTATING, site=site.url)
    assert crawl.spider.handled == ["/", "/next"]
    for entry in await queue.entries():
        assert not {"cookie", "user-agent"} & stored_headers(entry)
        text = entry.to_json()
        assert [word for word in ("browser", "a=1", "download_latency") if word in text] == []


class Credits:
    """Puts a secret on the way out, and the next middleware keeps the request from going there."""

    def process_request(self, request: Request) -> Any:
        if request.url.endswith("/next"):
            return None
        request.meta["token"] = "secret"
        way = request.url.rpartition("/")[2]
        if way == "answered":
            return Response(request.url)
        if way == "replaced":
            return request.replace(url=f"{request.url}/next")
        raise IgnoreRequest


class Inherits(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        for way in ("answered", "replaced", "refused"):
            yield Request(f"{self.site}/{way}", self.parse, errback=self.parse)

    def parse(self, response: Any) -> Iterator[Any]:
        if not response.request.url.endswith("/next"):
            url = f"{response.request.url}/next"
            yield Request(url, meta={**response.request.meta, "mine": 1})


async def test_child_of_a_page_that_was_not_downloaded(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """It is made from a cached page, put in the place of a request, or yielded by an errback."""
    settings = {"DOWNLOADER_MIDDLEWARES": {Credits: 900}}
    await crawls.run(Inherits, settings, site=site.url)
    for way in ("answered", "replaced", "refused"):
        meta = stored_meta(await queue.entry(f"/{way}/next"))
        assert "token" not in meta, way
        assert ("mine" in meta) == (way != "replaced")


def marked(request: Request) -> Request | None:
    """The very same request, to be crawled again with a mark; None if it has the mark."""
    if "X-Mark" in request.headers:
        return None
    request.headers["X-Mark"] = "1"
    return request


class Marks:
    def process_response(self, request: Request, response: Response) -> Any:
        return (request.url.endswith("/middleware") and marked(request)) or response


class YieldsItsOwn(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        for who in ("callback", "errback", "middleware"):
            url = f"{self.site}/{who}"
            yield Request(url, self.parse, errback=self.failed, dont_filter=True)

    def parse(self, response: Response) -> Any:
        assert response.request is not None
        return marked(response.request)

    def failed(self, failure: Any) -> Any:
        return marked(failure.request)


async def test_request_that_is_changed_and_scheduled_again(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """It is still in flight then, so what is stored of it is crawled, and not the object."""
    site.serve({"/callback": "page", "/errback": 404, "/middleware": "page"})
    settings = {"DOWNLOADER_MIDDLEWARES": {RotatingUserAgent: 450, Marks: 460}}
    settings["CLOSESPIDER_PAGECOUNT"] = 20  # type: ignore[assignment]
    await crawls.run(YieldsItsOwn, settings, site=site.url)
    for who in ("callback", "errback", "middleware"):
        assert [header(hit, "X-Mark") for hit in hits(site, f"/{who}")] == [None, "1"], who
    stored = [stored_headers(entry) for entry in await queue.entries()]
    assert sum("x-mark" in names for names in stored) == 3
    assert not any("user-agent" in names for names in stored)


async def test_redirect_without_cookies_and_user_agent(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve(
        {
            "/": Page("in", headers={"Set-Cookie": "session=1"}),
            "/next": Page("", 302, {"Location": "/target"}),
            "/target": "page",
        }
    )
    crawl = await crawls.run(LogsIn, ROTATING, site=site.url)
    assert crawl.spider.handled == ["/", "/target"]
    assert not {"cookie", "user-agent"} & stored_headers(await queue.entry("/target"))
    (hit,) = hits(site, "/target")
    assert header(hit, "Cookie") == "session=1"


async def test_redirect_without_credentials_of_the_environment(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", site.url.replace("//", "//user:secret@"))
    moved = Page("", 302, {"Location": "/target"})
    site.serve({"http://example.com/": moved, "http://example.com/target": "page"})
    crawl = await crawls.run(Links, site="http://example.com")
    assert crawl.spider.handled == ["/target"]
    text = (await queue.entry("/target")).model_dump_json()
    assert "proxy-authorization" not in text.lower()
    assert SECRET not in text
    assert "_auth_proxy" not in text


async def test_redirect_of_a_post_drops_what_belonged_to_its_body(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    class Posts(SiteSpider):
        async def start(self) -> AsyncIterator[Any]:
            yield Request(
                f"{self.site}/form",
                method="POST",
                body=b"{}",
                headers={"Content-Type": "application/json", "X-Mine": "yes"},
            )

        def parse(self, response: Response) -> None:
            self.note(response)

    site.serve({"/form": Page("", 302, {"Location": "/target"}), "/target": "page"})
    crawl = await crawls.run(Posts, site=site.url)
    assert crawl.spider.handled == ["/target"]
    entry = await queue.entry("/target")
    assert (entry.method, entry.payload) == ("GET", None)
    assert "x-mine" in stored_headers(entry)
    assert not {"content-type", "content-length"} & stored_headers(entry)


class ChangesOnPurpose(RetryMiddleware):
    """A project's own: each retry goes out with another header."""

    def process_response(self, request: Request, response: Response, *_: Any) -> Any:
        if response.status != 503:
            return response
        assert self.crawler.spider is not None
        retry = get_retry_request(request, spider=self.crawler.spider, reason="blocked")
        assert retry is not None
        retry.headers["X-Try"] = "2"
        retry.headers["User-Agent"] = "another browser"
        retry.meta["mode"] = "careful"
        return retry


@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
async def test_retry_keeps_its_own_changes(site: Site, queue: Queue, crawls: Crawls) -> None:
    again = Held("page")
    site.serve({"/": [503, again]})
    middlewares = {RetryMiddleware: None, ChangesOnPurpose: 550, RotatingUserAgent: None}
    settings = {"DOWNLOADER_MIDDLEWARES": middlewares}
    crawl = await crawls.start(Links, settings, site=site.url)
    await until_retried(crawls, crawl, again)
    entry = await queue.copy().entry("/")
    again.go.set()
    await crawl.end()
    first, second = site.hits
    assert header(first, "X-Try") is None
    assert header(second, "X-Try") == "2"
    assert header(second, "User-Agent") == "another browser"
    assert "x-try" in stored_headers(entry)
    assert stored_meta(entry)["mode"] == "careful"
    assert "accept" not in stored_headers(entry)  # of DefaultHeadersMiddleware
