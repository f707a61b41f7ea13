"""One crawl at a time on an embedded queue: what a process holds, and what its end leaves."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from scrapy_apify_rq.errors import ConfigError
from tests.support.crawling import Crawls
from tests.support.process_spiders import Forks
from tests.support.queues import Queue
from tests.support.scrapy_project import Project
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Site


async def test_lock_ends_with_its_process(
    tmp_path: Path, site: Site, queue: Queue, crawls: Crawls
) -> None:
    """With a kill, too, and even if a child of the process lives on."""
    page = Held("page")
    site.serve({"/": "page", "/held": page})
    project = Project(tmp_path / "project", queue, Forks)
    async with project.begin(site=site.url) as first:
        await wait_until(page.begun.is_set, "the second page")
        child = int(re.findall(r"child (\d+)", first.output)[0])
        try:
            with pytest.raises(
                ConfigError, match=f"already, by process {first.pid} on "
            ) as refused:
                await crawls.run(Links, site=site.url)
            assert 'APIFY_RQ_ACCESS = "shared"' in str(refused.value)
            assert site.paths == ["/", "/held"]
            await first.kill()
            os.kill(child, 0)  # it is still there
            page.go.set()
            await crawls.run(Links, site=site.url)
            assert site.paths == ["/", "/held", "/held"]
        finally:
            os.kill(child, signal.SIGKILL)
    assert (await queue.info()).pending == 0
