"""``scrapy rq import-jobdir`` after a real ``kill -9`` of stock Scrapy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scrapy import squeues

from tests.support.command_line import rq_ok
from tests.support.crawling import Crawls
from tests.support.process_spiders import Shelves
from tests.support.queues import Queue
from tests.support.scrapy_project import Project
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links


@pytest.mark.skipif(not hasattr(squeues, "PickleLifoSQLiteQueue"), reason="of Scrapy 2.19")
async def test_crawl_goes_on_with_what_was_not_in_flight(
    tmp_path: Path, site: Site, queue: Queue, crawls: Crawls
) -> None:
    pages = [f"/{number}" for number in range(40)]
    held = Held("page")
    # Odd numbers are of priority 1 and come first, the last of them first of all.
    site.serve({"/": links(*pages), **dict.fromkeys([*pages, "/late", "/later"], "page")})
    site.serve({"/15": held})
    settings: dict[str, Any] = {
        "CONCURRENT_REQUESTS": 1,
        "SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleLifoSQLiteQueue",
        "SCHEDULER_START_DISK_QUEUE": "scrapy.squeues.PickleFifoSQLiteQueue",
    }
    project = Project(tmp_path / "project", queue, Shelves, settings)
    stock = ("-s", "ADDONS={}", "-s", "JOBDIR=job")
    async with project.begin(*stock, site=site.url) as process:
        await wait_until(held.begun.is_set, "the page on which it is killed")
        await process.kill()
    held.go.set()
    before = list(site.paths)
    assert 2 < len(before) < 40

    job = str(project.folder / "job")
    words = ("import-jobdir", job, "--spider", Shelves.name, "--yes", "-a", f"site={site.url}")
    settings["SPIDER_MODULES"] = [Shelves.__module__]
    done = await rq_ok(queue, *words, settings=settings)
    left = {"/late", "/later", *pages} - {*before}
    assert f"Added: {len(left)} pending requests" in done.out
    assert "The crawl was killed. What Scrapy was fetching" in done.err
    await crawls.run(Shelves, site=site.url)
    assert set(site.paths[len(before) :]) == left
    assert len(site.paths) == len(before) + len(left)
    assert (await queue.info()).pending == 0
