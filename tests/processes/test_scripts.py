"""Spiders run from scripts and single files, or without a reactor: a process has one, or none."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.processes.scripts.lone_spider import Lone
from tests.processes.scripts.two_spiders import First
from tests.support.comparing import STOCK
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.scrapy_project import Project
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

SCRIPTS = Path(__file__).with_name("scripts")
PAGES = {"/": links("/1/"), "/1/": links("/2"), "/2": "page"}


@pytest.mark.parametrize(
    ("way", "backend"),
    [
        ("CrawlerProcess", "served"),
        ("AsyncCrawlerProcess", "queue"),
        ("CrawlerRunner", "queue"),
    ],
)
async def test_two_spiders_in_one_process(
    site: Site, request: pytest.FixtureRequest, tmp_path: Path, way: str, backend: str
) -> None:
    """Each has a queue, and what is spared the garbage collector is given back to it.

    All crawls in tests/crawls/ are those of an AsyncCrawlerRunner.
    """
    queue: Queue = request.getfixturevalue(backend)
    site.serve(PAGES)
    settings = {"APIFY_RQ_NAME": None, "APIFY_RQ_GC_FREEZE": True}
    project = Project(tmp_path / "project", queue, First, settings)
    done = await project.run(way, site.url, script=SCRIPTS / "two_spiders.py")
    assert done.status == 0, done.log
    assert "ERROR" not in done.log
    assert Counter(site.paths) == {"/": 1, "/1/": 2, "/2": 2}
    assert "frozen: True" in done.output
    assert "frozen at the end: 0" in done.output
    backend_ = SqliteBackend(queue.folder)
    await backend_.find()
    known = {one.name.rpartition("-")[0]: one for one in await backend_.queues()}
    await backend_.close()
    counts = {name: (one.total, one.pending) for name, one in known.items()}
    assert counts == {"scrapybot-first": (3, 0), "scrapybot-second": (2, 0)}


async def test_no_reactor_is_needed(
    site: Site, any_queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    site.serve({**PAGES, "/1/": links("/", "/1", "/2", "/2?x=1", "/gone"), "/2?x=1": "page"})
    stock = await crawls.run(Lone, STOCK, site=site.url)
    site.forget()
    settings = {"TWISTED_REACTOR_ENABLED": False}
    done = await Project(tmp_path / "project", any_queue, Lone, settings).crawl(site=site.url)
    assert "Using reactor" not in done.log
    assert Counter(site.paths) == Counter(stock.paths)
    assert (await any_queue.info()).handled == len(stock.paths) == 6


async def test_exit_status_of_what_is_not_finished(
    site: Site, queue: Queue, served: ServedQueue, tmp_path: Path
) -> None:
    """As cron and CI see it; a script looks at the finish reason. A spider in a single file crawls
    all but an entry whose callback is missing, and one of a project is refused by the API.
    """
    site.serve(PAGES)
    user_data = {"scrapy": {"v": 1, "callback": "of_last_week"}}
    await queue.add(Entry(id=request_id("a"), unique_key="a", url=site.url, user_data=user_data))
    api = {**served.settings, "APIFY_TOKEN": "apify_api_another"}
    options = [word for name, value in api.items() for word in ("-s", f"{name}={value}")]
    single = ("runspider", str(SCRIPTS / "lone_spider.py"), "-a", f"site={site.url}")
    refused = ("crawl", First.name, "-a", f"site={site.url}", *options)
    project = Project(tmp_path / "project", queue, First)
    all_done = [await project.run(*words) for words in (single, refused)]
    assert [(done.stats["finish_reason"], done.status) for done in all_done] == [
        ("apify_rq_missing", 1),
        ("apify_rq_unauthorized", 1),
    ]
    assert sorted(site.paths) == ["/", "/1/", "/2"]
    info = await queue.info()
    assert (info.handled, info.pending) == (3, 1)


async def test_exit_status_when_the_storage_is_deleted(
    site: Site, queue: Queue, tmp_path: Path
) -> None:
    """``rm -rf storage`` under a crawl that has all but finished."""
    last = Held("page")
    site.serve({**PAGES, "/1/": last})
    async with Project(tmp_path / "project", queue, First).begin(site=site.url) as process:
        await wait_until(last.begun.is_set, "the last page")
        shutil.rmtree(queue.folder)
        last.go.set()
        done = await process.end()
    assert (done.status, done.stats["finish_reason"]) == (1, "apify_rq_gone")
    assert "was deleted or emptied by somebody else" in done.log.splitlines()[-1]
