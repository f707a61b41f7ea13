"""A crawl with Scrapy's own scheduler and one with ours, of the same site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from scrapy import Spider

from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.website import Site

STOCK: dict[str, Any] = {"ADDONS": {}}
# Where requests wait, what depends on time and memory, and on which of two links came first.
_OTHER_STATS = re.compile(
    r"apify_rq/|log_count/|memusage/|request_(depth|bytes)|scheduler/.+/|unserial|time|per_minute"
)


class Run:
    """A crawl, and what its site and its callbacks have had."""

    def __init__(self, crawl: Crawl, site: Site) -> None:
        self.crawl = crawl
        self.hits = list(site.hits)
        self.paths = Counter(hit.path for hit in self.hits)

    @property
    def outcome(self) -> dict[str, Any]:
        """All that does not depend on the scheduler: pages and items as multisets, and stats."""
        stats = self.crawl.stats.items()
        same = {name: value for name, value in stats if not _OTHER_STATS.search(name)}
        return {"paths": self.paths, "items": Counter(map(repr, self.crawl.items)), **same}


async def stock_and_ours(
    crawls: Crawls,
    spider: type[Spider],
    site: Site,
    queue: Queue,
    settings: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> tuple[Run, Run]:
    """Crawl with both. Tests compare their outcomes."""
    runs = []
    for more in (STOCK, {}):
        site.forget()
        values = {**(settings or {}), **more}
        begun = await crawls.start(spider, values, queue=queue, site=site.url, **arguments)
        crawl = await begun.end(patience=60)  # many pages, on a machine that may be busy
        assert ("apify_rq/handled" in crawl.stats) == (more is not STOCK)
        runs.append(Run(crawl, site))
    return runs[0], runs[1]
