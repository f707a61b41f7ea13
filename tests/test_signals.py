"""Ctrl-C at each stage of opening: real processes, which must end soon and lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import Project
from tests.support.website import Site, links

pytestmark = pytest.mark.usefixtures("backend")

SPIDER = """
    from project.stages import reached

    class Spider(scrapy.Spider):
        name = "spider"

        async def start(self):
            reached("start")
            yield scrapy.Request(SITE + "/")

        def parse(self, response):
            reached("callback")
            yield from response.follow_all(css="a")
"""
STAGES = """
import os
import signal

from scrapy import signals
from scrapy.dupefilters import RFPDupeFilter
from scrapy.statscollectors import MemoryStatsCollector


def reached(stage):
    if os.environ.get("STAGE") == stage:
        del os.environ["STAGE"]  # one signal only; a second one would end the process at once
        os.kill(os.getpid(), signal.SIGINT)


class Stats(MemoryStatsCollector):
    calls = 0

    def inc_value(self, key, count=1, start=0):
        if key.startswith("apify_rq/api/calls/"):
            self.calls += 1
            reached(f"call {self.calls}")
        super().inc_value(key, count, start)


class Filter(RFPDupeFilter):
    def open(self):
        reached("filter")


class Pipeline:
    def __init__(self, crawler):
        for name in ("engine_started", "spider_opened", "request_reached_downloader"):
            signal = getattr(signals, name)
            crawler.signals.connect(lambda name=name: reached(name), signal, weak=False)
        reached("pipeline made")

    @classmethod
    def from_crawler(cls, crawler):
        return cls(crawler)

    def open_spider(self):
        reached("pipeline opened")

    def process_item(self, item):
        return item
"""
OPENING = ["pipeline made", "filter", "pipeline opened", "spider_opened", "engine_started"]
RUNNING = ["start", "request_reached_downloader", "callback"]
CALLS = [f"call {n}" for n in range(1, 9)]


@pytest.mark.parametrize("stage", OPENING + RUNNING + CALLS)
def test_a_signal_at_each_stage_ends_the_crawl_and_loses_nothing(
    tmp_path: Path, backend: str, stage: str
) -> None:
    if backend == "sqlite" and stage in CALLS:
        pytest.skip("the embedded queue makes no calls")
    settings = {
        "APIFY_RQ_ACCESS": "single" if backend == "sqlite" else "shared",
        "APIFY_RQ_LOCK_SECS": 2,
        "DUPEFILTER_CLASS": "project.stages.Filter",
        "ITEM_PIPELINES": {"project.stages.Pipeline": 1},
        "STATS_CLASS": "project.stages.Stats",
    }
    pages = {"/": links("/1", "/2", "/3")} | {f"/{n}": links("/") for n in (1, 2, 3)}
    with Site(pages) as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        (project.folder / "project" / "stages.py").write_text(STAGES)
        with project.fork("crawl", "spider", env={"STAGE": stage}) as fork:
            _, _, log = fork.wait(20)
        assert "SIGINT" in log, "the stage was not reached"
        for fault in ("Bug in scrapy-apify-rq", "Warning: "):
            assert fault not in log
        project.crawl()
        assert set(site.paths) == set(pages)
        assert project.info().pending == 0
