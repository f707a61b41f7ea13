"""``kill -9`` in mid-crawl: only a process dies in mid-write, with all it has not sent.

Each kill takes a second of CPU. ``benchmarks/killed.py`` kills a crawl a hundred times.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import scrapy.core.scraper
from shop_example.catalog import Page
from shop_example.site import Hit, ShopServer
from shop_example.spiders.shop import ShopSpider

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from tests.support.crawling import Crawls
from tests.support.example_project import shop_hits, shop_settings
from tests.support.faults import Faults
from tests.support.process_spiders import Tree
from tests.support.queues import Queue, ServedQueue
from tests.support.scrapy_project import Process, Project
from tests.support.trees import fetched, tree
from tests.support.waiting import wait_until
from tests.support.website import Held, Site

pytestmark = pytest.mark.usefixtures("short_delay")

KILLS = (0.2, 0.7)
"""After these parts of all pages."""
STARTING = 60.0
"""Seconds that a process may take to start on a busy machine."""
CONCURRENCY = 8
# So that a crawl lasts some seconds, and a page longer than the way of an ack to the queue.
DELAY = 0.02
# One kill can make those pages to be fetched again that were handed out and not acked yet: at most
# CONCURRENCY are being downloaded, and as many can wait for their ack, which leaves when one of the
# others has come back. Older versions of Scrapy hold each response back for 0.1 s before its
# callback, time for five more sets. Over the API an ack waits for the links found before it, and
# they up to 0.1 s for company in their batch, time for five more sets.
HELD_BACK = 0.1 if hasattr(scrapy.core.scraper, "_defer_sleep_async") else 0


class PausingShop(ShopServer):
    """Answers no more once it has had so many requests: the crawl has to wait for its kill."""

    pauses_at = math.inf

    async def _answer(self, hit: Hit) -> Page:
        page = await super()._answer(hit)
        while len(self.hits) > self.pauses_at:  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.01)
        return page


def most_repeated(queue: Queue) -> int:
    linger = ApifyBackend.linger if isinstance(queue, ServedQueue) else 0
    return len(KILLS) * CONCURRENCY * (2 + math.ceil((HELD_BACK + linger) / DELAY))


def items_in(folder: Path, shop: ShopServer) -> list[tuple[str, dict[str, dict[str, object]]]]:
    """Of each feed by sku, and how many times each item is there. Without what depends on which
    link to a product came first, or on the shop's port.
    """
    feeds: dict[str, list[dict[str, object]]] = {}
    for file in sorted(folder.iterdir()):
        text = file.read_text()
        items = json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines())
        feeds.setdefault(file.name.partition("-")[0], []).extend(items)
    for items in feeds.values():
        for item in items:
            del item["found_in"], item["position"]
            item["url"] = str(item["url"]).removeprefix(shop.url)
    found = []
    for name, items in feeds.items():
        by_sku = {str(item["sku"]): item for item in items}
        found.append((name, by_sku))
        # A pipeline that does without us writes at least once.
        assert len(items) == len(by_sku) or name == "pipeline.jsonl"
    return found


def feeds_in(folder: Path, queue: Queue) -> dict[str, object]:
    """Settings: feeds survive on the embedded queue, and only pipelines do over the API."""
    folder.mkdir()
    if isinstance(queue, ServedQueue):
        pipeline = "tests.support.flushing_pipeline.JsonLinesPipeline"
        file = str(folder / "pipeline.jsonl")
        return {"FEEDS": {}, "ITEM_PIPELINES": {pipeline: 1}, "TEST_ITEMS": file}
    return {
        "FEEDS": {
            str(folder / "add.jsonl"): {"format": "jsonlines"},
            str(folder / "over.json"): {"format": "json", "overwrite": True},
            str(folder / "batch-%(batch_id)d"): {"format": "jsonlines", "batch_item_count": 20},
        }
    }


async def shop_with_kills(
    tmp_path: Path, queue: Queue, crawls: Crawls, products: int
) -> Counter[Hit]:
    """Kill a crawl of the example's shop again and again, and let it come to its end here.

    It must be equal to one with Scrapy's own scheduler. Returns what was fetched again.
    """
    chance = random.Random(1)
    with ShopServer(products=products) as shop:
        folder = tmp_path / "stock"
        stock = {"ADDONS": {}, "CONCURRENT_REQUESTS": CONCURRENCY, **feeds_in(folder, queue)}
        await crawls.run(ShopSpider, {**shop_settings(shop), **stock}, patience=STARTING)
        expected, whole = shop_hits(shop), items_in(folder, shop)
    assert len(expected) > products
    with PausingShop(products=products, delay=DELAY) as shop:
        folder = tmp_path / "feeds"
        settings = {**shop_settings(shop), **feeds_in(folder, queue)}
        settings["CONCURRENT_REQUESTS"] = CONCURRENCY
        project = Project(tmp_path / "project", queue, ShopSpider, settings)
        name = "pipeline.jsonl" if isinstance(queue, ServedQueue) else "add.jsonl"
        cut_off = 0
        for moment in (int(part * len(expected)) for part in KILLS):
            shop.pauses_at = moment + 2 * CONCURRENCY
            async with project.begin() as process:
                await wait_until(lambda n=moment: len(shop.hits) >= n, "a hit", STARTING)
                # Not always at a hit: also while a page is read, or its ack on its way.
                await asyncio.sleep(chance.uniform(0, DELAY))
                assert not process.has_ended, process.log
            # What a kill in the middle of a write would leave; no test can hit that moment. The
            # first item makes the file.
            if (folder / name).exists():
                with (folder / name).open("a") as lines:
                    cut_off += lines.write('{"sku": "cut o')
        assert cut_off > 0
        shop.pauses_at = math.inf
        crawl = await crawls.run(ShopSpider, settings, queue=queue, patience=STARTING)
        assert crawl.reason == "finished"
        hits = shop_hits(shop)
        # Scrapy 2.19 lets all but the first of those requests pass that wait for robots.txt.
        hits.pop(Hit("GET", "/private/stock", ""), None)
        assert set(hits) == set(expected) - {Hit("GET", "/private/stock", "")}
        assert items_in(folder, shop) == whole
    assert [entry.url for entry in await queue.entries() if entry.handled_at is None] == []
    assert (await queue.info()).pending == 0
    return hits - expected


async def test_kills(tmp_path: Path, any_queue: Queue, crawls: Crawls) -> None:
    repeated = await shop_with_kills(tmp_path, any_queue, crawls, products=60)
    assert repeated.total() <= most_repeated(any_queue), dict(repeated)


async def test_kills_while_calls_fail(tmp_path: Path, served: ServedQueue, crawls: Crawls) -> None:
    """No bound on what is fetched again: a call that failed is repeated after 0.5 s or more, in
    which all acks behind it wait while the crawl goes on.
    """
    share = 0.05
    kinds = dict.fromkeys(("limited", "failed", "dropped", "lost", "unprocessed"), share)
    served.faults(Faults(**kinds))  # type: ignore[arg-type]
    await shop_with_kills(tmp_path, served, crawls, products=60)
    assert {"429", "500", "dropped", "lost"} <= served.misbehaviour.outcomes.keys()


async def test_kills_of_workers(tmp_path: Path, site: Site, any_queue: Queue) -> None:
    """Two at a time, of which any is killed and replaced."""
    pages = 100
    last = Held()
    site.serve({**tree(pages, delay=0.05), f"/{pages - 1}": last})
    settings = {"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_LOCK_SECS": 2, "CONCURRENT_REQUESTS": 4}
    project = Project(tmp_path / "project", any_queue, Tree, settings)
    unsettled = 0
    async with AsyncExitStack() as running:

        async def worker() -> Process:
            return await running.enter_async_context(project.begin(site=site.url))

        workers = [await worker()]
        for moment, victim in ((15, 0), (50, 1)):
            workers.append(await worker())
            await wait_until(lambda n=moment: len(site.hits) >= n, "a hit", STARTING)
            await workers.pop(victim).kill()
            # What was in flight, or done and not acked; also at the other worker, which goes on.
            handled = any_queue.handled
            unsettled += len(site.hits) - handled
        last.go.set()
        finished = await workers[0].end()
    assert finished.status == 0, finished.log
    for fault in ("Bug in scrapy-apify-rq", "Warning: ", "Traceback"):
        assert fault not in finished.log
    assert finished.stats["finish_reason"] == "finished"
    assert set(site.paths) == set(tree(pages))
    assert len(site.paths) - fetched(pages).total() <= unsettled
    info = await any_queue.info()
    assert (info.handled, info.pending) == (pages + len(Tree.starts), 0)
