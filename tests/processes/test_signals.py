"""Ctrl-C: a signal belongs to a process, and Scrapy's own handling of it ends that process."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from signal import SIGINT
from urllib.parse import urlsplit

import pytest
from scrapy import Request

from tests.support.command_line import rq_ok
from tests.support.crawling import Crawls
from tests.support.jobdirs import write
from tests.support.process_spiders import InMemory, Stages, Tree, Waits
from tests.support.queues import Queue, ServedQueue
from tests.support.scrapy_project import Project
from tests.support.trees import fetched, tree
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site, let_go, links

pytestmark = pytest.mark.usefixtures("short_delay")

MODULE = Stages.__module__
# What a stop does in a crawl that is open, at each call and stage: tests/crawls/test_the_end.py.
STAGES = ["pipeline made", "filter", "spider_opened", "engine_started"]


@pytest.mark.parametrize(
    ("any_queue", "stages"), [("sqlite", STAGES), ("apify", ["call 1"])], indirect=["any_queue"]
)
async def test_ctrl_c_at_each_stage(
    tmp_path: Path, site: Site, any_queue: Queue, crawls: Crawls, stages: list[str]
) -> None:
    """It ends soon and loses nothing."""
    is_served = isinstance(any_queue, ServedQueue)
    settings = {
        "APIFY_RQ_ACCESS": "shared" if is_served else "single",
        "APIFY_RQ_LOCK_SECS": 2,
        "DUPEFILTER_CLASS": f"{MODULE}.StagesFilter",
        "ITEM_PIPELINES": {f"{MODULE}.StagesPipeline": 1},
        "STATS_CLASS": f"{MODULE}.StagesStats",
    }
    pages = {"/": links("/1", "/2", "/3"), **dict.fromkeys(("/1", "/2", "/3"), links("/"))}
    site.serve(pages)
    project = Project(tmp_path / "project", any_queue, Stages, settings)
    queues = [any_queue if is_served else Queue(tmp_path / stage) for stage in stages]
    for stage, queue in zip(stages, queues, strict=True):
        option = ("-s", f"APIFY_RQ_STORAGE_DIR={queue.folder}")
        async with project.begin(*option, env={"STAGE": stage}, site=site.url) as process:
            stopped = await process.end()
        assert stopped.status == 0, stopped.log
        assert "SIGINT" in stopped.log, f"{stage} was not reached"
        assert not re.search("Bug in scrapy-apify-rq|Warning: ", stopped.log), stopped.log
        resumed = await crawls.run(Stages, settings, queue=queue, site=site.url)
        assert resumed.reason == "finished"
        entries = await queue.entries()
        assert {urlsplit(entry.url).path for entry in entries} == set(pages)
        assert all(entry.is_handled for entry in entries)


async def test_ctrl_c_once_fetches_nothing_twice(
    tmp_path: Path, site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    last = Held()
    site.serve({**tree(100, delay=0.02), "/99": last})
    project = Project(tmp_path, any_queue, Tree, {"CONCURRENT_REQUESTS": 4})
    as_a_user = not isinstance(any_queue, ServedQueue)
    async with project.begin("-o", "-:jsonlines", site=site.url, as_a_user=as_a_user) as process:
        await wait_until(lambda: len(site.hits) >= 40, "hits")
        process.send(SIGINT)
        await wait_until(lambda: "shutting down gracefully" in process.log)
        last.go.set()
        stopped = await process.end()
    assert stopped.status == 0, stopped.log
    assert "Spider closed (shutdown)" in stopped.log
    assert "Bug in scrapy-apify-rq" not in stopped.log
    pending = (await any_queue.info()).pending
    assert pending > 0
    assert f"{pending} pending" in stopped.log.splitlines()[-1]
    resumed = await crawls.run(Tree, queue=any_queue, site=site.url)
    assert f"resuming, {pending} pending" in resumed.log_text
    assert Counter(site.paths) == fetched(100)
    items = [json.loads(line)["path"] for line in stopped.output.splitlines()]
    assert Counter(items + [item["path"] for item in resumed.items]) == fetched(100)
    assert (await any_queue.info()).pending == 0


async def test_ctrl_c_twice_loses_nothing(
    tmp_path: Path, site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    done = [f"/{number}" for number in range(10)]
    held = {f"/held{number}": Held("page") for number in range(10)}
    site.serve({"/0": links(*done, *held), **dict.fromkeys(done[1:], "page"), **held})
    project = Project(tmp_path, any_queue, Tree, {"LOG_LEVEL": "INFO", "CONCURRENT_REQUESTS": 8})
    async with project.begin(site=site.url) as process:
        await wait_until(
            lambda: sum(page.begun.is_set() for page in held.values()) == 8,
            "8 pages held",
        )
        await wait_until(lambda: any_queue.handled == len(done) + 3)
        process.send(SIGINT)
        await wait_until(lambda: "shutting down gracefully" in process.log)
        process.send(SIGINT)
        stopped = await process.end()
    assert "forcing unclean shutdown" in stopped.log
    let_go(*held.values())
    resumed = await crawls.run(Tree, queue=any_queue, site=site.url)
    assert set(site.paths) == {*done, *held}
    again = Counter(path for path in site.paths if path in done) - Counter(done)
    assert again == Counter(Tree.starts), "a page that was handled is fetched again"
    assert resumed.reason == "finished"
    info = await any_queue.info()
    assert (info.pending, info.handled) == (0, len(done) + 3 + len(held))


async def test_exit_status_with_requests_in_memory_only(
    tmp_path: Path, site: Site, queue: Queue
) -> None:
    """It is no failure if the next run comes across them again."""
    site.serve({"/": "page", **{f"/{number}": Page(delay=0.2) for number in range(3)}})
    project = Project(tmp_path, queue, InMemory, {"CONCURRENT_REQUESTS": 1})
    for orphans, name, lost in (("", "one", False), ("1", "another", True)):
        option = ("-s", f"APIFY_RQ_NAME={name}")
        async with project.begin(*option, site=site.url, orphans=orphans) as process:
            stopped = await process.end()
        assert (stopped.status, stopped.stats["finish_reason"]) == (int(lost), "shutdown")
        assert stopped.stats["apify_rq/given_up"] > 0
        assert ("ERROR" in stopped.log) == ("apify_rq/lost" in stopped.stats) == lost
        assert "given up, since in memory only" in stopped.log.splitlines()[-1]


async def test_ctrl_c_during_an_import(tmp_path: Path, any_queue: Queue) -> None:
    """After the pending requests of a JOBDIR are added, and it can be repeated."""
    jobdir = tmp_path / "job"
    write(jobdir, *(Request(f"http://127.0.0.1/{number}") for number in range(3)))
    words = ("import-jobdir", str(jobdir), "--spider", Waits.name, "--yes")
    async with Project(tmp_path / "project", any_queue, Waits).start("rq", *words) as process:
        await wait_until(lambda: process.output == "waiting\n", "its start")
        process.send(SIGINT)
        stopped = await process.end()
    assert stopped.status == 130, stopped.log
    assert "you can safely run it again" in stopped.log
    assert (await any_queue.info()).pending == 3
    settings = {"SPIDER_MODULES": [MODULE]}
    again = await rq_ok(any_queue, *words, "--repeat-start", settings=settings)
    assert "Added: 0 pending requests, 0 start requests counted as crawled, 0 seen" in again.out
