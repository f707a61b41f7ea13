"""A crawl is the same as with Scrapy's own scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

from tests.support.comparing import STOCK, stock_and_ours
from tests.support.crawling import Crawl, Crawls
from tests.support.example_project import shop_hits, shop_settings
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import Links
from tests.support.website import Page, Site, links

PATHS = [f"/{number}" for number in range(16)]
SESSIONS = ["/3?session=1", "/3?session=2"]
PAGES = {"/": links(*PATHS), "/1": links("/", "/2", *SESSIONS, "/secret")}
ALL = Counter(["/", *PATHS, *SESSIONS, "/secret"])


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(PAGES, default="page") as site:
        yield site


async def test_pages_and_items(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    site.serve({"/3": links("/", "/5", "/20"), "/4": 404})
    stock, ours = await stock_and_ours(crawls, Links, site, any_queue)
    assert ours.outcome == stock.outcome
    assert ours.crawl.stats["apify_rq/handled"] == 21
    assert ours.crawl.reason == "finished"


async def test_the_shop(queue: Queue, served: ServedQueue, crawls: Crawls, tmp_path: Path) -> None:
    """It has everything in it that makes crawls go wrong."""

    async def crawl(queue: Queue, **settings: Any) -> tuple[Any, Any, Crawl]:
        with ShopServer(products=20) as shop:
            settings = {**shop_settings(shop, tmp_path / "items.jsonl"), **settings}
            crawl = await crawls.run(ShopSpider, settings, queue=queue)
            # Which link to a product comes first differs from run to run; so does the port.
            items = Counter(
                (item.sku, item.name, item.price, item.category, item.url.removeprefix(shop.url))
                for item in crawl.items
            )
        return shop_hits(shop), items, crawl

    *expected, stock = await crawl(queue, **STOCK)
    assert "apify_rq/handled" not in stock.stats
    assert expected[1].total() == 27
    claimed, deep = {"APIFY_RQ_WINDOW": 5}, {"APIFY_RQ_ORDER": "lifo"}
    cases = ("live", queue, {}), ("deep", queue, deep), ("live", served, {})
    for name, where, settings in (*cases, ("claimed", served, claimed)):
        *found, ours = await crawl(where, APIFY_RQ_NAME=name, **settings)
        assert found == expected, name
        assert ours.stats["apify_rq/handled"] == ours.stats["apify_rq/enqueued"]
        assert "apify_rq/undecodable" not in ours.stats
        assert (ours.stats.get("apify_rq/window_refills", 0) >= 5) == (name == "claimed")


# Spiders that know more than links.


class Sitemap(SitemapSpider):
    name = "sitemap"
    sitemap_rules = (("/item/", "parse_item"),)

    def parse_item(self, response: Response) -> Any:
        yield {"url": response.url}


class Rules(CrawlSpider):
    name = "rules"
    rules = (
        Rule(LinkExtractor(allow="/list/"), process_request="tag"),
        Rule(LinkExtractor(allow="/item/"), callback="parse_item", cb_kwargs={"rule": 2}),
    )

    def tag(self, request: Request, response: Response) -> Request:
        return request.replace(meta={**request.meta, "from": response.url})

    def parse_item(self, response: Response, rule: int) -> Any:
        yield {"url": response.url, "text": response.meta["link_text"], "rule": rule}


def sitemap(inner: str, *urls: str) -> Page:
    locations = "".join(f"<{inner}><loc>{url}</loc></{inner}>" for url in urls)
    outer = {"sitemap": "sitemapindex", "url": "urlset"}[inner]
    xml = f'<{outer} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{locations}</{outer}>'
    return Page(xml, headers={"Content-Type": "application/xml"})


@pytest.mark.parametrize(("spider", "items"), [(Sitemap, 2), (Rules, 6)])
async def test_generic_spider(
    site: Site, queue: Queue, crawls: Crawls, spider: Any, items: int
) -> None:
    """The lists name the same items in many spellings."""
    spellings = [f"{form}{n}" for n in range(4) for form in ("/item/", "../item/", "/item/./")]
    more = [f"{path}{end}" for path in spellings for end in ("", "#top", "?")]
    site.serve(
        {
            "/robots.txt": f"Sitemap: {site.url}/index.xml",
            "/index.xml": sitemap("sitemap", f"{site.url}/a.xml", f"{site.url}/b.xml"),
            "/a.xml": sitemap("url", f"{site.url}/item/1", f"{site.url}/item/2"),
            "/b.xml": sitemap("url", f"{site.url}/item/2", f"{site.url}/other"),
            "/": links("/list/1", "/list/2", "/item/1"),
            "/list/1": links("/item/1", "/item/2", "/list/2", "/item/é", "mailto:a@b.c", *more),
            "/list/2": links("/list/1", "/elsewhere", "/item/?x=é&y", "/item/?y&x=%C3%A9", *more),
        }
    )
    start = {"sitemap_urls": [f"{site.url}/robots.txt"], "start_urls": [f"{site.url}/"]}
    settings = {"APIFY_RQ_WINDOW": 1}
    stock, ours = await stock_and_ours(crawls, spider, site, queue, settings, **start)
    assert ours.outcome == stock.outcome
    assert len(ours.crawl.items) == items
    assert ours.crawl.stats["apify_rq/handled"] == len(ours.hits)
    assert "scheduler/unserializable" not in ours.crawl.stats


# Settings and components that decide what is crawled.


class Fingerprinter:
    """Takes pages that differ in the argument "session" only for one."""

    def fingerprint(self, request: Request) -> bytes:
        return fingerprint(request.replace(url=request.url.partition("?session=")[0]))


class LoudFilter(RFPDupeFilter):
    def log(self, request: Request, spider: Any) -> None:
        spider.crawler.stats.inc_value(f"loud{urlsplit(request.url).path}")


class PickyFilter(RFPDupeFilter):
    def request_seen(self, request: Request) -> bool:
        return "/secret" in request.url or super().request_seen(request)


TWICE = {"/": links("/1", "/1", "/2"), "/1": links("/2", "/3")}


@pytest.mark.parametrize(
    ("component", "pages", "expected"),
    [
        ({"REQUEST_FINGERPRINTER_CLASS": Fingerprinter}, PAGES, ALL - Counter(SESSIONS)),
        ({"DUPEFILTER_CLASS": LoudFilter}, TWICE, dict.fromkeys(("/", "/1", "/2", "/3"), 1)),
        ({"DUPEFILTER_CLASS": PickyFilter}, PAGES, ALL - Counter(["/secret"])),
        ({"DUPEFILTER_CLASS": BaseDupeFilter}, TWICE, {"/": 1, "/1": 2, "/2": 3, "/3": 2}),
    ],
    ids=["fingerprinter", "own log", "filter", "no filter"],
)
async def test_own_duplicates(
    site: Site, served: ServedQueue, crawls: Crawls, component: Any, pages: Any, expected: Any
) -> None:
    site.serve(pages)
    stock, ours = await stock_and_ours(crawls, Links, site, served, component)
    assert ours.outcome == stock.outcome
    assert ours.paths == expected


class Stops(Links):
    close_at = ""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/", dont_filter=True)

    def parse(self, response: Response) -> Any:
        yield from super().parse(response)
        if self.handled[-1] == self.close_at:
            raise CloseSpider("enough")


async def test_closed_early_it_goes_on_where_it_stopped(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    for reason, settings, close_at in (
        ("closespider_pagecount", {"CLOSESPIDER_PAGECOUNT": 3}, ""),
        ("closespider_itemcount", {"CLOSESPIDER_ITEMCOUNT": 3}, ""),
        ("closespider_timeout", {"CLOSESPIDER_TIMEOUT": 0.3, "DOWNLOAD_DELAY": 0.2}, ""),
        ("enough", {}, "/14"),
        ("finished", {}, ""),
    ):
        settings = {"CONCURRENT_REQUESTS": 2, **settings}
        crawl = await crawls.run(Stops, settings, queue=any_queue, site=site.url, close_at=close_at)
        assert crawl.reason == reason
        assert bool((await any_queue.info()).pending) == (reason != "finished"), reason
    # The start request was not filtered, so that the link to it is crawled once more.
    assert Counter(site.paths) == ALL + Counter(["/"])


async def test_http_cache_and_throttle(site: Site, crawls: Crawls, tmp_path: Path) -> None:
    settings = {
        "HTTPCACHE_ENABLED": True,
        "HTTPCACHE_DIR": str(tmp_path / "cache"),
        "AUTOTHROTTLE_ENABLED": True,
        "AUTOTHROTTLE_START_DELAY": 0.02,
        "DOWNLOAD_DELAY": 0.01,
        "APIFY_RQ_PURGE_ON_START": True,
    }
    first = await crawls.run(Links, settings, site=site.url)
    assert Counter(site.paths) == ALL
    second = await crawls.run(Links, settings, site=site.url)
    assert len(site.paths) == ALL.total()
    assert sorted(map(str, second.items)) == sorted(map(str, first.items))
