"""Crawls of several hosts keep all of them busy, as with Scrapy's own scheduler.

The hosts are download slots of one site: the first part of the path names the slot.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.http import Response

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.scrapy_private import slot_is_busy
from tests.support.comparing import stock_and_ours
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.waiting import PATIENCE, wait_until
from tests.support.website import Held, Hit, Page, Site, links

HOSTS = 6
PAGES = 8
A_WHILE = 0.02


class Hosts(SiteSpider):
    """Follows all links, of which none is handed out before all are saved; and notes how many
    hosts are busy when another request comes to one.
    """

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **options: Any) -> Any:
        spider = super().from_crawler(crawler, *args, **options)
        spider.busy = []
        crawler.signals.connect(spider.look, signals.request_reached_downloader)
        return spider

    def look(self) -> None:
        assert self.crawler.engine is not None
        slots = self.crawler.engine.downloader.slots
        self.busy.append(sum(bool(slot.active) for slot in slots.values()))

    async def parse(self, response: Response) -> AsyncIterator[Any]:
        engine = self.crawler.engine
        assert engine is not None
        assert engine._slot is not None
        hrefs = response.css("a::attr(href)").getall()
        if not hrefs:
            return
        engine.pause()
        for href in hrefs:
            yield response.follow(
                href,
                meta={"download_slot": slot_of(href)},
                priority=1 if "detail" in href else 0,
            )
        scheduler: Any = engine._slot.scheduler
        if hasattr(scheduler, "frontier"):
            await wait_until(lambda: not scheduler.frontier.unsaved_adds, "all adds")
        engine.unpause()


def slot_of(path: str) -> str:
    return path.split("/")[1]


def pages(host: str, count: int = PAGES) -> list[str]:
    return [f"/{host}/{n}" for n in range(count)]


def places(crawl: Crawl, host: str) -> list[int]:
    return [n for n, path in enumerate(crawl.paths) if slot_of(path) == host]


async def test_hosts_found_one_by_one_are_all_busy(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    found = [path for host in range(HOSTS) for path in pages(f"host{host}")]
    site.serve({"/": links(*found), **dict.fromkeys(found, Page(delay=A_WHILE))})
    settings = {"CONCURRENT_REQUESTS": HOSTS, "CONCURRENT_REQUESTS_PER_DOMAIN": PAGES}
    stock, ours = await stock_and_ours(crawls, Hosts, site, served, settings)
    assert stock.outcome == ours.outcome
    busy = [sum(run.crawl.spider.busy) / len(found) for run in (stock, ours)]
    assert min(busy) > HOSTS / 2, busy  # one line keeps less than two busy


async def test_a_worker_looks_beyond_busy_hosts(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """In shared access the API gives it the head of the queue, which is one host's."""
    held = Held()
    found = [path for host in range(HOSTS) for path in pages(f"host{host}")]
    site.serve({"/": links(*found), **dict.fromkeys(found, held)})
    settings = {"CONCURRENT_REQUESTS": 50, "CONCURRENT_REQUESTS_PER_DOMAIN": 1}
    settings |= {"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_BACKEND": "apify"}
    crawl = await crawls.start(Hosts, settings, queue=served, site=site.url)
    hosts = {slot_of(path) for path in found}
    await wait_until(lambda: hosts <= set(map(slot_of, site.paths)), "a page of each host")
    held.go.set()
    await crawl.end()
    assert sorted(crawl.paths) == sorted(["/", *found])


@pytest.mark.parametrize(("delay", "is_busy"), [(0, False), (1000, True)])
async def test_a_host_is_busy_until_its_delay_is_over(
    site: Site, queue: Queue, crawls: Crawls, delay: int, is_busy: bool
) -> None:
    found = []

    class Looking(SiteSpider):
        def parse(self, response: Response) -> None:
            engine = self.crawler.engine
            assert engine is not None
            ((key, slot),) = engine.downloader.slots.items()
            found.append([slot_is_busy(engine, each) for each in (key, "other")])
            slot.lastseen = time.time()  # as with an older Scrapy
            found.append([slot_is_busy(engine, key)])

    site.serve({"/": "page"})
    await crawls.run(Looking, {"DOWNLOAD_DELAY": delay}, queue=queue, site=site.url)
    assert found == [[is_busy, False], [is_busy]]


async def test_a_slow_host_at_the_head_starves_no_other(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    slow, fast = pages("slow", 20), pages("fast", 20)
    fast_are_done = threading.Event()

    def home(hit: Hit) -> Page:
        fast_are_done.clear()
        return Page(links(*slow, *fast))

    def fast_page(hit: Hit) -> Page:
        if set(fast) <= set(site.paths):
            fast_are_done.set()
        return Page()

    def slow_page(hit: Hit) -> Page:
        fast_are_done.wait(PATIENCE)
        return Page()

    site.serve({"/": home, **dict.fromkeys(fast, fast_page), **dict.fromkeys(slow, slow_page)})
    settings = {"CONCURRENT_REQUESTS": 8, "CONCURRENT_REQUESTS_PER_DOMAIN": 4}
    for run in await stock_and_ours(crawls, Hosts, site, queue, settings):
        assert places(run.crawl, "fast")[-1] < places(run.crawl, "slow")[11]


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_a_window_smaller_than_the_pages_of_a_host(
    site: Site, any_queue: Queue, crawls: Crawls, access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that does not answer holds up no other, even if its pages alone fill the window."""
    if access == "shared" and any_queue.settings["APIFY_RQ_BACKEND"] == "apify":
        pytest.skip("the API gives a worker the head of the queue")
    monkeypatch.setattr(ApifyBackend, "lag", 0.2)
    slow = pages("slow", 50)
    fast = [path for host in "abc" for path in pages(host, 10)]
    fast_are_done = threading.Event()

    def fast_page(hit: Hit) -> Page:
        if set(fast) <= set(site.paths):
            fast_are_done.set()
        return Page()

    def slow_page(hit: Hit) -> Page:
        return Page(status=200 if fast_are_done.wait(PATIENCE) else 404)

    site.serve({"/": links(*slow, *fast), **dict.fromkeys(fast, fast_page)})
    site.serve(dict.fromkeys(slow, slow_page))
    settings = {"CONCURRENT_REQUESTS": 8, "CONCURRENT_REQUESTS_PER_DOMAIN": 4}
    settings |= {"APIFY_RQ_WINDOW": 20, "APIFY_RQ_ACCESS": access}
    crawl = await crawls.run(Hosts, settings, queue=any_queue, site=site.url)
    assert sorted(crawl.paths) == sorted(["/", *slow, *fast])
    assert "downloader/response_status_count/404" not in crawl.stats


async def test_hosts_with_a_delay_wait_at_the_same_time(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    hosts = [f"host{n}" for n in range(4)]
    found = [path for host in hosts for path in pages(host, 5)]
    site.serve({"/": links(*found), **dict.fromkeys(found, "page")})
    settings = {
        "CONCURRENT_REQUESTS": 4,
        "DOWNLOAD_SLOTS": {host: {"delay": 0.1, "jitter": 0} for host in hosts},
    }
    for run in await stock_and_ours(crawls, Hosts, site, queue, settings):
        # One host after the other would get its last page when all others have theirs.
        ends = [places(run.crawl, host)[-1] for host in hosts]
        assert min(ends) > len(found) - 2 * len(hosts), run.crawl.paths


async def test_urgent_pages_of_a_full_slot_do_not_stop_others(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    details = [f"/shop/detail{n}" for n in range(12)]
    found = pages("list", 4)
    site.serve({"/": links(*details, *found), **dict.fromkeys(found, "page")})
    site.serve(dict.fromkeys(details, Page(delay=2 * A_WHILE)))
    settings = {"CONCURRENT_REQUESTS": 4, "CONCURRENT_REQUESTS_PER_DOMAIN": 2}
    for run in await stock_and_ours(crawls, Hosts, site, served, settings):
        assert places(run.crawl, "list")[-1] < places(run.crawl, "shop")[-2]


class Mine:
    """Some class of a project."""


@pytest.mark.filterwarnings("ignore:The CONCURRENT_REQUESTS_PER_IP setting is deprecated")
@pytest.mark.parametrize(
    ("settings", "in_turn", "warning"),
    [
        ({"SCHEDULER_PRIORITY_QUEUE": "scrapy.pqueues.ScrapyPriorityQueue"}, False, ""),
        (
            {"SCHEDULER_PRIORITY_QUEUE": f"{__name__}.Mine"},
            True,
            "SCHEDULER_PRIORITY_QUEUE is",
        ),
        ({"CONCURRENT_REQUESTS_PER_IP": 2}, False, "CONCURRENT_REQUESTS_PER_IP is set"),
    ],
)
async def test_the_project_says_how_requests_wait(
    site: Site, crawls: Crawls, settings: dict[str, Any], in_turn: bool, warning: str
) -> None:
    found = [*pages("a", 5), *pages("b", 5)]
    site.serve({"/": links(*found), **dict.fromkeys(found, "page")})
    crawl = await crawls.run(Hosts, {"CONCURRENT_REQUESTS": 1, **settings}, site=site.url)
    slots = [slot_of(path) for path in crawl.paths[1:]]
    assert Counter(slots) == {"a": 5, "b": 5}
    assert slots == (["a", "b"] * 5 if in_turn else ["a"] * 5 + ["b"] * 5)
    warnings = [line for line in crawl.log_text.split("\n") if "Requests wait in" in line]
    assert [warning in line for line in warnings] == ([True] if warning else [])
