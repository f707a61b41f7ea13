"""The same pages, as often, and the same items as with Scrapy's own scheduler."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from tests.project import Project
from tests.support.example_shop import Example, Hits, Shop
from tests.support.website import Hit, Page, Site

pytestmark = pytest.mark.usefixtures("backend")

STOCK: dict[str, Any] = {"ADDONS": {}}


class Outcome(NamedTuple):
    hits: Hits
    items: Counter[str]
    stats: dict[str, Any]


# The shop, with everything in it that makes crawls go wrong.


def crawl_shop(folder: Path, **settings: Any) -> Outcome:
    with Shop() as shop:
        example = Example(folder, shop, **settings)
        crawl = example.crawl(spider="shop")
        hits = shop.hits()
    # Which link to a product comes first differs from run to run; so does the port.
    items = [
        {**item, "url": item["url"].removeprefix(shop.url), "found_in": None, "position": None}
        for item in example.items()
    ]
    return Outcome(hits, Counter(map(json.dumps, items)), crawl.stats)


@pytest.fixture(scope="module")
def shop_with_stock_scrapy(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = crawl_shop(tmp_path_factory.mktemp("stock"), **STOCK)
    assert "apify_rq/handled" not in outcome.stats
    assert outcome.items.total() == 207
    return outcome


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="entries handed out as they were added"),
        pytest.param({"APIFY_RQ_WINDOW": 20}, id="entries claimed from the queue"),
        pytest.param({"APIFY_RQ_ORDER": "lifo"}, id="depth first"),
    ],
)
def test_the_shop(
    tmp_path: Path, shop_with_stock_scrapy: Outcome, settings: dict[str, Any]
) -> None:
    hits, items, stats = crawl_shop(tmp_path, **settings)
    assert hits == shop_with_stock_scrapy.hits
    assert items == shop_with_stock_scrapy.items
    assert stats["apify_rq/handled"] == stats["apify_rq/enqueued"]
    assert "apify_rq/undecodable" not in stats
    if "APIFY_RQ_WINDOW" in settings:
        assert stats["apify_rq/window_refills"] >= 5  # one, where nothing is claimed


# A real site: the manual of Python, as Debian's package python3-doc installs it: 528 pages.

MANUAL_SPIDER = """
from scrapy.linkextractors import LinkExtractor
from scrapy.spiders import CrawlSpider, Rule

class Spider(CrawlSpider):
    name = "spider"
    start_urls = [SITE + "/index.html"]

    def __init__(self, **arguments):
        links = LinkExtractor(allow_domains=[SITE.removeprefix("http://")])
        self.rules = [Rule(links, callback="parse_page", follow=True)]
        super().__init__(**arguments)

    def parse_page(self, response):
        yield {
            "path": response.url.removeprefix(SITE),
            "title": response.css("title::text").get(),
            "links": len(response.css("a[href]")),
        }
"""
TYPES = {".html": "text/html", ".txt": "text/plain"}


def manual() -> Path:
    """The folder of the manual."""
    found = [page.parent for page in Path("/usr/share/doc").glob("python3.*/html/contents.html")]
    if not found:
        pytest.skip("the package python3-doc is not installed (/usr/share/doc/python3.*/html)")
    return found[0]


def crawl_manual(folder: Path, manual: Path, **settings: Any) -> Outcome:
    def serve(hit: Hit) -> Page:
        file = manual / unquote(urlsplit(hit.path).path).lstrip("/")
        if not file.is_file():
            return Page(status=404)
        return Page(file.read_bytes(), headers={"Content-Type": TYPES.get(file.suffix, "x/y")})

    with Site({}, default=serve) as site:
        settings = {"LOG_LEVEL": "INFO", **settings}
        project = Project(folder, MANUAL_SPIDER, site=site.url, settings=settings)
        crawl = project.crawl("-o", "items.jsonl", timeout=300)
    hits = Counter((hit.method, hit.path, "") for hit in site.hits)
    items = (folder / "items.jsonl").read_text().splitlines()
    return Outcome(hits, Counter(items), crawl.stats)


@pytest.fixture(scope="module")
def manual_with_stock_scrapy(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = crawl_manual(tmp_path_factory.mktemp("manual"), manual(), **STOCK)
    assert "apify_rq/handled" not in outcome.stats
    assert outcome.items.total() > 500
    return outcome


def test_the_manual_of_python(tmp_path: Path, manual_with_stock_scrapy: Outcome) -> None:
    # A small window, so that most requests are read back from the queue.
    hits, items, stats = crawl_manual(tmp_path, manual(), APIFY_RQ_WINDOW=20)
    assert hits == manual_with_stock_scrapy.hits
    assert items == manual_with_stock_scrapy.items
    assert stats["apify_rq/handled"] == hits.total()
    assert "scheduler/unserializable" not in stats
    assert stats["apify_rq/window_refills"] > 10
