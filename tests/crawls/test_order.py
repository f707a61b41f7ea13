"""The most urgent request first, and equals as they came."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.spiders import SiteSpider
from tests.support.website import Site

ONE_AT_A_TIME = {"CONCURRENT_REQUESTS": 1}


class Yields(SiteSpider):
    """Its first page yields requests with these priorities, whose paths are "/<priority>/<n>"."""

    def __init__(self, priorities: list[int], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.priorities = priorities

    def parse(self, response: Response) -> Any:
        for number, priority in enumerate(self.priorities):
            url = f"{self.site}/{priority}/{number}"
            yield Request(url, callback=self.note, priority=priority)


def serve(site: Site, priorities: list[int]) -> None:
    pages = {f"/{priority}/{number}": "page" for number, priority in enumerate(priorities)}
    site.serve({"/": "page", **pages})


async def test_low_priorities_beyond_the_window(site: Site, crawls: Crawls) -> None:
    priorities = [-1] * 230 + [0] * 3
    serve(site, priorities)
    settings = {**ONE_AT_A_TIME, "APIFY_RQ_WINDOW": 50}
    crawl = await crawls.run(Yields, settings, priorities=priorities, site=site.url)
    assert len(crawl.paths) == 234
    places = [place for place, path in enumerate(crawl.paths) if path.startswith("/0/")]
    # While the page still yields, some of the many may be handed out.
    assert places[-1] < 20, places


@pytest.mark.parametrize("priority", [5, 0, -5])
@pytest.mark.parametrize("order", ["fifo", "lifo"])
async def test_equals(site: Site, crawls: Crawls, priority: int, order: str) -> None:
    """The last of them comes first only where the project asks for it."""
    priorities = [100] + [priority] * 12
    serve(site, priorities)
    settings = {**ONE_AT_A_TIME, "APIFY_RQ_ORDER": order}
    crawl = await crawls.run(Yields, settings, priorities=priorities, site=site.url)
    equals = [int(path.rpartition("/")[2]) for path in crawl.paths[2:]]
    assert equals == sorted(equals, reverse=order == "lifo")


async def test_the_higher_comes_first(site: Site, crawls: Crawls) -> None:
    priorities = [100, -2, 3, 0, 1, -1, 3, 2]
    serve(site, priorities)
    crawl = await crawls.run(Yields, ONE_AT_A_TIME, priorities=priorities, site=site.url)
    handed_out = [int(path.split("/")[1]) for path in crawl.paths[1:]]
    assert handed_out == sorted(priorities, reverse=True)
