"""The pages that the spider ``Tree`` crawls."""

from __future__ import annotations

from collections import Counter

from tests.support.process_spiders import Tree
from tests.support.website import Page, links


def tree(pages: int, delay: float = 0) -> dict[str, Page]:
    """Ten new links on each page, and one to a page that others link to."""

    def page(number: int) -> Page:
        new = range(10 * number + 1, min(10 * number + 11, pages))
        return Page(links(*(f"/{n}" for n in new), f"/{7 * number % 10}"), delay=delay)

    return {f"/{number}": page(number) for number in range(pages)}


def fetched(pages: int) -> Counter[str]:
    """What Scrapy fetches of the tree: what it starts with, and all that is linked to."""
    return Counter([*tree(pages), *Tree.starts])
