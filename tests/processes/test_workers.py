"""Workers that are processes: they share a file, or a server, and nothing else."""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.support.crawling import Crawls
from tests.support.process_spiders import Tree
from tests.support.queues import Queue
from tests.support.scrapy_project import Finished, Project
from tests.support.trees import fetched, tree
from tests.support.waiting import wait_until
from tests.support.website import Held, Site

pytestmark = pytest.mark.usefixtures("short_delay")

SHARED = {"APIFY_RQ_ACCESS": "shared"}


def assert_well(worker: Finished) -> None:
    assert worker.status == 0, worker.log
    for fault in ("Bug in scrapy-apify-rq", "Warning: ", "Traceback"):
        assert fault not in worker.log, worker.log
    assert worker.stats["finish_reason"] == "finished"


async def test_four_workers_fetch_each_page_once(
    tmp_path: Path, site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    """Two of them share a process, which saves the time that others take to start."""
    pages = 200
    first = Held(tree(pages)["/0"])
    site.serve({**tree(pages, delay=0.2), "/0": first})
    project = Project(tmp_path / "project", any_queue, Tree, SHARED)
    async with project.begin(site=site.url) as one, project.begin(site=site.url) as two:
        opened = "Request queue 'test-queue' in "
        await wait_until(lambda: opened in one.log and opened in two.log, opened)
        here = [await crawls.start(Tree, SHARED, queue=any_queue, site=site.url) for _ in "ab"]
        first.go.set()
        for crawl in here:
            await crawl.end()
        ended = [await one.end(), await two.end()]
    for worker in ended:
        assert_well(worker)
    assert Counter(site.paths) == fetched(pages)
    stats = [worker.stats for worker in (*ended, *here)]
    shares = [one.get("apify_rq/handled", 0) for one in stats]
    assert 0 < min(shares) <= max(shares) < 0.6 * fetched(pages).total(), shares
    assert not any("apify_rq/leases_lost" in one for one in stats)
    info = await any_queue.info()
    assert (info.handled, info.pending) == (fetched(pages).total(), 0)
    # An add, a lease and an ack for each page, and adds of what was there already.
    duplicates = sum(one["dupefilter/filtered"] for one in stats)
    assert any_queue.writes <= 3 * fetched(pages).total() + duplicates


async def test_what_waits_in_a_stopped_worker_is_left_to_others(
    tmp_path: Path, site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    site.serve(tree(40, delay=0.3))
    settings = {**SHARED, "APIFY_RQ_LOCK_SECS": 2}
    project = Project(tmp_path / "project", any_queue, Tree, {**settings, "CONCURRENT_REQUESTS": 1})
    async with project.begin(site=site.url) as process:
        await wait_until(lambda: len(site.hits) > 4 and any_queue.locked > 3, "leases")
        process.send(signal.SIGSTOP)
        assert any_queue.locked <= 6  # a slow worker leaves the rest to others
        other = await crawls.run(Tree, settings, queue=any_queue, site=site.url)
        process.send(signal.SIGCONT)
        stopped = await process.end()
    assert other.reason == "finished"
    assert_well(stopped)
    left = re.findall(r"lease on entry \w+ \((\S+)\) ended before it was handed out", stopped.log)
    assert left
    assert stopped.stats["apify_rq/leases_lost"] >= len(left)
    crawled = re.findall(r"Crawled \(200\) <GET (\S+)>", stopped.log)
    assert not set(left).intersection(crawled)
    # One was in flight, and one perhaps done and not acked.
    assert len(site.paths) - fetched(40).total() <= 2
    assert (await any_queue.info()).pending == 0
