"""Several crawls on one queue, in shared access. What processes add: tests/processes."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import Request, signals
from scrapy.http import Response

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from tests.support.crawling import Crawl, Crawls
from tests.support.faults import Faults
from tests.support.process_spiders import Tree
from tests.support.queues import Queue, ServedQueue, copied
from tests.support.spiders import Links, SiteSpider
from tests.support.trees import fetched, tree
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, begun, let_go, links

SHARED: dict[str, Any] = {"APIFY_RQ_ACCESS": "shared"}


async def finish(*workers: Crawl) -> None:
    for worker in workers:
        await worker.end()
        assert worker.reason == "finished"


class ManyStarts(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        for number in range(24):
            yield Request(f"{self.site}/{number}")

    def parse(self, response: Response) -> None:
        self.note(response)


async def test_leases_outlast_slow_pages(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """Leases of two seconds, pages of more, and more of them than fit in at once."""
    held = {f"/{number}": Held() for number in range(24)}
    site.serve(held)
    settings = {**SHARED, "APIFY_RQ_LOCK_SECS": 2, "CONCURRENT_REQUESTS": 4}
    workers = [crawls.begin(ManyStarts, settings, queue=any_queue, site=site.url) for _ in "abc"]
    await wait_until(lambda: len(site.hits) == 3 * 4, "a page for each")
    await asyncio.sleep(2.2)
    let_go(*held.values())
    await finish(*workers)
    assert Counter(site.paths) == Counter([f"/{number}" for number in range(24)])
    assert not any("apify_rq/leases_lost" in worker.stats for worker in workers)


async def test_client_key_takes_over_at_once(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """From a worker that was killed, whose leases last for three minutes."""
    site.serve(tree(24, delay=0.05))
    settings = {**SHARED, "APIFY_RQ_CLIENT_KEY": "worker-1"}
    crawl = await crawls.start(Tree, settings, queue=any_queue, site=site.url)
    await wait_until(lambda: len(site.hits) > 9)
    with copied(any_queue) as after_the_kill:
        assert after_the_kill.locked > 0
        pending = [entry for entry in await after_the_kill.entries() if not entry.is_handled]
        await crawl.end()
        site.forget()
        second = await crawls.run(Tree, settings, queue=after_the_kill, site=site.url)
        assert second.reason == "finished"
        assert {entry.url.removeprefix(site.url) for entry in pending} <= set(site.paths)
        info = await after_the_kill.info()
        assert (info.handled, info.pending) == (fetched(24).total(), 0)


async def test_stop_gives_leases_back(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    site.serve(tree(24, delay=0.05))
    first = await crawls.start(Tree, SHARED, queue=any_queue, site=site.url)
    await wait_until(lambda: len(site.hits) > 10)
    await first.crawler.stop_async()
    await first.end()
    assert any_queue.locked == 0
    assert any_queue.handled == len(site.hits)
    await finish(*(crawls.begin(Tree, SHARED, queue=any_queue, site=site.url) for _ in "ab"))
    assert Counter(site.paths) == fetched(24)


class Retries(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/0", self.note)
        yield Request(f"{self.site}/flaky", meta={"note": "kept"}, priority=1)
        yield Request(f"{self.site}/1", self.note)
        yield Request(f"{self.site}/2", self.note)

    def parse(self, response: Response) -> Any:
        yield {"retries": response.meta["retry_times"], "note": response.meta["note"]}


async def test_another_worker_takes_a_retry(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    site.serve({"/flaky": [503, "well"], **dict.fromkeys(("/0", "/1", "/2"), "page")})
    first = crawls.begin(
        Retries, {**SHARED, "CONCURRENT_REQUESTS": 1}, queue=any_queue, site=site.url
    )
    closing: list[asyncio.Future[None]] = []

    def leave(response: Response) -> None:
        """Another worker is to find the queue as it is then."""
        if response.status == 503:
            assert first.crawler.engine is not None
            close = first.crawler.engine.close_spider_async(reason="left")
            closing.append(asyncio.ensure_future(close))

    first.crawler.signals.connect(leave, signals.response_downloaded)
    await first.end()
    assert first.reason == "left"
    assert any_queue.locked == 0
    flaky = await any_queue.entry("/flaky")
    assert (flaky.retry_count, flaky.handled_at) == (1, None)
    assert (await any_queue.info()).pending > 1
    second = await crawls.run(Retries, SHARED, queue=any_queue, site=site.url)
    assert second.paths[0] == "/flaky"
    assert second.items == [{"retries": 1, "note": "kept"}]
    assert site.paths.count("/flaky") == 2
    assert not (await any_queue.entry("/flaky")).failed


async def test_waiting_for_the_work_of_others(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """It asks seldom, without a write, and takes part in what comes of their last page."""
    paths = [f"/{number}" for number in range(24)]
    first, others = Held(links(*paths)), Held("page")
    site.serve({"/": first, **dict.fromkeys(paths, others)})
    at_once = 4
    settings = {**SHARED, "CONCURRENT_REQUESTS": at_once}
    workers = [crawls.begin(Links, settings, queue=any_queue, site=site.url) for _ in "ab"]
    await begun(first)
    calls: list[Any] = []
    if isinstance(any_queue, ServedQueue):
        calls = any_queue.api.calls
        await wait_until(lambda: len(any_queue.api.of("POST", "/requests/batch")) == 2)
        calls.clear()
    began = time.monotonic()
    await asyncio.sleep(0.3)
    between = Counter((call.method, call.path) for call in calls if call.is_about_queue)
    pauses = math.log2(1 + (time.monotonic() - began) / 0.05)  # each is twice the one before it
    let_go(first)
    await wait_until(lambda: len(site.hits) == 1 + 2 * at_once, "what each fetches at once")
    let_go(others)
    await finish(*workers)
    assert Counter(site.paths) == Counter(["/", *paths])
    assert all(worker.stats["apify_rq/handled"] >= at_once for worker in workers)
    if isinstance(any_queue, ServedQueue):
        assert set(between) == {("POST", "/head/lock")}
        assert between.total() <= 2 * (1 + math.ceil(pauses))


async def test_single_access_is_warned_once(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """The one that came first learns of the other from the API's answers, and each of them when the
    other has handled its page. If one is always ahead, only the other is warned."""
    site.serve(tree(40, delay=0.05))
    few = {"CLOSESPIDER_PAGECOUNT": 14}
    both = [await crawls.start(Tree, few, queue=served, site=site.url) for _ in "ab"]
    for crawl in both:
        await crawl.end()
    # Each has the log of both.
    spiders = [
        record.spider  # type: ignore[attr-defined] # we give it one
        for record in both[0].log
        if "Another program uses the request queue" in record.getMessage()
    ]
    assert 1 <= len(spiders) == len({*map(id, spiders)})
    assert "set APIFY_RQ_ACCESS = 'shared'" in both[0].log_text


async def test_late_worker_on_finished_queue(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """Even one that nobody named, which a crawl in single access would start afresh."""
    site.serve(tree(20))
    settings = {**SHARED, "APIFY_RQ_NAME": None}
    for _ in range(2):
        crawl = await crawls.run(Tree, settings, queue=any_queue, site=site.url)
    assert Counter(site.paths) == fetched(20)
    assert "is finished: 23 handled, none pending" in crawl.log_text


async def test_lost_answers_keep_no_leases(site: Site, served: ServedQueue, crawls: Crawls) -> None:
    """Leases of an hour: were one forgotten, the crawl would wait for its end."""
    site.serve(tree(30))
    share = 0.04
    served.faults(Faults(limited=share, failed=share, dropped=share, lost=share, unprocessed=share))
    settings = {**SHARED, "APIFY_RQ_LOCK_SECS": 3600}
    await finish(*(crawls.begin(Tree, settings, queue=served, site=site.url) for _ in "ab"))
    assert set(site.paths) == set(fetched(30))
    assert (await served.info()).pending == 0


async def test_no_end_before_the_writes_show(
    site: Site, served: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is late: nobody may take that for the end of the crawl."""
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 0.2)
    served.faults(Faults(head_lag=0.2, counter_lag=0.4))
    # Each page links to the next only, so that the head seems empty after each.
    site.serve({"/": links("/1"), "/1": links("/2"), "/2": "last"})
    await finish(*(crawls.begin(Links, SHARED, queue=served, site=site.url) for _ in "ab"))
    assert Counter(site.paths) == Counter(["/", "/1", "/2"])
    assert (await served.info()).pending == 0
