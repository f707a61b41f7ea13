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
from tests.support.scrapy_project import Finished, Process, Project
from tests.support.trees import fetched, tree
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, let_go, links

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
    """Two of them share a process, which saves the time that others take to start.

    None can end, or take more than its share, before all have as much to do as they can.
    """
    pages, at_once = 111, 8
    held = {path: Held(page) for path, page in [*tree(pages).items()][11:]}
    site.serve({**tree(pages), **held})
    settings = {**SHARED, "CONCURRENT_REQUESTS": at_once}
    project = Project(tmp_path / "project", any_queue, Tree, settings)
    async with project.begin(site=site.url) as one, project.begin(site=site.url) as two:
        here = [await crawls.start(Tree, settings, queue=any_queue, site=site.url) for _ in "ab"]
        # A start request may come late, and wait until its worker has room.
        await wait_until(
            lambda: sum(path in held for path in site.paths) == 4 * at_once,
            "what each fetches at once",
        )
        let_go(*held.values())
        for crawl in here:
            await crawl.end()
        ended = [await one.end(), await two.end()]
    for worker in ended:
        assert_well(worker)
    assert Counter(site.paths) == fetched(pages)
    stats = [worker.stats for worker in (*ended, *here)]
    shares = [one.get("apify_rq/handled", 0) for one in stats]
    assert min(shares) >= at_once, shares
    assert not any("apify_rq/leases_lost" in one for one in stats)
    info = await any_queue.info()
    assert (info.handled, info.pending) == (fetched(pages).total(), 0)
    # An add, a lease and an ack for each page, and adds of what was there already.
    duplicates = sum(one["dupefilter/filtered"] for one in stats)
    assert any_queue.writes <= 3 * fetched(pages).total() + duplicates


async def stop(process: Process) -> None:
    """As Ctrl-Z does, and wait until it stands still."""
    process.send(signal.SIGSTOP)
    stat = Path(f"/proc/{process.pid}/stat")
    await wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "its stop")


async def test_what_waits_in_a_stopped_worker_is_left_to_others(
    tmp_path: Path, site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    paths = [f"/page/{number}" for number in range(24)]
    held = Held("page")
    site.serve({"/0": links(*paths), "/1": "page", **dict.fromkeys(paths, held)})
    settings = {**SHARED, "APIFY_RQ_LOCK_SECS": 2}
    project = Project(tmp_path / "project", any_queue, Tree, {**settings, "CONCURRENT_REQUESTS": 1})
    starts = len(Tree.starts)
    async with project.begin(site=site.url) as process:
        await wait_until(held.begun.is_set, "the held page")
        # One of them is that of the held page. A slow worker holds fewer than a fast one.
        await wait_until(lambda: any_queue.handled == starts and any_queue.locked > 1, "leases")
        # Stopped while it writes, it would keep the file from the others.
        with any_queue.locked_file():
            await stop(process)
        assert any_queue.locked <= 6  # it has left the rest to others
        held.go.set()
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
    twice = Counter(site.paths) - Counter([*Tree.starts, *paths])
    assert [*twice.values()] == [1], "only one was in flight"
    assert (await any_queue.info()).pending == 0
