"""A crawl with Scrapy's own scheduler and one with ours, of the same site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scrapy import Spider

from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.website import Hit, Site

STOCK: dict[str, Any] = {"ADDONS": {}}
# Where requests wait, what depends on time and memory, and on which of two links came first.
_OTHER_STATS = re.compile(
    r"apify_rq/|test/|log_count/|memusage/|request_(depth|bytes)|scheduler/.+/|unserial|time|per_minute"
)


@dataclass
class Run:
    crawl: Crawl
    hits: list[Hit]

    @property
    def paths(self) -> Counter[str]:
        return Counter(hit.path for hit in self.hits)

    @property
    def items(self) -> Counter[str]:
        return Counter(map(repr, self.crawl.items))

    @property
    def outcome(self) -> dict[str, Any]:
        """All that does not depend on the scheduler: pages and items as multisets, and stats."""
        stats = self.crawl.stats.items()
        same = {name: value for name, value in stats if not _OTHER_STATS.search(name)}
        return {"paths": self.paths, "items": self.items, **same}

    @property
    def received(self) -> dict[str, list[tuple[str, bytes, list[tuple[str, str]]]]]:
        """All requests for each path, with their bodies and headers."""
        return {
            path: sorted(
                (hit.method, hit.body, sorted(hit.headers)) for hit in self.hits if hit.path == path
            )
            for path in sorted(self.paths)
        }

    def found(self, kind: str) -> list[dict[str, Any]]:
        """The items of one kind."""
        return [item for item in self.crawl.items if item["kind"] == kind]


async def run(
    crawls: Crawls,
    spider: type[Spider],
    site: Site,
    settings: Mapping[str, Any] | None = None,
    queue: Queue | None = None,
    **arguments: Any,
) -> Run:
    """Crawl a site that starts afresh."""
    site.forget()
    crawl = await crawls.run(spider, settings, queue=queue, site=site.url, **arguments)
    return Run(crawl, list(site.hits))


async def stock_and_ours(
    crawls: Crawls,
    spider: type[Spider],
    site: Site,
    settings: Mapping[str, Any] | None = None,
    queue: Queue | None = None,
) -> tuple[Run, Run]:
    """Crawl with both. Tests compare their outcomes."""
    stock = await run(crawls, spider, site, {**(settings or {}), **STOCK})
    ours = await run(crawls, spider, site, settings, queue)
    assert "apify_rq/handled" not in stock.crawl.stats
    assert "apify_rq/handled" in ours.crawl.stats
    return stock, ours
