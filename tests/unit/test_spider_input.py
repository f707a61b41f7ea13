"""What an input means for a spider: arguments, start URLs, settings, and what is wrong with it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.commands import ScrapyCommand
from scrapy.settings import Settings

from scrapy_apify_rq.actor.input import read_input
from scrapy_apify_rq.actor.input_fields import FIELDS, START_URLS
from scrapy_apify_rq.actor.spider_input import SpiderInput
from scrapy_apify_rq.actor.start_urls import read_start_urls
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.errors import ConfigError
from tests.support.website import Site

DOCS = Path(__file__).parents[2] / "docs" / "actors.md"


class Open(Spider):
    name = "open"


class Strict(Spider):
    name = "strict"

    def __init__(self, category: str, allowed_domains: Any = (), maxConcurrency: int = 0) -> None:
        super().__init__()


class TakesUrls(Spider):
    name = "takes-urls"

    def __init__(self, start_urls: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def settings_of(given: SpiderInput) -> dict[str, Any]:
    settings = Settings({"RETRY_TIMES": 9})
    settings.set("CONCURRENT_REQUESTS", 5, "cmdline")
    given.set_settings(settings)
    return {one.setting: settings.get(one.setting) for one in FIELDS.values()}


def test_the_table() -> None:
    """Numbers keep their types; the command line wins, and a project does not."""
    proxy = {"useApifyProxy": True}
    values = {"depth": 3, "maxRequestsPerCrawl": 7, "maxConcurrency": 2, "maxRequestRetries": 1.0}
    given = SpiderInput(Open, {**values, "proxyConfiguration": proxy, "maxItems": None})
    assert given.merged((), {"site": "a"}) == {"depth": 3, "maxItems": None, "site": "a"}
    assert given.merged((), {"depth": "4"})["depth"] == "4"
    expected = {"CLOSESPIDER_PAGECOUNT": 7, "CONCURRENT_REQUESTS": 5, "RETRY_TIMES": 1}
    assert settings_of(given) == {**expected, "APIFY_RQ_PROXY": proxy}
    assert given.identity == {"depth": 3, "maxItems": None}
    assert settings_of(SpiderInput(Open, dict.fromkeys(FIELDS)))["RETRY_TIMES"] == 9


def test_the_table_is_that_of_the_documents() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`", DOCS.read_text(), re.MULTILINE)
    known = {START_URLS: "start_urls", **{name: one.setting for name, one in FIELDS.items()}}
    assert dict(rows) == known


def test_a_parameter_of_the_spider_goes_first() -> None:
    values = {"category": "c", "allowedDomains": ["a"], "maxConcurrency": 3}
    given = SpiderInput(Strict, values)
    assert given.arguments == {"category": "c", "allowed_domains": ["a"], "maxConcurrency": 3}
    assert given.merged(("shoes",), {}) == {"allowed_domains": ["a"], "maxConcurrency": 3}
    assert settings_of(given)["CONCURRENT_REQUESTS"] == 5
    urls = [{"url": "https://a.example/"}, "https://b.example/"]
    taken = SpiderInput(TakesUrls, {START_URLS: urls})
    assert taken.arguments == {"start_urls": ["https://a.example/", "https://b.example/"]}


URL = {"url": "https://a.example/"}
WRONG: list[tuple[type[Spider], Mapping[str, Any], str]] = [
    (Open, {"maxRequestsPerCrawl": -1}, "maxRequestsPerCrawl = -1: write a whole number"),
    (Open, {"maxConcurrency": 0}, "maxConcurrency = 0: write a whole number of at least 1"),
    *((Open, {"maxRequestRetries": wrong}, "maxRequestRetries: ") for wrong in ("3", True, 1.5)),
    (Open, {"maxConcurrency": float("nan")}, "maxConcurrency: "),
    (Open, {"maxConcurrency": float("inf")}, "maxConcurrency: "),
    (Open, {"maxConcurrency": -(10**400)}, "maxConcurrency = -1000"),
    (Open, {"parse": "x"}, "parse: Open or Scrapy has something else of this name"),
    (Open, {"crawler": 1}, "crawler: Open or Scrapy"),
    *((Open, {name: "x"}, f"{name}: Open or Scrapy") for name in ("name", "settings", "logger")),
    (Strict, {"category": "c", "catgory": 1}, "catgory: Strict.__init__ takes no such argument"),
    (Open, {START_URLS: "https://a.example"}, "startUrls: write a list"),
    *(
        (Open, {START_URLS: [URL, wrong]}, f"startUrls[1]{name}: ")
        for wrong, name in (
            (5, ""),
            ({}, ".url"),
            ({"url": "a.example"}, ".url"),
            ({**URL, "method": "FETCH"}, ".method"),
            ({**URL, "method": ["GET"]}, ".method"),
            ({**URL, "headers": {"a": 1}}, ".headers"),
            ({**URL, "payload": {"a": 1}}, ".payload"),
            ({**URL, "userData": [1]}, ".userData"),
            ({"requestsFromUrl": "ftp://a.example/x"}, ".requestsFromUrl"),
        )
    ),
    *(
        (Open, {"proxyConfiguration": wrong}, f"proxyConfiguration{name}: ")
        for wrong, name in (
            ("http://user:SECRET@host", ""),
            ({"useApifyProxy": "yes"}, ".useApifyProxy"),
            ({"useApifyProxy": True, "apifyProxyGroups": ["a,SECRET"]}, ".apifyProxyGroups"),
            ({"useApifyProxy": True, "apifyProxyCountry": "Germany"}, ".apifyProxyCountry"),
            ({"proxyUrls": ["user:SECRET@host:80"]}, ".proxyUrls[0]"),
            ({"proxyUrls": ["http://user:SECRET@host:port"]}, ".proxyUrls[0]"),
            ({"useApifyProxy": True, "proxyUrls": ["http://user:SECRET@host"]}, ""),
        )
    ),
]


@pytest.mark.parametrize(("spider", "values", "problem"), WRONG)
def test_what_is_wrong_is_named(
    spider: type[Spider], values: Mapping[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        SpiderInput(spider, values)
    assert str(raised.value).startswith(problem)
    assert "SECRET" not in str(raised.value)


def test_lone_surrogates_in_the_input_are_mended(tmp_path: Path) -> None:
    folder = tmp_path / "key_value_stores" / "default"
    folder.mkdir(parents=True)
    (folder / "INPUT.json").write_text('{"a": "\\ud800"}')
    config = Config.from_settings(Settings(), {"CRAWLEE_STORAGE_DIR": str(tmp_path)}, None)
    assert read_input(config) == {"a": "\ufffd"}


class Crawl(ScrapyCommand):
    """As Scrapy's own, which makes the crawler in a method of its own."""

    def short_desc(self) -> str:
        return ""

    def run(self, args: list[str], opts: argparse.Namespace) -> None:
        self.create()

    def create(self) -> None:
        self.given = SpiderInput(Strict, {"allowedDomains": []})


def test_an_argument_that_nobody_gives() -> None:
    """The command line may give it; a script knows by itself."""
    with pytest.raises(ConfigError, match=r"category: Strict.__init__ needs it. Add this field"):
        Crawl().run([], argparse.Namespace(spargs={"other": 1}))
    Crawl().run([], argparse.Namespace(spargs={"category": "c"}))
    assert SpiderInput(Strict, {}).arguments == {}


async def test_start_urls_complete_the_requests_of_the_spider(site: Site) -> None:
    search = "https://a.example/search"
    posts = [{"url": search, "method": "POST", "payload": f"q={word}"} for word in ("x", "y")]
    plain = {"url": "https://a.example", "headers": {"X-A": "b"}, "userData": {"label": "DETAIL"}}
    site.serve({"/list.txt": f'"{site.url}/1", https://b.example/2?a=b#c;\n{site.url}/1 no.url'})
    listed = {"requestsFromUrl": f"{site.url}/list.txt", "userData": {"n": 1}}
    given = SpiderInput(Open, {START_URLS: [*posts, plain, listed]})
    spider = Open()
    given.set_start_urls(spider, {})
    urls = [f"{site.url}/1", "https://b.example/2?a=b#c"]
    assert spider.start_urls == [search, search, "https://a.example", *urls]
    starts = given.start_requests({"DETAIL": "parse"})
    made = [starts.completed(Request(url, dont_filter=True), spider) for url in spider.start_urls]
    assert [(one.method, one.body) for one in made[:2]] == [("POST", b"q=x"), ("POST", b"q=y")]
    assert (made[2].headers["X-A"], made[2].callback) == (b"b", spider.parse)
    assert [one.meta.get("userData") for one in made[2:]] == [{"label": "DETAIL"}, *[{"n": 1}] * 2]
    assert all(one.dont_filter for one in made)
    assert starts.completed(made[0], spider) is made[0]  # used up
    site.serve({"/list.txt": ["http://a.example:99999/", 404]})
    with pytest.raises(ConfigError, match=r"requestsFromUrl: http://a.example:99999/: write a URL"):
        read_start_urls([listed])
    with pytest.raises(ConfigError, match=r"startUrls\[0\].requestsFromUrl: there is nothing"):
        read_start_urls([listed])
