"""A retry waits, so that a short outage costs no page. In other tests none waits."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from scrapy import Request
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Hit, Page, Site, links

DELAY = 0.25


async def test_an_outage_costs_no_page(site: Site, served: ServedQueue, crawls: Crawls) -> None:
    """It lasts for so long after the first try of each page, however slow this machine is."""
    pages = [f"/{number}" for number in range(12)]
    began: dict[str, float] = {}

    def page(hit: Hit) -> Page:
        now = time.monotonic()
        is_down = now < began.setdefault(hit.path, now) + 1.8 * DELAY
        return Page(status=503 if is_down else 200)

    site.serve({"/": links(*pages), **dict.fromkeys(pages, page)})
    settings = {"APIFY_RQ_RETRY_DELAY": DELAY}
    crawl = await crawls.run(Links, settings, queue=served, site=site.url)
    assert crawl.stats["retry/count"] >= len(pages)
    assert "apify_rq/failed" not in crawl.stats
    assert sorted(crawl.spider.handled) == sorted(["/", *pages])


class Kinds(SiteSpider):
    """Has a page tried again in each way that there is."""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/down")
        yield Request(f"{self.site}/asked", self.ask)
        yield Request(f"{self.site}/raised", self.fail, cb_kwargs={"times": 1})
        yield Request(f"{self.site}/memory", meta={"lock": threading.Lock()})
        for number in range(8):
            yield Request(f"{self.site}/{number}", priority=-1)

    def parse(self, response: Response) -> None:
        self.note(response)

    def ask(self, response: Response) -> Any:
        assert response.request is not None
        if "retry_times" not in response.request.meta:
            yield get_retry_request(response.request, spider=self, reason="ask")

    def fail(self, response: Response, times: int) -> None:
        if response.text == "bad":
            raise ValueError("bad")


def noting(times: dict[str, list[float]], *bodies: Page | str) -> Callable[[Hit], Page]:
    """A page that notes when it is asked for."""

    def page(hit: Hit) -> Page:
        times[hit.path].append(time.monotonic())
        body = bodies[min(len(times[hit.path]), len(bodies)) - 1]
        return body if isinstance(body, Page) else Page(body)

    return page


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_each_kind_of_retry_waits_and_others_go_on(
    site: Site, any_queue: Queue, crawls: Crawls, access: str
) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    down = noting(times, Page(status=503), "good")
    site.serve({"/down": down, "/memory": down, "/raised": noting(times, "bad", "good")})
    site.serve({"/asked": noting(times, "page")})
    site.serve({f"/{number}": noting(times, "page") for number in range(8)})
    settings = {"APIFY_RQ_RETRY_DELAY": DELAY, "APIFY_RQ_RETRY_SPIDER_ERRORS": 1}
    settings |= {"APIFY_RQ_ACCESS": access, "CONCURRENT_REQUESTS": 2}
    crawl = await crawls.run(Kinds, settings, queue=any_queue, site=site.url)
    assert crawl.reason == "finished"
    info = await any_queue.info()
    assert (info.handled, info.pending) == (11, 0)
    retried = {path: hits for path, hits in times.items() if len(hits) > 1}
    assert retried.keys() == {"/down", "/asked", "/raised", "/memory"}
    for path, (first, second) in retried.items():
        assert second - first >= DELAY, path
    # Batches of requests may be stored in any order, so not while each of them waited.
    others = [times[f"/{number}"][0] for number in range(8)]
    assert any(first < at < second for first, second in retried.values() for at in others)


async def test_the_site_says_when_to_come_back(site: Site, crawls: Crawls) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    busy = Page(status=429, headers={"Retry-After": "1"})
    site.serve({"/": noting(times, busy, "good")})
    crawl = await crawls.run(Links, {"APIFY_RQ_RETRY_DELAY": 0.01}, site=site.url)
    assert crawl.spider.handled == ["/"]
    assert times["/"][1] - times["/"][0] >= 1


async def test_no_other_worker_takes_a_retry_that_waits(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    site.serve({"/": noting(times, Page(status=503), "good")})
    settings = {"APIFY_RQ_RETRY_DELAY": 3 * DELAY, "APIFY_RQ_ACCESS": "shared"}
    settings |= {"APIFY_RQ_LOCK_SECS": 2}
    workers = [crawls.begin(Links, settings, queue=any_queue, site=site.url) for _ in "ab"]
    for worker in workers:
        await worker.end()
    first, second = times["/"]
    assert second - first >= 3 * DELAY
    assert (await any_queue.entry("/")).retry_count == 1


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_a_stop_leaves_retries_that_wait_to_the_next_run(
    site: Site, any_queue: Queue, crawls: Crawls, access: str
) -> None:
    site.serve({"/": [503, links()]})
    settings = {"APIFY_RQ_RETRY_DELAY": 60, "APIFY_RQ_ACCESS": access}
    crawl = await crawls.start(Links, settings, queue=any_queue, site=site.url)
    await wait_until(lambda: "retry/count" in crawl.stats)
    assert not crawl.task.done()
    await crawl.crawler.stop_async()
    await crawl.end()
    entry = await any_queue.entry("/")
    assert (entry.is_handled, entry.retry_count) == (False, 1)
    assert any_queue.locked == 0
    again = await crawls.run(Links, settings, queue=any_queue, site=site.url)
    assert again.spider.handled == ["/"]
