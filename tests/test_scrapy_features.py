"""Nothing that Scrapy's users do breaks: each crawl here is compared with stock Scrapy's.

The same project is crawled with and without the add-on. The site must receive the same requests
and the callbacks must see the same, also where a request was read back from the queue.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from scrapy.settings import default_settings

from tests.compare import STOCK, Run, run
from tests.project import Project
from tests.support.website import Hit, Page, Site, links

pytestmark = pytest.mark.usefixtures("backend")

# Requests of all kinds.

KINDS = """
import asyncio
import warnings
from datetime import datetime, timezone
from decimal import Decimal
from scrapy.exceptions import ScrapyDeprecationWarning
from scrapy.http import FormRequest, JsonRequest, XmlRpcRequest


class SignedRequest(scrapy.Request):
    attributes = (*scrapy.Request.attributes, "signature")

    def __init__(self, *args, signature=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.signature = signature


class Watch:
    '''Signs requests, and notes those that came from the queue and not from the spider's hands.'''

    def __init__(self, crawler):
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler):
        return cls(crawler)

    async def process_request(self, request):
        spider, stats = self.crawler.spider, self.crawler.stats
        # Until all is in the queue the first page waits, and the second fills a window of one.
        while request.url.endswith("/first") and stats.get_value("scheduler/enqueued") < spider.due:
            await asyncio.sleep(0.01)
        if not any(request is made for made in spider.made):
            path = request.url.removeprefix(SITE).partition("?")[0]
            stats.inc_value(f"test/decoded{path}")
        if isinstance(request, SignedRequest):
            request.headers["X-Signature"] = repr(request.signature)


class Spider(scrapy.Spider):
    name = "spider"
    custom_settings = {
        "DOWNLOADER_MIDDLEWARES": {Watch: 901},
        "CONCURRENT_REQUESTS": 1,
    }
    made = []

    async def start(self):
        self.made.append(scrapy.Request(SITE + "/"))
        yield self.made[0]

    def parse(self, response):
        requests = list(self.requests(response))
        self.made.extend(requests)
        self.due = 1 + len(requests)
        yield from requests

    def requests(self, response):
        yield self.make("/first", priority=2)
        yield self.make("/second", priority=1)
        yield self.make("/get?q=a b&z=\\u00e9#top")
        yield self.make("/post", method="POST", body="text \\u00e9")
        yield self.make("/form", FormRequest, formdata={"a": ["1", "2"], "\\u00fc": "&"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScrapyDeprecationWarning)
            form = FormRequest.from_response(response, formdata={"user": "me"})
        yield form.replace(callback=self.report, meta={"kind": "/submitted"})
        yield self.make("/json", JsonRequest, data={"b": [1, None, "\\u00e9"], "a": {}},
                        dumps_kwargs={"sort_keys": True})
        yield self.make("/json-put", JsonRequest, data=[1], method="PUT")
        yield self.make("/xmlrpc", XmlRpcRequest, methodname="add", params=(1, "two"))
        yield self.make("/signed", SignedRequest, signature=("key", 7))
        yield self.make("/binary", method="PUT", body=bytes(range(256)))
        yield self.make("/purge", method="PURGE")
        yield self.make("/head", method="HEAD")
        yield self.make("/headers", headers={
            "X-Utf": "\\u00e9", "Referer": SITE + "/else", "User-Agent": "me/1.0", "Accept": "",
        })
        yield self.make("/many-headers", headers={"X-Many": ["1", "2, 3"]})
        yield self.make("/raw-headers", headers={"X-Raw": "\\u00e9".encode("latin-1")})
        yield self.make("/cookies", cookies={"a": "1", "b": "2"}, meta={"cookiejar": "dict"})
        yield self.make("/cookie-list", meta={"cookiejar": "list"}, cookies=[
            {"name": "c", "value": "3", "path": "/"},
            {"name": "d", "value": "4", "domain": "elsewhere.example"},
        ])
        for name in ("ann", "bob"):
            yield self.make(f"/login?{name}", meta={"cookiejar": name}, callback=self.logged_in)
        yield self.make("/kwargs", cb_kwargs={
            "kwargs": {"t": (1, 2), "s": {3}, 4: b"\\xff", "n": None},
            "more": [Decimal("1.10"), datetime(2024, 1, 2, tzinfo=timezone.utc)],
        })
        yield self.make("/meta", meta={"note": ("x", {"y": frozenset([1])}, b"z", 1 << 70)})
        yield self.make("/flags", flags=["seen", "twice"])
        yield self.make("/encoding?q=\\u043f", encoding="cp1251", method="POST", body="\\u043f")
        yield self.make("/unfiltered", dont_filter=True)
        yield self.make("/unfiltered", dont_filter=True)
        yield self.make("/missing", callback=None, errback=self.failed)

    def make(self, path, cls=scrapy.Request, **values):
        values["meta"] = {"kind": path.partition("?")[0], **values.get("meta", {})}
        return cls(SITE + path, **{"callback": self.report, **values})

    def logged_in(self, response):
        jar = response.meta["cookiejar"]
        yield self.make(f"/account?{jar}", meta={"cookiejar": jar})

    def report(self, response, **kwargs):
        request = response.request
        yield {
            "kind": request.meta["kind"],
            "note": repr(request.meta.get("note")),
            "class": type(request).__name__,
            "kwargs": repr(kwargs),
            "flags": request.flags,
            "response_flags": response.flags,
            "encoding": request.encoding,
            "dont_filter": request.dont_filter,
            "priority": request.priority,
            "cookies": request.cookies,
            "url": request.url,
            "signature": repr(getattr(request, "signature", None)),
            "dumps_kwargs": repr(getattr(request, "dumps_kwargs", None)),
        }

    def failed(self, failure):
        yield {
            "kind": "/failure",
            "error": repr(failure.value),
            "status": failure.value.response.status,
            "of": failure.request.meta["kind"],
        }
        yield self.make("/from-errback")
"""
SENT = [
    "/get?q=a%20b&z=%C3%A9",
    "/post",
    "/form",
    "/submit",
    "/json",
    "/json-put",
    "/xmlrpc",
    "/signed",
    "/binary",
    "/purge",
    "/head",
    "/headers",
    "/many-headers",
    "/raw-headers",
    "/cookies",
    "/cookie-list",
    "/login?ann",
    "/login?bob",
    "/account?ann",
    "/account?bob",
    "/kwargs",
    "/meta",
    "/flags",
    "/encoding?q=%EF",
    "/unfiltered",
    "/missing",
    "/from-errback",
]
REPORTED = [
    *("/get", "/post", "/form", "/submitted", "/json", "/json-put", "/xmlrpc", "/signed"),
    *("/binary", "/purge", "/head", "/headers", "/cookies", "/cookie-list", "/account"),
    *("/kwargs", "/meta", "/flags", "/encoding", "/unfiltered", "/failure", "/from-errback"),
]


def login(hit: Hit) -> Page:
    return Page("in", headers={"Set-Cookie": f"who={hit.path.partition('?')[2]}"})


KINDS_SITE = {
    "/": '<form action="/submit" method="post"><input name="user"><input name="hidden" value="1">',
    "/login?ann": login,
    "/login?bob": login,
    "/missing": 404,
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, backend: str) -> dict[str, Run]:
    """One crawl by stock Scrapy, one that hands out live requests, one that reads them back."""
    with Site(KINDS_SITE, default="page") as site:
        project = Project(tmp_path_factory.mktemp("kinds"), KINDS, site=site.url)
        return {
            "stock": run(project, site, *STOCK),
            "live": run(project, site),
            "decoded": run(project, site, "-s", "APIFY_RQ_NAME=second", "-s", "APIFY_RQ_WINDOW=1"),
        }


@pytest.mark.parametrize("mode", ["live", "decoded"])
@pytest.mark.parametrize("path", SENT)
def test_the_site_receives_what_stock_scrapy_sends(
    kinds: dict[str, Run], path: str, mode: str
) -> None:
    assert kinds["stock"].received(path)
    assert kinds[mode].received(path) == kinds["stock"].received(path)


@pytest.mark.parametrize("mode", ["live", "decoded"])
@pytest.mark.parametrize("kind", REPORTED)
def test_the_callback_sees_what_it_sees_in_stock_scrapy(
    kinds: dict[str, Run], kind: str, mode: str
) -> None:
    assert kinds["stock"].found(kind)
    assert kinds[mode].found(kind) == kinds["stock"].found(kind)


@pytest.mark.parametrize("mode", ["live", "decoded"])
def test_nothing_is_crawled_more_or_less_than_in_stock_scrapy(
    kinds: dict[str, Run], mode: str
) -> None:
    assert kinds[mode].paths == kinds["stock"].paths
    assert "scheduler/unserializable" not in kinds[mode].crawl.stats


def test_the_requests_compared_come_from_where_the_test_says(kinds: dict[str, Run]) -> None:
    stats = kinds["decoded"].crawl.stats
    decoded = {name.removeprefix("test/decoded") for name in stats if "test/decoded" in name}
    own_hands = {"/", "/first", "/second", "/account", "/from-errback"}
    assert decoded >= {path.partition("?")[0] for path in SENT} - own_hands
    assert stats["test/decoded/unfiltered"] == 2
    live = [name for name in kinds["live"].crawl.stats if "test/decoded" in name]
    # The last two are made in later callbacks, and so are not on the spider's list.
    assert set(live) <= {f"test/decoded{path}" for path in ("/", "/account", "/from-errback")}


@pytest.mark.parametrize(
    ("path", "name", "values"),
    [
        ("/headers", "X-Utf", ["\xc3\xa9"]),  # the site reads all of them as latin-1
        ("/many-headers", "X-Many", ["1", "2, 3"]),
        ("/raw-headers", "X-Raw", ["\xe9"]),
    ],
)
def test_headers_reach_the_site_byte_for_byte(
    kinds: dict[str, Run], path: str, name: str, values: list[str]
) -> None:
    ((_, _, headers),) = kinds["decoded"].received(path)
    assert [value for key, value in headers if key == name] == values


def test_sessions_keep_their_cookies_apart(kinds: dict[str, Run]) -> None:
    for name in ("ann", "bob"):
        ((_, _, headers),) = kinds["decoded"].received(f"/account?{name}")
        assert ("Cookie", f"who={name}") in headers


# Settings and components that decide what is crawled.

LINKS = """
from scrapy.dupefilters import RFPDupeFilter
from scrapy.exceptions import CloseSpider
from scrapy.utils.request import fingerprint


class Fingerprinter:
    '''Takes pages that differ in the argument "session" only for one.'''

    def fingerprint(self, request):
        return fingerprint(request.replace(url=request.url.partition("?session=")[0]))


class PickyFilter(RFPDupeFilter):
    def request_seen(self, request):
        return "/secret" in request.url or super().request_seen(request)


class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        yield {"kind": "/page", "url": response.url}
        if getattr(self, "close_at", None) == response.url.removeprefix(SITE):
            raise CloseSpider("enough")
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href)
"""
PAGES = [f"/{n}" for n in range(20)]
LINKS_SITE = {"/": links(*PAGES), "/1": links("/", "/2", "/3?session=1", "/3?session=2", "/secret")}


@pytest.mark.parametrize(
    "components",
    [
        {"REQUEST_FINGERPRINTER_CLASS": "project.spiders.Fingerprinter"},
        {"DUPEFILTER_CLASS": "project.spiders.PickyFilter"},
        {"DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter"},
    ],
    ids=["fingerprinter", "dupefilter", "no dupefilter"],
)
def test_the_projects_own_idea_of_a_duplicate_counts(
    tmp_path: Path, components: dict[str, str]
) -> None:
    pages = LINKS_SITE
    if "scrapy.dupefilters.BaseDupeFilter" in components.values():  # it would go round for ever
        pages = {"/": links("/1", "/1", "/2"), "/1": links("/2", "/3")}
    with Site(pages, default="page") as site:
        project = Project(tmp_path, LINKS, site=site.url, settings=components)
        stock, ours = run(project, site, *STOCK), run(project, site)
    assert ours.paths == stock.paths
    for stat in ("dupefilter/filtered", "scheduler/enqueued"):
        assert ours.stats.get(stat) == stock.stats.get(stat)


def test_a_crawl_that_was_closed_early_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stops = [
        ("closespider_pagecount", ["-s", "CLOSESPIDER_PAGECOUNT=3"]),
        ("closespider_itemcount", ["-s", "CLOSESPIDER_ITEMCOUNT=3"]),
        ("closespider_timeout", ["-s", "CLOSESPIDER_TIMEOUT=1", "-s", "DOWNLOAD_DELAY=0.4"]),
        ("enough", ["-a", "close_at=/19"]),
        ("finished", []),
    ]
    with Site(LINKS_SITE, default="page") as site:
        # Slow enough that a spider that is to be closed does not finish first.
        settings = {"DOWNLOAD_DELAY": 0.1, "CONCURRENT_REQUESTS": 2}
        project = Project(tmp_path, LINKS, site=site.url, settings=settings)
        for reason, options in stops:
            assert project.info().pending or reason == stops[0][0]
            assert project.crawl(*options).stats["finish_reason"] == reason
    # Scrapy's start requests are not filtered, so that a link to one is crawled once more.
    every_page = ["/", "/", *PAGES, "/3?session=1", "/3?session=2", "/secret"]
    assert sorted(site.paths) == sorted(every_page)


def test_the_http_cache_and_the_throttle_work(tmp_path: Path) -> None:
    settings = {
        "HTTPCACHE_ENABLED": True,
        "AUTOTHROTTLE_ENABLED": True,
        "AUTOTHROTTLE_START_DELAY": 0.02,
        "DOWNLOAD_DELAY": 0.01,
        "APIFY_RQ_PURGE_ON_START": True,
    }
    with Site(LINKS_SITE, default="page") as site:
        project = Project(tmp_path, LINKS, site=site.url, settings=settings)
        first, second = run(project, site), run(project, site)
    assert set(first.paths.values()) == {1}
    assert set(first.paths) > set(PAGES)
    assert not second.paths
    assert second.found("/page") == first.found("/page")


@pytest.mark.skipif(
    not hasattr(default_settings, "TWISTED_REACTOR_ENABLED"), reason="new in Scrapy 2.15"
)
def test_no_reactor_is_needed(tmp_path: Path) -> None:
    with Site(LINKS_SITE, default="page") as site:
        settings = {"TWISTED_REACTOR_ENABLED": False}
        project = Project(tmp_path, LINKS, site=site.url, settings=settings)
        stock, ours = run(project, site, *STOCK), run(project, site)
    assert ours.paths == stock.paths
    assert project.info().handled == sum(ours.paths.values())


@pytest.mark.parametrize("module", ["sitemap", "rules"])
def test_the_generic_spiders_crawl_what_they_crawl_in_stock_scrapy(
    tmp_path: Path, module: str
) -> None:
    with Site({}, default="page") as site:
        pages = {
            "/robots.txt": f"Sitemap: {site.url}/index.xml",
            "/index.xml": sitemap("sitemapindex", f"{site.url}/a.xml", f"{site.url}/b.xml"),
            "/a.xml": sitemap("urlset", f"{site.url}/item/1", f"{site.url}/item/2"),
            "/b.xml": sitemap("urlset", f"{site.url}/item/2", f"{site.url}/other"),
            "/": links("/list/1", "/list/2", "/item/1"),
            "/list/1": links("/item/1", "/item/2", "/list/2"),
            "/list/2": links("/item/3", "/list/1", "/elsewhere"),
        }
        site.serve(pages)
        project = Project(tmp_path, GENERIC, site=site.url)
        stock = run(project, site, *STOCK, spider=module)
        ours = run(project, site, "-s", "APIFY_RQ_WINDOW=1", spider=module)
    assert ours.paths == stock.paths
    assert ours.found("/item") == stock.found("/item")
    assert len(ours.items) > 1


def sitemap(tag: str, *urls: str) -> Page:
    locations = "".join(f"<url><loc>{url}</loc></url>" for url in urls)
    if tag == "sitemapindex":
        locations = locations.replace("<url>", "<sitemap>").replace("</url>", "</sitemap>")
    xml = f'<{tag} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{locations}</{tag}>'
    return Page(xml, headers={"Content-Type": "application/xml"})


GENERIC = """
from scrapy.linkextractors import LinkExtractor
from scrapy.spiders import CrawlSpider, Rule, SitemapSpider


class Sitemap(SitemapSpider):
    name = "sitemap"
    sitemap_urls = [SITE + "/robots.txt"]
    sitemap_rules = [("/item/", "parse_item")]

    def parse_item(self, response):
        yield {"kind": "/item", "url": response.url}


class Rules(CrawlSpider):
    name = "rules"
    start_urls = [SITE + "/"]
    rules = [
        Rule(LinkExtractor(allow="/list/"), process_request="tag"),
        Rule(LinkExtractor(allow="/item/"), callback="parse_item", cb_kwargs={"rule": 2}),
    ]

    def tag(self, request, response):
        return request.replace(meta={**request.meta, "from": response.url})

    def parse_item(self, response, rule):
        text = response.meta["link_text"]
        yield {"kind": "/item", "url": response.url, "text": text, "rule": rule}
"""
