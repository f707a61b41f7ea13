"""Requests of all kinds: the site and the callbacks get what they get in stock Scrapy.

Also where a request was read back from the queue.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.exceptions import ScrapyDeprecationWarning
from scrapy.http import FormRequest, JsonRequest, Response, XmlRpcRequest

from tests.support.comparing import stock_and_ours
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.website import Hit, Page, Site


class SignedRequest(Request):
    attributes = (*Request.attributes, "signature")

    def __init__(self, *args: Any, signature: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.signature = signature


class Watch:
    """Signs requests, and notes those that came from the queue and not from the spider's hands."""

    def __init__(self, crawler: Crawler) -> None:
        self.crawler: Any = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Watch:
        return cls(crawler)

    async def process_request(self, request: Request) -> None:
        spider = self.crawler.spider
        if request.url.endswith("/first"):  # the second is to fill a window of one
            await spider.all_are_made.wait()
        if not any(request is made for made in spider.made):
            spider.decoded.append(urlsplit(request.url).path)
        if isinstance(request, SignedRequest):
            request.headers["X-Signature"] = repr(request.signature)


class Kinds(SiteSpider):
    custom_settings = {  # noqa: RUF012 (Scrapy's way)
        "DOWNLOADER_MIDDLEWARES": {Watch: 901},
        "CONCURRENT_REQUESTS": 1,
    }

    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.made: list[Request] = []
        self.decoded: list[str] = []
        self.all_are_made = asyncio.Event()

    def parse(self, response: Any) -> Iterator[Request]:
        for request in self.requests(response):
            self.made.append(request)
            yield request
        self.all_are_made.set()

    def requests(self, response: Any) -> Iterator[Request]:
        make = self.make
        yield make("/first", priority=2)
        yield make("/second", priority=1)
        yield make("/get?q=a b&z=é#top")
        yield make("/post", method="POST", body="text é")
        yield make("/form", FormRequest, formdata={"a": ["1", "2"], "ü": "&"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScrapyDeprecationWarning)
            form = FormRequest.from_response(response, formdata={"user": "me"})
        yield form.replace(callback=self.report, meta={"kind": "/submitted"})
        data = {"b": [1, None, "é"], "a": {}}
        yield make("/json", JsonRequest, data=data, dumps_kwargs={"sort_keys": True})
        yield make("/json-put", JsonRequest, data=[1], method="PUT")
        yield make("/xmlrpc", XmlRpcRequest, methodname="add", params=(1, "two"))
        yield make("/signed", SignedRequest, signature=("key", 7))
        yield make("/binary", method="PUT", body=bytes(range(256)))
        yield make("/purge", method="PURGE")
        yield make("/head", method="HEAD")
        own = {"Referer": f"{self.site}/else", "User-Agent": "me/1.0", "Accept": ""}
        yield make("/headers", headers={"X-Utf": "é", **own})
        yield make("/many-headers", headers={"X-Many": ["1", "2, 3"]})
        yield make("/raw-headers", headers={"X-Raw": "é".encode("latin-1")})
        yield make("/cookies", cookies={"a": "1", "b": "2"}, meta={"cookiejar": "dict"})
        cookies = [
            {"name": "c", "value": "3", "path": "/"},
            {"name": "d", "value": "4", "domain": "elsewhere.example"},
        ]
        yield make("/cookie-list", meta={"cookiejar": "list"}, cookies=cookies)
        for name in ("ann", "bob"):
            yield make(f"/login?{name}", meta={"cookiejar": name}, callback=self.logged_in)
        odd = {"t": (1, 2), "s": {3}, 4: b"\xff", "n": None}
        more = [Decimal("1.10"), datetime(2024, 1, 2, tzinfo=UTC)]
        yield make("/kwargs", cb_kwargs={"kwargs": odd, "more": more})
        yield make("/meta", meta={"note": ("x", {"y": frozenset([1])}, b"z", 1 << 70)})
        yield make("/flags", flags=["seen", "twice"])
        yield make("/encoding?q=п", encoding="cp1251", method="POST", body="п")
        yield make("/unfiltered", dont_filter=True)
        yield make("/unfiltered", dont_filter=True)
        yield make("/missing", callback=None, errback=self.failed)

    def make(self, path: str, cls: type[Request] = Request, **values: Any) -> Request:
        values["meta"] = {"kind": path.partition("?")[0], **values.get("meta", {})}
        return cls(self.site + path, **{"callback": self.report, **values})

    def logged_in(self, response: Response) -> Iterator[Request]:
        jar = response.meta["cookiejar"]
        yield self.make(f"/account?{jar}", meta={"cookiejar": jar})

    def report(self, response: Any, **kwargs: Any) -> Any:
        request = response.request
        seen = ("url", "encoding", "flags", "cookies", "priority", "dont_filter")
        own = ("signature", "dumps_kwargs")
        yield {
            "kind": request.meta["kind"],
            "note": request.meta.get("note"),
            "class": type(request),
            "kwargs": kwargs,
            "response_flags": response.flags,
            **{name: getattr(request, name) for name in seen},
            **{name: getattr(request, name, None) for name in own},
        }

    def failed(self, failure: Any) -> Any:
        response, kind = failure.value.response, failure.request.meta["kind"]
        yield {"kind": "/failure", "of": kind, "error": failure.value, "status": response.status}
        yield self.make("/from-errback")


def login(hit: Hit) -> Page:
    return Page("in", headers={"Set-Cookie": f"who={hit.path.partition('?')[2]}"})


PAGES = {
    "/": '<form action="/submit" method="post"><input name="user"><input name="hidden" value="1">',
    "/login?ann": login,
    "/login?bob": login,
    "/missing": 404,
}


@pytest.mark.parametrize("decoded", [False, True])
async def test_requests_of_all_kinds(any_queue: Queue, crawls: Crawls, decoded: bool) -> None:
    with Site(PAGES, default="page") as site:
        settings = {"APIFY_RQ_WINDOW": 1} if decoded else {}
        stock, ours = await stock_and_ours(crawls, Kinds, site, settings, any_queue)
    assert ours.received == stock.received
    assert ours.outcome == stock.outcome
    assert len(stock.received) == 30
    assert len(stock.items) == 27
    assert "scheduler/unserializable" not in ours.crawl.stats
    # The requests compared come from where the test says; those never listed are made later.
    paths = {path.partition("?")[0] for path in ours.paths}
    never_listed = {"/", "/account", "/from-errback"}
    read = ours.crawl.spider.decoded
    assert set(read) == (paths - {"/first"} if decoded else never_listed)
    assert read.count("/unfiltered") == (2 if decoded else 0)
    # Headers arrive byte for byte; the site reads all of them as latin-1.
    sent = {"/headers": ("X-Utf", ["Ã©"]), "/many-headers": ("X-Many", ["1", "2, 3"])}
    for path, (name, values) in {**sent, "/raw-headers": ("X-Raw", ["é"])}.items():
        ((_, _, headers),) = ours.received[path]
        assert [value for key, value in headers if key == name] == values
    for name in ("ann", "bob"):  # sessions keep their cookies apart
        ((_, _, headers),) = ours.received[f"/account?{name}"]
        assert ("Cookie", f"who={name}") in headers
