"""A crawl is the same as with Scrapy's own scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.exceptions import CloseSpider
from scrapy.http import Response
from scrapy.linkextractors import LinkExtractor
from scrapy.spiders import CrawlSpider, Rule, SitemapSpider
from scrapy.utils.request import fingerprint
from shop_example.site import ShopServer
from shop_example.spiders.shop import ShopSpider

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from tests.support.comparing import STOCK, run, stock_and_ours
from tests.support.crawling import Crawl, Crawls
from tests.support.example_project import shop_hits, shop_settings
from tests.support.queues import Queue
from tests.support.spiders import Links
from tests.support.website import Page, Site, links

PATHS = [f"/{number}" for number in range(20)]
SESSIONS = ["/3?session=1", "/3?session=2"]
PAGES = {"/": links(*PATHS), "/1": links("/", "/2", *SESSIONS, "/secret")}
# Few entries are in memory, so that most requests are read back from the queue.
CLAIMS = {"APIFY_RQ_WINDOW": 5}


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(PAGES, default="page") as site:
        yield site


async def test_pages_and_items(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    site.serve({"/3": links("/", "/5", "/20"), "/4": 404})
    stock, ours = await stock_and_ours(crawls, Links, site, queue=any_queue)
    assert ours.outcome == stock.outcome
    assert ours.crawl.stats["apify_rq/handled"] == 25
    assert ours.crawl.reason == "finished"


async def test_the_shop(any_queue: Queue, crawls: Crawls, tmp_path: Path) -> None:
    """It has everything in it that makes crawls go wrong."""

    async def crawl(settings: dict[str, Any], queue: Queue | None = None) -> tuple[Any, Any, Crawl]:
        with ShopServer(products=80) as shop:
            settings = {**shop_settings(shop, tmp_path / "items.jsonl"), **settings}
            crawl = await crawls.run(ShopSpider, settings, queue=queue)
            # Which link to a product comes first differs from run to run; so does the port.
            items = [
                (item.sku, item.name, item.price, item.category, item.url.removeprefix(shop.url))
                for item in crawl.items
            ]
        return shop_hits(shop), Counter(items), crawl

    stock_hits, stock_items, stock = await crawl(STOCK)
    assert "apify_rq/handled" not in stock.stats
    assert stock_items.total() == 80 + 7
    for settings in ({}, CLAIMS, {"APIFY_RQ_ORDER": "lifo"}):
        name = f"shop-{len(settings)}-{settings.get('APIFY_RQ_ORDER')}"
        hits, items, ours = await crawl({**settings, "APIFY_RQ_NAME": name}, any_queue)
        assert (hits, items) == (stock_hits, stock_items), settings
        assert ours.stats["apify_rq/handled"] == ours.stats["apify_rq/enqueued"]
        assert "apify_rq/undecodable" not in ours.stats
        # At most one refill, where nothing is claimed.
        assert (ours.stats.get("apify_rq/window_refills", 0) >= 5) == (settings == CLAIMS)


# Spiders that know more than links.


class Sitemap(SitemapSpider):
    name = "sitemap"
    sitemap_rules = (("/item/", "parse_item"),)

    def __init__(self, site: str) -> None:
        self.sitemap_urls = [f"{site}/robots.txt"]
        super().__init__()

    def parse_item(self, response: Response) -> Any:
        yield {"url": response.url}


class Rules(CrawlSpider):
    name = "rules"
    rules = (
        Rule(LinkExtractor(allow="/list/"), process_request="tag"),
        Rule(LinkExtractor(allow="/item/"), callback="parse_item", cb_kwargs={"rule": 2}),
    )

    def __init__(self, site: str) -> None:
        self.start_urls = [f"{site}/"]
        super().__init__()

    def tag(self, request: Request, response: Response) -> Request:
        return request.replace(meta={**request.meta, "from": response.url})

    def parse_item(self, response: Response, rule: int) -> Any:
        text = response.meta["link_text"]
        yield {"url": response.url, "text": text, "rule": rule}


class Manual(CrawlSpider):
    """Follows everything, as one crawls the manual of a language."""

    name = "manual"
    rules = (Rule(LinkExtractor(), callback="parse_page", follow=True),)

    def __init__(self, site: str) -> None:
        self.start_urls = [f"{site}/chapter/0.html"]
        super().__init__()

    def parse_page(self, response: Response) -> Any:
        yield {"url": response.url, "links": len(response.css("a[href]"))}


def sitemap(tag: str, *urls: str) -> Page:
    inner = {"sitemapindex": "sitemap", "urlset": "url"}[tag]
    locations = "".join(f"<{inner}><loc>{url}</loc></{inner}>" for url in urls)
    xml = f'<{tag} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{locations}</{tag}>'
    return Page(xml, headers={"Content-Type": "application/xml"})


@pytest.mark.parametrize(("spider", "items"), [(Sitemap, 2), (Rules, 3)])
async def test_generic_spider(
    site: Site, any_queue: Queue, crawls: Crawls, spider: Any, items: int
) -> None:
    site.serve(
        {
            "/robots.txt": f"Sitemap: {site.url}/index.xml",
            "/index.xml": sitemap("sitemapindex", f"{site.url}/a.xml", f"{site.url}/b.xml"),
            "/a.xml": sitemap("urlset", f"{site.url}/item/1", f"{site.url}/item/2"),
            "/b.xml": sitemap("urlset", f"{site.url}/item/2", f"{site.url}/other"),
            "/": links("/list/1", "/list/2", "/item/1"),
            "/list/1": links("/item/1", "/item/2", "/list/2"),
            "/list/2": links("/item/3", "/list/1", "/elsewhere"),
        }
    )
    stock, ours = await stock_and_ours(crawls, spider, site, {"APIFY_RQ_WINDOW": 1}, any_queue)
    assert ours.outcome == stock.outcome
    assert len(ours.crawl.items) == items


async def test_pages_full_of_links(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """Each page names the others in many spellings, most of which are known already."""
    names = [f"{number}.html" for number in range(20)]
    spellings = (*names, *(f"{name}#top" for name in names), *(f"../chapter/{n}" for n in names))
    page = links(*spellings, "", "?x=1&y=%C3%A9", "?y=é&x=1", "mailto:a@b.c", "/missing page")
    site.serve({**{f"/chapter/{name}": page for name in names}, "/missing%20page": 404})
    stock, ours = await stock_and_ours(crawls, Manual, site, CLAIMS, any_queue)
    assert ours.outcome == stock.outcome
    assert ours.crawl.stats["apify_rq/window_refills"] >= 3
    assert "scheduler/unserializable" not in ours.crawl.stats
    assert ours.crawl.stats["apify_rq/handled"] == len(ours.hits)


# Settings and components that decide what is crawled.


class Fingerprinter:
    """Takes pages that differ in the argument "session" only for one."""

    def fingerprint(self, request: Request) -> bytes:
        return fingerprint(request.replace(url=request.url.partition("?session=")[0]))


class PickyFilter(RFPDupeFilter):
    def request_seen(self, request: Request) -> bool:
        return "/secret" in request.url or super().request_seen(request)


@pytest.mark.parametrize(
    ("name", "component", "never"),
    [
        ("REQUEST_FINGERPRINTER_CLASS", Fingerprinter, {*SESSIONS}),
        ("DUPEFILTER_CLASS", PickyFilter, {"/secret"}),
        ("DUPEFILTER_CLASS", BaseDupeFilter, set()),
    ],
)
async def test_the_projects_own_duplicates(
    site: Site, any_queue: Queue, crawls: Crawls, name: str, component: type, never: set[str]
) -> None:
    if component is BaseDupeFilter:  # it would go round for ever
        site.serve({"/": links("/1", "/1", "/2"), "/1": links("/2", "/3")})
    stock, ours = await stock_and_ours(crawls, Links, site, {name: component}, any_queue)
    assert ours.outcome == stock.outcome
    assert not never & set(ours.paths)
    if component is BaseDupeFilter:
        assert ours.paths == {"/": 1, "/1": 2, "/2": 3, "/3": 2}


class Stops(Links):
    close_at = ""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/", dont_filter=True)

    def parse(self, response: Response) -> Any:
        yield from super().parse(response)
        if self.handled[-1] == self.close_at:
            raise CloseSpider("enough")


async def test_closed_early_it_goes_on_where_it_stopped(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 0.1)
    stops: list[tuple[str, dict[str, float]]] = [
        ("closespider_pagecount", {"CLOSESPIDER_PAGECOUNT": 3}),
        ("closespider_itemcount", {"CLOSESPIDER_ITEMCOUNT": 3}),
        ("closespider_timeout", {"CLOSESPIDER_TIMEOUT": 0.3, "DOWNLOAD_DELAY": 0.2}),
        ("enough", {}),
        ("finished", {}),
    ]
    for reason, settings in stops:
        options = {"CONCURRENT_REQUESTS": 2, "CLOSESPIDER_TIMEOUT": 0, **settings}
        close_at = "/17" if reason == "enough" else ""
        crawl = await crawls.run(Stops, options, queue=any_queue, site=site.url, close_at=close_at)
        assert crawl.reason == reason
        pending = (await any_queue.info()).pending
        assert bool(pending) == (reason != "finished"), reason
    # The start request was not filtered, so that the link to it is crawled once more.
    assert Counter(site.paths) == Counter(["/", "/", *PATHS, *SESSIONS, "/secret"])


async def test_http_cache_and_throttle(
    site: Site, any_queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    settings = {
        "HTTPCACHE_ENABLED": True,
        "HTTPCACHE_DIR": str(tmp_path / "cache"),
        "AUTOTHROTTLE_ENABLED": True,
        "AUTOTHROTTLE_START_DELAY": 0.02,
        "DOWNLOAD_DELAY": 0.01,
        "APIFY_RQ_PURGE_ON_START": True,
    }
    first = await run(crawls, Links, site, settings, any_queue)
    second = await run(crawls, Links, site, settings, any_queue)
    assert first.paths == Counter(["/", *PATHS, *SESSIONS, "/secret"])
    assert not second.hits
    assert second.items == first.items
