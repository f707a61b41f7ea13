"""What requests of a paused crawl hold comes back, as it does from stock's JOBDIR.

Requests of plugins are tested where the plugins are installed.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import AwareDatetime, BaseModel, HttpUrl
from scrapy import Request
from scrapy.http import Headers, JsonRequest, Response
from scrapy.link import Link
from scrapy.settings import Settings

from scrapy_apify_rq.config import Config
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from tests.support.codec_classes import (
    SPIDER,
    Access,
    Color,
    Name,
    Plain,
    Slotted,
    Step,
    a_function,
)
from tests.support.crawling import Crawls
from tests.support.exact_values import describe
from tests.support.queues import Queue, copied
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site


class Offer(BaseModel):
    url: HttpUrl
    at: AwareDatetime


def pickled() -> dict[str, Any]:
    """What stock's queue on disk takes."""
    offer = Offer(url="https://example.com", at="2024-01-02T03:04:05+02:00")  # type: ignore[arg-type]
    return {
        "enums": [Color.RED, Access(3)],
        "tuples": Step("u", 1),
        "mappings": [OrderedDict(a=1), Counter("aab"), defaultdict(list, a=[1])],
        "deque": deque([1], 3),
        "range": range(1, 9, 2),
        "pattern": re.compile("a", re.I),
        "path": Path("a/b"),
        "link": Link("https://example.com", "text"),
        "headers": Headers({"A": "b"}),
        "inject": [Offer, Slotted, dict],
        "function": a_function,
        "objects": [Plain.of(x=(1,)), Slotted({2}), Name("n")],
        "offer": offer,
        "parts": [offer.url, offer.at],
        "numbers": [10.0, -0.0, 1e300, 2**60, 1 + 2j, Decimal("1.0")],
        "requests": [Request("https://example.com/a", meta={"at": date(2024, 1, 2)})],
    }


class Carries(SiteSpider):
    """Its first page leads to one page for each value, and to one with more than stock takes."""

    def parse(self, response: Response) -> Iterator[Request]:
        for name, value in self.values().items():
            yield response.follow(f"/{name}", self.keep, meta={"v": value}, cb_kwargs={"v": value})

    def values(self) -> dict[str, Any]:
        later = JsonRequest(f"{self.site}/later", data={"a": 1}, callback=self.keep)
        later.meta["v"] = {"page_init": self.init_page}
        return {**pickled(), "methods": [self.init_page, later]}

    def keep(self, response: Response, v: Any) -> None:
        self.handled.append((response.url.rpartition("/")[2], v, response.meta["v"]))  # type: ignore[arg-type]

    async def init_page(self, page: Any) -> None: ...


async def test_a_paused_crawl_brings_all_values_back(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    spider = Carries(site=site.url)
    values = spider.values()
    for name, value in pickled().items():
        stock = pickle.loads(pickle.dumps(Request("data:,", meta={"v": value}).to_dict()))
        assert describe(stock["meta"]["v"]) == describe(value), name
    pages = {f"/{name}": Held("page") for name in values}
    site.serve({"/": "page", **pages})
    crawl = await crawls.start(Carries, {"CONCURRENT_REQUESTS": 1}, queue=any_queue, site=site.url)
    await wait_until(lambda: any(page.begun.is_set() for page in pages.values()))
    with copied(any_queue) as copy:
        for page in pages.values():
            page.go.set()
        await crawl.end()
        resumed = await crawls.run(Carries, queue=copy, site=site.url)
    assert "scheduler/unserializable" not in crawl.stats
    assert resumed.reason == "finished"
    assert {name for name, *_ in resumed.spider.handled} == values.keys()
    expected = resumed.spider.values()
    for name, *found in resumed.spider.handled:
        assert describe(found) == describe([expected[name]] * 2), name


# Requests of plugins


def of_playwright(url: str) -> Iterator[Request]:
    page = pytest.importorskip("scrapy_playwright.page")
    methods = [page.PageMethod("click", "a", timeout=10.0), page.PageMethod(a_function, 1)]
    meta = {"playwright": True, "playwright_page_methods": methods}
    yield Request(url, meta={**meta, "playwright_page_init_callback": a_function})


def of_poet(url: str) -> Iterator[Request]:
    pytest.importorskip("scrapy_poet")
    web_poet = pytest.importorskip("web_poet")
    yield Request(url, meta={"inject": [web_poet.HttpClient, web_poet.WebPage, Slotted]})
    yield Request(url, meta={"page_params": web_poet.PageParams(a=1)})


def of_zyte_api(url: str) -> Iterator[Request]:
    pytest.importorskip("scrapy_zyte_api")
    items = pytest.importorskip("zyte_common_items")
    product = items.Product(url=url, name="a")
    yield Request(url, meta={"zyte_api": {"browserHtml": True, "actions": [{"action": "click"}]}})
    yield Request(url, meta={"zyte_api_automap": {"geolocation": "US"}, "product": product})


def of_impersonate(url: str) -> Iterator[Request]:
    pytest.importorskip("scrapy_impersonate")
    curl = pytest.importorskip("curl_cffi")
    args = {"verify": False, "timeout": 10.0, "http_version": curl.CurlHttpVersion.V2TLS}
    options = {curl.CurlOpt.TIMEOUT_MS: 1000}
    meta = {"impersonate": "chrome124", "impersonate_args": args}
    yield Request(url, meta={**meta, "impersonate_curl_options": options})


def of_splash(url: str) -> Iterator[Request]:
    # Version 0.11 needs what Scrapy 2.16 has removed.
    splash = pytest.importorskip("scrapy_splash", exc_type=ImportError)
    yield splash.SplashRequest(url, args={"wait": 0.5}, cache_args=["lua"])
    yield splash.SplashRequest(url, endpoint="execute", splash_headers=Headers({"A": "b"}))
    options = {"dont_process_response": True, "http_status_from_error_code": False}
    yield splash.SplashRequest(url, **options, session_id=None)
    yield splash.SplashFormRequest(url, formdata={"a": "b"})


PLUGINS: dict[Any, dict[str, Any]] = {
    of_playwright: {"DOWNLOAD_HANDLERS": {"x": "scrapy_playwright.handler.Handler"}},
    of_poet: {"ADDONS": {"scrapy_poet.Addon": 300}},
    of_zyte_api: {"ADDONS": {"scrapy_zyte_api.Addon": 500}},
    of_impersonate: {"DOWNLOADER_MIDDLEWARES": {"scrapy_impersonate.RandomBrowserMiddleware": 1}},
    of_splash: {"DOWNLOADER_MIDDLEWARES": {"scrapy_splash.SplashMiddleware": 725}},
}


@pytest.mark.parametrize("make", PLUGINS)
def test_requests_of_plugins(make: Any) -> None:
    """They come back exactly, and stock's rule for what it can resume is no wider."""
    config = Config.from_settings(Settings({"BOT_NAME": "shop", **PLUGINS[make]}), {}, "spider")
    converter = RequestConverter.from_config(SPIDER, config)
    for request in make("https://example.com/a?b=c"):
        entry = converter.encode(request, "key")
        again = converter.decode(Entry.from_json(entry.id, entry.to_json()))
        assert type(again) is type(request)
        assert converter.encode(again, "key") == entry
        before = pickle.loads(pickle.dumps(request.meta))
        assert [describe_any(one) for one in (again.meta, before)] == [describe_any(before)] * 2


def describe_any(value: Any) -> Any:
    """With the attributes of plugins' objects."""
    if isinstance(value, dict):
        return type(value), {key: describe_any(part) for key, part in value.items()}
    if isinstance(value, list):
        return [describe_any(part) for part in value]
    is_object = type(value).__module__.startswith("scrapy_") and not isinstance(value, type)
    return (type(value), describe(vars(value))) if is_object else describe(value)
