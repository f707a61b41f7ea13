"""The most urgent request first, and equals as they came."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest
from scrapy.http import Response

from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from tests.support.crawling import Crawls
from tests.support.queues import NAME, Queue
from tests.support.spiders import SiteSpider
from tests.support.waiting import PATIENCE
from tests.support.website import Hit, Page, Site, links

ONE_AT_A_TIME = {"CONCURRENT_REQUESTS": 1}
# No page is fetched before the callback of the one before it has ended, either.
ONE_BY_ONE = {**ONE_AT_A_TIME, "SCRAPER_SLOT_MAX_ACTIVE_SIZE": 1}
FIRST = "/first?p=9"


class Tree(SiteSpider):
    """Follows all links, with the priority that is in their query."""

    def parse(self, response: Response) -> Any:
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, priority=int(href.partition("?p=")[2] or 0))


def serve(site: Site, priorities: list[int]) -> None:
    pages = [f"/{number}?p={priority}" for number, priority in enumerate(priorities)]
    site.serve({"/": links(*pages), **dict.fromkeys(pages, "page")})


def once(is_so: Callable[[], bool], page: Callable[[], str]) -> Callable[[Hit], Page]:
    def answer(_: Hit) -> Page:
        give_up_at = time.monotonic() + PATIENCE
        while not is_so() and time.monotonic() < give_up_at:
            time.sleep(0.005)
        return Page(page())

    return answer


def serve_tree(site: Site, queue: Queue, tree: dict[str, list[str]]) -> None:
    """Each page is answered once all links of those before it are saved: the order would depend on
    how long that takes.
    """
    found = 1

    def page(paths: list[str]) -> str:
        nonlocal found
        found += len(paths)
        return links(*paths)

    for path in {*tree, *chain(*tree.values())}:
        is_saved, text = lambda: queue.total >= found, partial(page, tree.get(path, []))
        site.serve({path: once(is_saved, text)})


def serve_two_levels(site: Site, queue: Queue, count: int) -> list[str]:
    """Besides a page that comes first."""
    wide = [f"/{number}" for number in range(count)]
    serve_tree(site, queue, {"/": [FIRST, *wide], **{path: [f"{path}/deep"] for path in wide}})
    return wide


async def pending(queue: Queue, site: Site) -> list[str]:
    """The paths still to be crawled, in the order in which the queue hands them out."""
    backend = SqliteBackend(queue.folder, name=NAME)
    await backend.open()
    claim = await backend.claim(1000, (), 2**24)
    await backend.close()
    return [claimed.entry.url.removeprefix(site.url) for claimed in claim.entries]


async def test_low_priorities_beyond_the_window(site: Site, crawls: Crawls) -> None:
    serve(site, [-1] * 115 + [0] * 3)
    settings = {**ONE_AT_A_TIME, "APIFY_RQ_WINDOW": 25}
    crawl = await crawls.run(Tree, settings, site=site.url)
    assert len(crawl.paths) == 119
    places = [place for place, path in enumerate(crawl.paths) if path.endswith("?p=0")]
    # While the page still yields, some of the many may be handed out.
    assert places[-1] < 20, places


@pytest.mark.parametrize("order", ["fifo", "lifo"])
async def test_the_higher_comes_first(site: Site, crawls: Crawls, order: str) -> None:
    """And equals as they came; the last of them only where the project asks for it."""
    priorities = [100, *[-5, 3, 0, 5, -1] * 6, 2]
    serve(site, priorities)
    crawl = await crawls.run(Tree, {**ONE_AT_A_TIME, "APIFY_RQ_ORDER": order}, site=site.url)
    handed_out = [int(path.partition("?")[0][1:]) for path in crawl.paths[1:]]
    step = -1 if order == "lifo" else 1
    expected = sorted(range(len(priorities)), key=lambda n: (-priorities[n], step * n))
    assert handed_out == expected


async def test_order_of_a_crawl_that_is_resumed(
    site: Site, crawls: Crawls, any_queue: Queue
) -> None:
    urgent = {"/mid?p=5", "/mid/2?p=5"}
    tree = {"/": ["/1", "/2", "/late?p=-1", "/mid?p=5", "/3", "/4", FIRST, "/mid/2?p=5"]}
    tree |= {FIRST: ["/first/soon?p=7"], "/1": ["/1/deep"], "/2": ["/2/deep"]}
    serve_tree(site, any_queue, tree)
    stop = {**ONE_BY_ONE, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Tree, stop, queue=any_queue, site=site.url)
    left = await pending(any_queue, site)
    assert set(left[:3]) == {FIRST, *urgent}
    assert left[3:] == ["/1", "/2", "/late?p=-1", "/3", "/4"]

    await crawls.run(Tree, ONE_BY_ONE, queue=any_queue, site=site.url)
    assert site.paths[:2] == ["/", FIRST]
    assert set(site.paths[2:5]) == {*urgent, "/first/soon?p=7"}
    assert site.paths[5:] == ["/1", "/2", "/3", "/4", "/1/deep", "/2/deep", "/late?p=-1"]


async def test_lifo_goes_depth_first(site: Site, crawls: Crawls, any_queue: Queue) -> None:
    serve_two_levels(site, any_queue, 6)
    settings = {**ONE_BY_ONE, "APIFY_RQ_ORDER": "lifo"}
    await crawls.run(Tree, settings, queue=any_queue, site=site.url)
    order = site.paths
    assert len(order) == len(set(order)) == 14
    assert order[:3] == ["/", FIRST, "/5"]
    # While a link is being saved, one page of the upper level or two may be handed out.
    assert order.index("/5/deep") < order.index("/2")
    assert order.index("/3/deep") < order.index("/0")


async def test_fifo_beyond_the_window(site: Site, crawls: Crawls, any_queue: Queue) -> None:
    wide = serve_two_levels(site, any_queue, 6)
    settings = {**ONE_BY_ONE, "APIFY_RQ_WINDOW": 3}
    await crawls.run(Tree, settings, queue=any_queue, site=site.url)
    assert site.paths == ["/", FIRST, *wide, *(f"{path}/deep" for path in wide)]


@pytest.mark.parametrize("in_front", [True, False])
async def test_place_of_a_retry(
    site: Site, crawls: Crawls, any_queue: Queue, in_front: bool
) -> None:
    others = [f"/{number}" for number in range(8)]
    other = once(lambda: any_queue.retries == 1, links)
    site.serve({"/": links("/bad", *others), "/bad": [503, "page"], **dict.fromkeys(others, other)})
    settings = {**ONE_BY_ONE, "APIFY_RQ_RETRY_FOREFRONT": in_front}
    await crawls.run(Tree, settings, queue=any_queue, site=site.url)
    order = site.paths
    assert sorted(order) == sorted(["/", "/bad", "/bad", *others])
    again = order.index("/bad", order.index("/bad") + 1)
    # While the retry is being saved, one page or two may be handed out.
    assert again <= 4 if in_front else again == len(order) - 1
