"""A crawl is the same as with Scrapy's own scheduler."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.support.crawling import Crawls
from tests.support.spiders import Links
from tests.support.website import Site, links

STOCK: dict[str, Any] = {"ADDONS": {}}


async def test_pages_and_items(site: Site, crawls: Crawls) -> None:
    pages = [f"/{number}" for number in range(20)]
    site.serve({"/": links(*pages), "/3": links("/", "/5", "/20"), "/20": "last", "/4": 404})
    site.serve({path: "page" for path in pages if path not in ("/3", "/4")})
    stock = await crawls.run(Links, STOCK, site=site.url)
    ours = await crawls.run(Links, site=site.url)
    assert "apify_rq/handled" not in stock.stats
    assert ours.stats["apify_rq/handled"] == 22
    assert Counter(ours.paths) == Counter(stock.paths)
    assert sorted(map(str, ours.items)) == sorted(map(str, stock.items))
    assert ours.reason == stock.reason == "finished"


async def test_trivial(site: Site, crawls: Crawls) -> None:
    site.serve({"/": "page"})
    ours = await crawls.run(Links, site=site.url)
    assert ours.paths == ["/"]
