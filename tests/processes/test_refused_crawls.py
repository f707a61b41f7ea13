"""What ``scrapy crawl`` says of a wrong setting: its log has what other libraries report, too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import scrapy

from tests.support.process_spiders import Run
from tests.support.queues import Queue
from tests.support.scrapy_project import Project
from tests.support.website import Site

# With the second, Twisted runs the crawl, and with the third, there is no add-on.
WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"APIFY_RQ_WINDOW": "x"}, ("APIFY_RQ_WINDOW = 'x'", "for example 1000")),
    (
        {"TWISTED_REACTOR": "twisted.internet.selectreactor.SelectReactor"},
        ("TWISTED_REACTOR", "asyncio", "Remove the setting", "AsyncioSelectorReactor"),
    ),
    ({"ADDONS": {}, "SCHEDULER": "scrapy_apify_rq.Scheduler"}, ("DOWNLOADER_MIDDLEWARES lacks",)),
]


async def test_wrong_setting_is_one_line(tmp_path: Path, queue: Queue, site: Site) -> None:
    words = ("crawl", Run.name, "-a", f"site={site.url}")
    refused = await asyncio.gather(
        *(
            Project(tmp_path / str(number), queue, Run, settings).run(*words)
            for number, (settings, _) in enumerate(WRONG)
        )
    )
    for crawl, (_, parts) in zip(refused, WRONG, strict=True):
        last = crawl.log.strip().splitlines()[-1]
        assert "[scrapy_apify_rq.crawl.refusal] ERROR: " in last, crawl.log
        assert all(part in last for part in parts), last
        assert not any(text in crawl.log for text in ("Traceback", "CRITICAL", "Unhandled"))
        assert crawl.status == 1
    assert site.paths == []


async def test_exit_status_is_stocks(tmp_path: Path, queue: Queue, site: Site) -> None:
    """That of any component which cannot be made; old versions of Scrapy end with 0."""
    stock = Project(tmp_path, queue, Run, {"ADDONS": {}, "SCHEDULER": "no.Such"})
    crawl = await stock.run("crawl", Run.name, "-a", f"site={site.url}")
    assert crawl.status == 1 or scrapy.version_info < (2, 19)
