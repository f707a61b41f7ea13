"""While a callback yields a lot, other work of the process gets its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.website import Site


class Counting(SiteSpider):
    """Yields so many outputs, and counts the turns that another task has had meanwhile."""

    def __init__(self, site: str, outputs: int) -> None:
        super().__init__(site)
        self.outputs = outputs
        self.turns = 0

    def parse(self, response: Response) -> Iterator[dict[str, int]]:
        other = asyncio.ensure_future(self.work())
        for number in range(self.outputs):
            yield {"number": number}
        other.cancel()

    async def work(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


@pytest.mark.parametrize(("outputs", "turns"), [(50, 0), (180, 3)])
async def test_turns_of_others(
    site: Site, queue: Queue, crawls: Crawls, outputs: int, turns: int
) -> None:
    """None on an ordinary page: there it would cost more than it is worth."""
    site.serve({"/": "page"})
    settings = {"CONCURRENT_ITEMS": 100}  # Scrapy's default, with which it takes 200 outputs
    crawl = await crawls.run(Counting, settings, queue=queue, site=site.url, outputs=outputs)
    assert len(crawl.items) == outputs
    assert crawl.spider.turns == turns
