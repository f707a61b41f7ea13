"""What ``apify run`` asks for: a fresh crawl, or to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scrapy.settings import Settings

from scrapy_apify_rq.actor.local_run import leave_mark, local_start
from scrapy_apify_rq.config import Config
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links
from tests.support.website import Site, links

CLI_KEY = "__CLI_INPUT"
UNNAMED = {"APIFY_RQ_NAME": None}


def config(folder: Path, purge: str, key: str, **settings: Any) -> Config:
    environ = {"CRAWLEE_STORAGE_DIR": str(folder), "ACTOR_INPUT_KEY": key}
    environ |= {"CRAWLEE_PURGE_ON_START": purge} if purge else {}
    return Config.from_settings(Settings(settings), environ, "spider")


@pytest.mark.parametrize(
    ("purge", "key", "with_mark", "without"),
    [
        ("1", "INPUT", "afresh", "afresh"),
        ("0", "INPUT", "go on", "go on"),  # --resurrect or --no-purge
        ("0", CLI_KEY, "go on", "afresh"),  # it protects the input, and has emptied the rest or not
        ("", CLI_KEY, None, None),  # no run of the CLI
    ],
)
def test_how_it_starts(
    tmp_path: Path, purge: str, key: str, with_mark: str | None, without: str | None
) -> None:
    run = config(tmp_path, purge, key)
    assert local_start(run) == without
    leave_mark(run)
    assert local_start(run) == with_mark
    assert any(tmp_path.rglob("*.in-sqlite")) == bool(purge)
    for not_its_own in ({"APIFY_RQ_NAME": "named"}, {"APIFY_RQ_ACCESS": "shared"}):
        assert local_start(config(tmp_path / "other", purge, key, **not_its_own)) is None


def test_mark_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "request_queues").write_text("a file")
    leave_mark(config(tmp_path, "1", "INPUT"))
    assert "may start afresh even with --resurrect" in caplog.text


async def test_crawls(
    site: Site,
    queue: Queue,
    crawls: Crawls,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A feed is complete after each of them, even if there was nothing left to do."""
    monkeypatch.setenv("APIFY_LOCAL_STORAGE_DIR", str(queue.folder))
    site.serve({"/": links("/1", "/2"), "/1": "page", "/2": "page"})
    feed = tmp_path / "items.jsonl"
    feeds = {str(feed): {"format": "jsonlines", "overwrite": True}}
    stopped = {"CLOSESPIDER_PAGECOUNT": 1, "CONCURRENT_REQUESTS": 1}
    for purge, settings, expected, items in (
        ("0", stopped, ": new", 1),
        ("0", stopped, "resuming", 2),
        ("1", {}, "1 of them pending, since apify run was not told to --resurrect", 3),
        ("0", {}, "is finished: 3 handled, none pending", 3),
        ("1", {}, "emptied of 3 entries", 3),
    ):
        monkeypatch.setenv("CRAWLEE_PURGE_ON_START", purge)
        settings = {**UNNAMED, "FEEDS": feeds, **settings}
        crawl = await crawls.run(Links, settings, site=site.url)
        assert len(feed.read_text().splitlines()) == items
        assert expected in crawl.log_text
        assert "input of this Actor run is not given to the spider" in crawl.log_text
    assert len(crawl.items) == 3
