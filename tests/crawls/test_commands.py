"""``scrapy rq`` before, while and after a crawl uses the queue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scrapy.http import Response

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from tests.support.command_line import rq_ok
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links


class Pages(SiteSpider):
    def parse(self, response: Response) -> Iterator[Any]:
        for link in response.css("a::attr(href)").getall():
            yield response.follow(link, self.parse_page, cb_kwargs={"rank": (1, 2)})

    def parse_page(self, response: Response, rank: object) -> None:
        assert rank == (1, 2)
        if response.url.endswith("/boom"):
            raise ValueError("no price")


SETTINGS = {"SPIDER_MODULES": [__name__], "RETRY_TIMES": 1}


async def test_queue_of_a_crawl(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    site.serve({"/": links("/a", "/b", "/boom", "/gone"), "/a": "a", "/boom": "boom"})
    site.serve({"/b": [500, 500, 500, "better now"]})  # it fails at the second error
    await crawls.run(Pages, SETTINGS, queue=any_queue, site=site.url)

    seen = (await rq_ok(any_queue, "status", "--json", settings=SETTINGS)).json
    assert (seen["total"], seen["handled"], seen["failed"]) == (5, 5, 3)
    if isinstance(any_queue, ServedQueue):
        assert seen["operations"]["writes"] == 5 + 5 + 1  # added, handled, retried
        any_queue.api.calls.clear()
    for path, callback, arguments in (("/", None, {}), ("/a", "parse_page", {"rank": [1, 2]})):
        words = ("show", f"{site.url}{path}", "--json")
        request = (await rq_ok(any_queue, *words, settings=SETTINGS)).json["request"]
        assert (request["callback"], request["cb_kwargs"]) == (callback, arguments)
    if isinstance(any_queue, ServedQueue):  # to read the whole queue would cost
        assert any_queue.api.of("GET", "/requests") == []
    added = await rq_ok(any_queue, "add", f"{site.url}/a", settings=SETTINGS)
    assert added.out == "0 added, 1 already in the queue\n"

    site.hits.clear()
    await rq_ok(any_queue, "retry", "--match", "/b$")
    again = await crawls.run(Pages, SETTINGS, queue=any_queue, site=site.url)
    assert site.paths.count("/b") == 2  # one more error, and one more try
    assert again.stats["retry/count"] == 1
    entry = await any_queue.entry("/b")
    assert (entry.failed, entry.retry_count) == (False, 1)


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_running_crawl_picks_up_retried_and_added_entries(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    monkeypatch.setattr(ApifyBackend, "lag", 2)
    slow = Held("slow")
    site.serve({"/": links("/gone", "/slow"), "/gone": [404, "here"], "/slow": slow, "/new": "new"})
    settings = {**SETTINGS, "APIFY_RQ_CLIENT_KEY": "ours", "APIFY_RQ_ACCESS": access}
    crawl = await crawls.start(Pages, settings, queue=any_queue, site=site.url)
    await wait_until(slow.begun.is_set)
    await wait_until(lambda: crawl.stats.get("apify_rq/failed"), "the ack of /gone")
    retried = await rq_ok(any_queue, "retry", "--failed", settings=settings)
    assert retried.out == "1 entry went back to the queue\n"
    urls = (f"{site.url}/new", f"{site.url}/slow")
    added = await rq_ok(any_queue, "add", *urls, settings=settings)
    assert added.out == "1 added, 1 already in the queue\n"
    slow.go.set()
    await crawl.end()
    assert "Another program uses" not in crawl.log_text  # both have the same client key
    assert sorted(site.paths) == ["/", "/gone", "/gone", "/new", "/slow"]
    seen = (await rq_ok(any_queue, "status", "--json", settings=settings)).json
    assert (seen["handled"], seen["pending"], seen["failed"]) == (4, 0, 0)
