"""``kill -9`` at random moments: only a process dies in mid-write, with all it has not sent."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from pathlib import Path

import aiohttp
import scrapy.core.scraper
from shop_example.site import Hit, ShopServer
from shop_example.spiders.shop import ShopSpider

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.server.faults import Faults
from tests.support.crawling import Crawls
from tests.support.example_project import shop_hits, shop_settings
from tests.support.process_spiders import Tree, fetched, tree
from tests.support.queues import Queue, ServedQueue
from tests.support.scrapy_project import Process, Project
from tests.support.waiting import wait_until
from tests.support.website import Site

KILLS = 6
STARTING = 60.0
"""Seconds that a process may take to start on a busy machine."""
PRODUCTS = 480
CONCURRENCY = 8
# So that a crawl lasts some seconds, and a page longer than the way of an ack to the queue.
DELAY = 0.02
# How many pages one kill can make to be fetched again: those handed out and not acked yet. At most
# CONCURRENCY of them are being downloaded, and as many can have come back and wait for their ack:
# it leaves when the next page is asked for, which is when one of the others has come back, or after
# 0.02 s, and behind the few batches of links before it. (For the few milliseconds that those take,
# a third set can be under way, but not at each of the kills, and the test looks at their sum.)
# Older versions of Scrapy hold each response back for 0.1 s before its callback, time for five more
# sets. Over the API an ack waits for the links found before it, and they up to 0.1 s for company in
# their batch, time for five more sets.
HELD_BACK = 0.1 if hasattr(scrapy.core.scraper, "_defer_sleep_async") else 0


def most_repeated(queue: Queue) -> int:
    linger = ApifyBackend.linger if isinstance(queue, ServedQueue) else 0
    return KILLS * CONCURRENCY * (2 + math.ceil((HELD_BACK + linger) / DELAY))


def items_in(file: Path, shop: ShopServer) -> dict[str, dict[str, object]]:
    """By sku, without what depends on which link to a product came first, or on the shop's port."""
    items = {}
    for line in file.read_text().splitlines():
        item = json.loads(line)
        del item["found_in"], item["position"]
        items[item["sku"]] = {**item, "url": item["url"].removeprefix(shop.url)}
    return items


async def shop_with_kills(
    tmp_path: Path, queue: Queue, crawls: Crawls, chance: random.Random
) -> Counter[Hit]:
    """Kill a crawl of the example's shop again and again, and let it come to its end here.

    It must be equal to one with Scrapy's own scheduler. Returns what was fetched again.
    """
    with ShopServer(products=PRODUCTS) as shop:
        file = tmp_path / "stock.jsonl"
        stock = {"ADDONS": {}, "CONCURRENT_REQUESTS": CONCURRENCY}
        await crawls.run(ShopSpider, {**shop_settings(shop, file), **stock}, patience=STARTING)
        expected, whole = shop_hits(shop), items_in(file, shop)
    assert len(expected) > 500
    with ShopServer(products=PRODUCTS, delay=DELAY) as shop:
        file = tmp_path / "items.jsonl"
        settings = {**shop_settings(shop, file), "CONCURRENT_REQUESTS": CONCURRENCY}
        project = Project(tmp_path / "project", queue, ShopSpider, settings)
        for moment in sorted(chance.sample(range(2, 500), KILLS)):
            async with project.begin() as process:
                await wait_until(lambda n=moment: len(shop.hits) >= n, "a hit", STARTING)
                # Not always at a hit: also while a page is read, or its ack on its way.
                await asyncio.sleep(chance.uniform(0, DELAY))
                assert not process.has_ended, process.log
            # What a kill in the middle of a write would leave; no test can hit that moment.
            with file.open("a") as lines:
                lines.write('{"sku": "cut o')
        crawl = await crawls.run(ShopSpider, settings, queue=queue, patience=STARTING)
        assert crawl.reason == "finished"
        hits = shop_hits(shop)
        # Scrapy 2.19 lets all but the first of those requests pass that wait for robots.txt.
        hits.pop(Hit("GET", "/private/stock", ""), None)
        assert set(hits) == set(expected) - {Hit("GET", "/private/stock", "")}
        assert items_in(file, shop) == whole
    assert [entry.url for entry in await queue.entries() if entry.handled_at is None] == []
    assert (await queue.info()).pending == 0
    return hits - expected


async def test_kills(tmp_path: Path, any_queue: Queue, crawls: Crawls) -> None:
    repeated = await shop_with_kills(tmp_path, any_queue, crawls, random.Random(1))
    assert repeated.total() <= most_repeated(any_queue), dict(repeated)


async def test_kills_while_calls_fail(tmp_path: Path, served: ServedQueue, crawls: Crawls) -> None:
    """No bound on what is fetched again: a call that failed is repeated after 0.5 s or more, in
    which all acks behind it wait while the crawl goes on.
    """
    share = 0.03
    kinds = dict.fromkeys(("limited", "failed", "dropped", "lost", "unprocessed"), share)
    served.faults(Faults(**kinds))  # type: ignore[arg-type]
    await shop_with_kills(tmp_path, served, crawls, random.Random(2))
    async with aiohttp.request("GET", f"{served.api.url}/_calls") as answer:
        outcomes = (await answer.json())["outcomes"]
    assert {"429", "500", "dropped", "lost"} <= outcomes.keys()


async def test_kills_of_workers(tmp_path: Path, site: Site, any_queue: Queue) -> None:
    """Two at a time, of which any is killed and replaced."""
    pages, chance = 600, random.Random(3)
    site.serve(tree(pages, delay=0.05))
    settings = {
        "APIFY_RQ_ACCESS": "shared",
        "APIFY_RQ_LOCK_SECS": 2,
        "CONCURRENT_REQUESTS": 4,
    }
    project = Project(tmp_path / "project", any_queue, Tree, settings)
    workers: list[Process] = []
    unsettled = 0
    try:
        workers += [project.begin(site=site.url), project.begin(site=site.url)]
        for number, moment in enumerate(sorted(chance.sample(range(2, pages - 50), KILLS)), 1):
            await wait_until(lambda n=moment: len(site.hits) >= n, "a hit", STARTING)
            if number < KILLS:
                workers.append(project.begin(site=site.url))
            await workers.pop(chance.randrange(2)).kill()
            # What was in flight, or done and not acked; also at the other worker.
            unsettled += len(site.hits) - any_queue.handled
        (last,) = workers
        finished = await last.end()
    finally:
        for worker in workers:
            await worker.__aexit__()
    assert finished.status == 0, finished.log
    for fault in ("Bug in scrapy-apify-rq", "Warning: ", "Traceback"):
        assert fault not in finished.log
    assert finished.stats["finish_reason"] == "finished"
    assert set(site.paths) == set(tree(pages))
    assert len(site.paths) - fetched(pages).total() <= unsettled
    info = await any_queue.info()
    assert (info.handled, info.pending) == (pages + len(Tree.starts), 0)
