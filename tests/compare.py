"""The same crawl by stock Scrapy and by ours, compared by what the site received and the items."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.project import Crawl, Project
from tests.support.website import Hit, Site

STOCK = ("-s", "ADDONS={}")


@dataclass
class Run:
    """A crawl, what its site received and what it scraped."""

    crawl: Crawl
    hits: list[Hit]
    items: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stats(self) -> dict[str, Any]:
        return self.crawl.stats

    @property
    def paths(self) -> Counter[str]:
        return Counter(hit.path for hit in self.hits)

    def received(self, path: str) -> list[tuple[str, bytes, list[tuple[str, str]]]]:
        return sorted(
            (hit.method, hit.body, sorted(hit.headers)) for hit in self.hits if hit.path == path
        )

    def found(self, kind: str) -> list[dict[str, Any]]:
        """The items of one kind, in an order that does not depend on the crawl's."""
        return sorted((item for item in self.items if item["kind"] == kind), key=json.dumps)


def run(project: Project, site: Site, *options: str, spider: str = "spider") -> Run:
    """Crawl with a clean record of hits and items; the site's address is SITE in the items."""
    site.hits.clear()
    feed = project.folder / "items.jsonl"
    crawl = project.crawl("-O", f"{feed.name}:jsonlines", *options, spider=spider)
    text = feed.read_text().replace(site.url, "SITE")
    items = [json.loads(line) for line in text.splitlines()]
    return Run(crawl, list(site.hits), items)
