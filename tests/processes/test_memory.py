"""How much memory a crawl takes: a process, since its peak is that of the whole process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.peak_spider import Peak, PeakOfYields
from tests.support.queues import Queue, serving
from tests.support.scrapy_project import Project
from tests.support.website import Page, Site


def entry(url: str) -> Entry:
    return Entry(id=request_id(url), unique_key=url, url=url, user_data={"text": "x" * 1000})


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="/proc tells the peak"
)


async def test_memory_does_not_grow_with_what_is_pending(tmp_path: Path) -> None:
    """Pending: few, and 6,000 entries of 1 kB, all of which would take 18 MB and more."""

    async def peak(count: int) -> int:
        with serving(tmp_path / f"{count}-server") as served, Site({}, default=Page()) as site:
            await served.add(*(entry(f"{site.url}/{n}") for n in range(count)))
            settings = {"CLOSESPIDER_PAGECOUNT": 100, "LOG_LEVEL": "INFO"}
            project = Project(tmp_path / str(count), served, Peak, settings)
            crawl = await project.crawl(site=site.url)
        assert crawl.stats["apify_rq/handled"] >= 100
        return int(crawl.stats["peak"])

    few, many = await asyncio.gather(peak(200), peak(6_000))
    assert many - few <= 12_000_000


async def test_memory_does_not_grow_with_what_is_yielded(tmp_path: Path) -> None:
    """700 bytes a request at most, 160 of them for the rows of the last 10,000; an entry alone
    would take several times as many.
    """

    async def peak(count: int) -> int:
        queue = Queue(tmp_path / f"{count}-storage")
        settings = {"CLOSESPIDER_PAGECOUNT": 1, "LOG_LEVEL": "INFO"}
        # Scrapy's own middlewares would take a third of the time.
        project = Project(
            tmp_path / str(count), queue, PeakOfYields, {**settings, "SPIDER_MIDDLEWARES_BASE": {}}
        )
        with Site({}, default=Page()) as site:
            crawl = await project.crawl(site=site.url, count=count)
            assert (await queue.info()).pending >= count - len(site.paths)
        return int(crawl.stats["peak"])

    few, many = await asyncio.gather(peak(2_000), peak(8_000))
    assert many - few <= 6_000 * 700
