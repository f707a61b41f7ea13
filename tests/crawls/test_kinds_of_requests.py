"""Requests of all kinds: the site and the callbacks get what they get in stock Scrapy.

Also where a request was read back from the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from scrapy import Request
from scrapy.http import FormRequest, JsonRequest, Response, XmlRpcRequest

from tests.support.comparing import Run, stock_and_ours
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.website import Held, Hit, Page, Site


class SignedRequest(Request):
    attributes = (*Request.attributes, "signature")

    def __init__(self, *args: Any, signature: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.signature = signature


class Kinds(SiteSpider):
    """Lets the page ``first`` go when all is in the queue, where the second fills the window."""

    def __init__(self, site: str, first: Held) -> None:
        super().__init__(site)
        self.made: list[Request] = []
        self.first = first
        first.go.clear()

    def parse(self, response: Any) -> Iterator[Request]:
        for request in self.requests(response):
            self.made.append(request)
            yield request
        self.first.go.set()

    def requests(self, response: Any) -> Iterator[Request]:
        make = self.make
        yield make("/first", priority=2)
        yield make("/second", priority=1)
        yield make("/get?q=a b&z=é#top")
        yield make("/post", method="POST", body="text é")
        yield make("/form", FormRequest, formdata={"a": ["1", "2"], "ü": "&"})
        form = FormRequest.from_response(response, formdata={"user": "me"})
        yield form.replace(callback=self.report)
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
        cookies = [{"name": "c", "value": "3", "path": "/"}]
        cookies += [{"name": "d", "value": "4", "domain": "elsewhere.example"}]
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
        return cls(self.site + path, **{"callback": self.report, **values})

    def logged_in(self, response: Response) -> Iterator[Request]:
        jar = response.meta["cookiejar"]
        yield self.make(f"/account?{jar}", meta={"cookiejar": jar})

    def report(self, response: Any, **kwargs: Any) -> Any:
        seen = response.request.to_dict(spider=self)
        del seen["meta"]["download_latency"]
        yield {"kwargs": kwargs, "flags of the response": response.flags, **seen}

    def failed(self, failure: Any) -> Any:
        yield {"of": failure.request.url, "error": failure.value}
        yield self.make("/from-errback")


def received(run: Run) -> dict[str, list[tuple[str, bytes, list[tuple[str, str]]]]]:
    """Method, body and headers of all requests, by path."""
    by_path: dict[str, Any] = {path: [] for path in sorted(run.paths)}
    for hit in run.hits:
        by_path[hit.path].append((hit.method, hit.body, sorted(hit.headers)))
    return by_path


def login(hit: Hit) -> Page:
    return Page("in", headers={"Set-Cookie": f"who={hit.path.partition('?')[2]}"})


FORM = '<form action="/submit" method="post"><input name="user"><input name="hidden" value="1">'


@pytest.mark.filterwarnings("ignore:.*from_response")
async def test_requests_of_all_kinds(any_queue: Queue, crawls: Crawls) -> None:
    """Over the API, all of them are decoded; the embedded queue hands out the objects themselves,
    as far as it has them.
    """
    decoded = isinstance(any_queue, ServedQueue)
    first = Held("page")
    logins = {"/login?ann": login, "/login?bob": login}
    settings = {"CONCURRENT_REQUESTS": 1, **({"APIFY_RQ_WINDOW": 1} if decoded else {})}
    with Site({"/": FORM, "/first": first, **logins, "/missing": 404}, default="page") as site:
        stock, ours = await stock_and_ours(crawls, Kinds, site, any_queue, settings, first=first)
    assert ours.outcome == stock.outcome
    assert received(ours) == received(stock)
    assert (len(stock.paths), len(stock.crawl.items)) == (30, 28)
    assert "scheduler/unserializable" not in ours.crawl.stats
    # The requests compared come from where the test says; those never listed are made later.
    made = {id(request) for request in ours.crawl.spider.made}
    read = [urlsplit(each.url).path for each in ours.crawl.fetched if id(each) not in made]
    paths = {path.partition("?")[0] for path in ours.paths}
    assert set(read) == (paths - {"/first"} if decoded else {"/", "/account", "/from-errback"})
    assert read.count("/unfiltered") == (2 if decoded else 0)
    # Headers arrive byte for byte (the site reads latin-1), and sessions keep their cookies apart.
    headers = {path: all_of_them[0][2] for path, all_of_them in received(ours).items()}
    for path, name, *values in (
        ("/headers", "X-Utf", "Ã©"),
        ("/many-headers", "X-Many", "1", "2, 3"),
        ("/raw-headers", "X-Raw", "é"),
    ):
        assert [value for key, value in headers[path] if key == name] == values
    for name in ("ann", "bob"):
        assert ("Cookie", f"who={name}") in headers[f"/account?{name}"]
