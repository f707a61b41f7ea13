"""What the log says: wrong input before the crawl starts, the queue's state before and after."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import scrapy

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, connect
from tests.project import SPIDER, Crawl, Project
from tests.support.website import Site, links


def no_change(folder: Path) -> None: ...


def file_in_place_of_folder(folder: Path) -> None:
    (folder / "storage").touch()


def no_database(folder: Path) -> None:
    (folder / "storage").mkdir()
    (folder / "storage" / FILE_NAME).write_text("something else\n" * 100)


def newer_version(folder: Path) -> None:
    connect(folder / "storage").close()
    with closing(sqlite3.connect(folder / "storage" / FILE_NAME)) as db:
        db.execute("PRAGMA user_version = 2")


def another_program(folder: Path) -> None:
    (folder / "storage").mkdir()
    with closing(sqlite3.connect(folder / "storage" / FILE_NAME)) as db:
        db.execute("CREATE TABLE theirs (x)")


SELECT_REACTOR = "twisted.internet.selectreactor.SelectReactor"
# name: the settings, what was there before, and what the message must say
WRONG: dict[str, tuple[dict[str, Any], Callable[[Path], None], list[str]]] = {
    "unknown setting": (
        {"APIFY_RQ_STORAGEDIR": "x"},
        no_change,
        ["APIFY_RQ_STORAGEDIR", "did you mean APIFY_RQ_STORAGE_DIR?"],
    ),
    "number": (
        {"APIFY_RQ_WINDOW": "many"},
        no_change,
        ["APIFY_RQ_WINDOW = 'many'", "whole number"],
    ),
    "choice": ({"APIFY_RQ_ORDER": "liffo"}, no_change, ["APIFY_RQ_ORDER", "did you mean 'lifo'?"]),
    "name": ({"APIFY_RQ_NAME": "my queue!"}, no_change, ["APIFY_RQ_NAME", "for example"]),
    "unwritable folder": (
        {},
        file_in_place_of_folder,
        [f"storage/{FILE_NAME}", "Set APIFY_RQ_STORAGE_DIR to a writable folder"],
    ),
    "no database": (
        {},
        no_database,
        [f"storage/{FILE_NAME}", "not a database", "Set APIFY_RQ_STORAGE_DIR"],
    ),
    "another program's": (
        {},
        another_program,
        [f"storage/{FILE_NAME}", "another program", "Set APIFY_RQ_STORAGE_DIR"],
    ),
    "newer version": (
        {},
        newer_version,
        [f"storage/{FILE_NAME}", "newer version", "Upgrade", "APIFY_RQ_STORAGE_DIR"],
    ),
    "reactor": (
        {"TWISTED_REACTOR": SELECT_REACTOR},
        no_change,
        ["TWISTED_REACTOR", "asyncio", "Remove the setting", "AsyncioSelectorReactor"],
    ),
    "callbacks": (
        {"APIFY_RQ_CALLBACKS": {"DETAIL": "parse_detail"}},
        no_change,
        ["APIFY_RQ_CALLBACKS['DETAIL']", "spider 'spider' has no method 'parse_detail'"],
    ),
    "id": (
        {"APIFY_RQ_NAME": None, "APIFY_RQ_ID": "~other"},
        no_change,
        ["APIFY_RQ_ID", "'~other'", f"storage/{FILE_NAME}", "Set APIFY_RQ_NAME"],
    ),
}


@pytest.fixture(scope="module")
def failure(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The exit status of Scrapy when a component cannot be made: 1, but 0 in old versions."""
    settings = {"ADDONS": {}, "SCHEDULER": "project.spiders.Missing"}
    project = Project(tmp_path_factory.mktemp("stock"), SPIDER, settings=settings)
    status = project.run("crawl", "spider").returncode
    assert status == 1 or scrapy.version_info < (2, 19)
    return status


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_stops_the_crawl_before_it_starts(
    tmp_path: Path, name: str, failure: int
) -> None:
    settings, prepare, parts = WRONG[name]
    with Site({"/": "start"}) as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        prepare(tmp_path)
        crawl = project.run("crawl", "spider")
        assert site.paths == []
    assert crawl.returncode == failure, crawl.log
    last = crawl.log.strip().splitlines()[-1]
    assert last.startswith("scrapy_apify_rq.errors.ConfigError: "), crawl.log
    for part in parts:
        assert part in last
    assert "slot not assigned" not in crawl.log, crawl.log
    assert crawl.log.count("Traceback (most recent call last)") <= 2, crawl.log
    assert "Spider opened" not in crawl.log


def test_a_dupefilter_of_the_project_is_closed_where_the_queue_cannot_be_opened(
    tmp_path: Path,
) -> None:
    spider = f"""
    from pathlib import Path
    from scrapy.dupefilters import RFPDupeFilter

    class Spoiler(RFPDupeFilter):
        def open(self):
            # Later than the check of all settings, which would find it.
            Path("storage").mkdir(exist_ok=True)
            Path("storage/{FILE_NAME}").write_text("no database" * 100)

        def close(self, reason):
            print("closed:", reason)

    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = ["http://localhost:9/"]
    """
    settings = {"DUPEFILTER_CLASS": "project.spiders.Spoiler"}
    crawl = Project(tmp_path, spider, settings=settings).run("crawl", "spider")
    assert "ConfigError" in crawl.log
    assert crawl.output.splitlines() == ["closed: shutdown"]


def test_a_dupefilter_of_the_project_is_closed_where_closing_fails(tmp_path: Path) -> None:
    spider = """
    from scrapy.dupefilters import RFPDupeFilter
    from scrapy.statscollectors import MemoryStatsCollector

    class Filter(RFPDupeFilter):
        def close(self, reason):
            print("closed:", reason)

    class Stats(MemoryStatsCollector):
        def get_value(self, key, default=None):
            if key == "apify_rq/handled":  # asked for by the summary, last of all
                raise OSError("the disk is gone")
            return super().get_value(key, default)

    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = ["data:,"]
    """
    settings = {
        "DUPEFILTER_CLASS": "project.spiders.Filter",
        "STATS_CLASS": "project.spiders.Stats",
    }
    crawl = Project(tmp_path, spider, settings=settings).run("crawl", "spider")
    assert "OSError: the disk is gone" in crawl.log
    assert crawl.output.splitlines() == ["closed: finished"]


# The queue's state


def said(crawl: Crawl) -> list[str]:
    """Our lines of the log, without time and name."""
    lines = [line for line in crawl.log.splitlines() if "[scrapy_apify_rq." in line]
    return [line.partition("] ")[2] for line in lines]


def test_a_named_queue_that_is_finished_says_how_to_crawl_again(tmp_path: Path) -> None:
    with Site({"/": links("/a"), "/a": "a"}) as site:
        project = Project(tmp_path, SPIDER, site=site.url)
        queue = f"Request queue 'test-queue' in {tmp_path / 'storage' / FILE_NAME}"
        first = project.crawl()
        assert said(first)[0] == f"INFO: {queue}: new"

        second = project.crawl()
        assert site.paths == ["/", "/a"]
        line = said(second)[0]
        assert line.startswith(f"WARNING: {queue} is finished: 2 handled, none pending")
        assert "-s APIFY_RQ_PURGE_ON_START=True" in line
        assert "another APIFY_RQ_NAME" in line
        assert "handled 0 (0 of them failed)" in said(second)[-1]

        third = project.crawl("-s", "APIFY_RQ_PURGE_ON_START=True")
        assert site.paths == ["/", "/a"] * 2
    assert said(third)[0] == (
        f"INFO: {queue}: emptied of 2 entries, 0 of them pending, since"
        " APIFY_RQ_PURGE_ON_START is set"
    )
    assert project.info().handled == 2


def test_an_unnamed_queue_that_is_finished_starts_afresh(tmp_path: Path) -> None:
    with Site({"/": links("/a"), "/a": "a"}) as site:
        settings = {"APIFY_RQ_NAME": None, "BOT_NAME": "bot"}
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        project.crawl()
        second = project.crawl()
        assert site.paths == ["/", "/a"] * 2
    assert "Request queue 'bot-spider'" in said(second)[0]
    assert said(second)[0].endswith(": emptied of 2 entries, its crawl was finished")
    assert "WARNING" not in "".join(said(second))


@pytest.mark.parametrize("name", ["test-queue", None])
def test_an_unfinished_queue_is_resumed(tmp_path: Path, name: str | None) -> None:
    paths = [f"/{number}" for number in range(9)]
    with Site({"/": links(*paths)}, default="page") as site:
        settings = {"APIFY_RQ_NAME": name, "BOT_NAME": "bot", "CONCURRENT_REQUESTS": 1}
        project = Project(tmp_path, SPIDER, site=site.url, settings=settings)
        first = project.crawl("-s", "CLOSESPIDER_PAGECOUNT=2")
        done = len(site.paths)
        left = 10 - done
        assert 2 <= done < 10
        assert f"the queue holds {done} handled, {left} pending" in said(first)[-1]
        second = project.crawl()
        assert sorted(site.paths) == ["/", *paths]
    assert said(second)[0].endswith(f": resuming, {left} pending, {done} handled")
    assert f"this run handled {left}" in said(second)[-1]
    assert "the queue holds 10 handled, 0 pending" in said(second)[-1]


def test_the_last_line_sums_up_below_the_stats(tmp_path: Path) -> None:
    pages = {"/": links("/a", "/gone", "/once"), "/a": "a", "/gone": 404, "/once": [503, "once"]}
    with Site(pages) as site:
        project = Project(tmp_path, SPIDER, site=site.url)
        crawl = project.crawl()
    lines = crawl.log.strip().splitlines()
    assert lines[-1].endswith(
        f"INFO: Request queue 'test-queue' in {tmp_path / 'storage' / FILE_NAME}:"
        " this run handled 4 (1 of them failed) and retried 1;"
        " the queue holds 4 handled, 0 pending; failed: 1 x 404 Not Found"
    )
    dumped = next(i for i, line in enumerate(lines) if "Dumping Scrapy stats" in line)
    assert dumped < len(lines) - 1


@pytest.mark.parametrize(
    ("bot", "spider"),
    [("my bot", "shop.example/ž"), ("", "../../etc"), ("b" * 80, "s" * 80)],
    ids=["odd", "empty", "long"],
)
def test_odd_names_of_bot_and_spider(tmp_path: Path, bot: str, spider: str) -> None:
    with Site({"/": "start"}) as site:
        source = SPIDER.replace('"spider"', repr(spider))
        # No file of stats: it would be named after the spider.
        settings = {"APIFY_RQ_NAME": None, "BOT_NAME": bot, "EXTENSIONS": {}}
        project = Project(tmp_path, source, site=site.url, settings=settings)
        project.crawl(spider=spider)
        assert site.paths == ["/"]
    with closing(sqlite3.connect(tmp_path / "storage" / FILE_NAME)) as db:
        ((name, handled),) = db.execute("SELECT name, handled FROM queues")
    assert handled == 1
    assert len(name) <= 63
    assert name.replace("-", "").isalnum()
