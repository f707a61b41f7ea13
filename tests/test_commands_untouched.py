"""Scrapy's own commands work with the add-on on, and keep away from the project's queue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.project import SPIDER, Crawl, Project
from tests.support.website import Site, links

SPIDERS = (
    SPIDER
    + '''
import warnings

# Scrapy's parse command does what Scrapy warns of.
warnings.filterwarnings("ignore", ".*returned a Deferred")

Spider.parse.__doc__ = f"""
@url {SITE}/
@returns requests 1 1
"""

class Quiet(scrapy.Spider):
    name = "quiet"  # Scrapy's shell, of old, fetches the start requests of its spider
'''
)
BY_HAND: dict[str, Any] = {
    "ADDONS": {},
    "SCHEDULER": "scrapy_apify_rq.Scheduler",
    "DOWNLOADER_MIDDLEWARES": {"scrapy_apify_rq.DownloaderMiddleware": 10000},
    "SPIDER_MIDDLEWARES": {"scrapy_apify_rq.SpiderMiddleware": 10000},
}
INSTALLATIONS: dict[str, dict[str, Any]] = {"add-on": {}, "by hand": BY_HAND}
# Command, what it prints, and what the site is asked for. {} is the site's address.
COMMANDS = {
    "shell": (["shell", "{}/", "-c", "fetch('{}/1') or response.status"], "200", ["/", "/1"]),
    "shell, no page": (["shell", "-c", "fetch('{}/1') or response.url"], "{}/1", ["/1"]),
    "shell, spider": (
        ["shell", "--spider=quiet", "{}/", "-c", "crawler.spidercls.name"],
        "quiet",
        ["/"],
    ),
    "fetch": (["fetch", "{}/1"], "the page", ["/1"]),
    "fetch, spider": (["fetch", "--spider=spider", "{}/1"], "the page", ["/1"]),
    "view": (["view", "{}/1"], "file://", ["/1"]),
    "parse": (["parse", "--spider=spider", "--depth=2", "{}/"], "'url': '{}/1'", ["/", "/1"]),
    "check": (["check"], "", ["/"]),
}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site({"/": links("/1"), "/1": "<html><body>the page</body></html>"}) as site:
        yield site


def run(project: Project, site: Site, command: str) -> Crawl:
    """Run one of COMMANDS and judge what it printed and fetched."""
    words, expected, paths = COMMANDS[command]
    site.hits.clear()
    words = [word.replace("{}", site.url) for word in words]
    done = project.run(*words, env={"BROWSER": "echo %s"})
    assert done.returncode == 0, done.log
    assert expected.replace("{}", site.url) in done.output
    assert site.paths == paths
    assert "Traceback" not in done.log
    assert "Request queue " not in done.log
    return done


@pytest.mark.parametrize("installation", INSTALLATIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_and_makes_no_queue(
    tmp_path: Path, site: Site, command: str, installation: str
) -> None:
    project = Project(tmp_path, SPIDERS, site=site.url, settings=INSTALLATIONS[installation])
    run(project, site, command)
    assert not (project.folder / "storage").exists()


@pytest.mark.parametrize("command", ["shell", "fetch, spider", "view", "parse", "check"])
def test_a_command_leaves_a_queue_as_it_is(tmp_path: Path, site: Site, command: str) -> None:
    project = Project(tmp_path, SPIDERS, site=site.url, settings={"APIFY_RQ_PURGE_ON_START": True})
    project.add(Entry(id=request_id("key"), unique_key="key", url=f"{site.url}/pending"))
    before = contents(project.folder / "storage")
    run(project, site, command)
    assert contents(project.folder / "storage") == before
    assert [entry.handled_at for entry in project.entries()] == [None]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


@pytest.mark.parametrize("installation", INSTALLATIONS)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list"], "spider\n"),
        (["settings", "--get", "APIFY_RQ_NAME"], "test-queue\n"),
        (["version", "--verbose"], "Scrapy"),
    ],
    ids=["list", "settings", "version"],
)
def test_a_command_without_a_spider_works(
    tmp_path: Path, words: list[str], expected: str, installation: str
) -> None:
    project = Project(tmp_path, SPIDERS, settings=INSTALLATIONS[installation])
    done = project.run(*words)
    assert done.returncode == 0, done.log
    assert expected in done.output
    assert not (project.folder / "storage").exists()


def test_a_project_without_the_queue_loads_next_to_nothing_of_ours(tmp_path: Path) -> None:
    """Scrapy imports the module of ``scrapy rq`` for each of its commands, wherever it is run."""
    words = [sys.executable, "-X", "importtime", "-m", "scrapy", "version"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    ours = {name for name in loaded if name.startswith("scrapy_apify_rq.")}
    assert "scrapy_apify_rq.errors" in ours
    assert ours <= {f"scrapy_apify_rq.{name}" for name in ("commands", "commands.rq", "errors")}


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_a_crawl_uses_the_queue_however_it_was_installed(
    tmp_path: Path, site: Site, installation: str
) -> None:
    project = Project(tmp_path, SPIDERS, site=site.url, settings=INSTALLATIONS[installation])
    crawl = project.crawl()
    assert crawl.stats["item_scraped_count"] == 1
    assert project.info().handled == crawl.stats["apify_rq/handled"] == 2


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_switched_off_it_leaves_all_to_the_stock_scheduler(
    tmp_path: Path, site: Site, installation: str
) -> None:
    settings = {**INSTALLATIONS[installation], "APIFY_RQ_ENABLED": False}
    project = Project(tmp_path, SPIDERS, site=site.url, settings=settings)
    crawl = project.crawl()
    assert crawl.stats["item_scraped_count"] == 1
    assert crawl.stats["scheduler/enqueued/memory"] == 2
    assert "WARNING" not in crawl.log
    assert not (project.folder / "storage").exists()


@pytest.mark.parametrize("missing", ["DOWNLOADER_MIDDLEWARES", "SPIDER_MIDDLEWARES"])
def test_the_scheduler_without_its_middlewares_says_what_to_set(
    tmp_path: Path, site: Site, missing: str
) -> None:
    settings = {name: value for name, value in BY_HAND.items() if name != missing}
    site.hits.clear()
    project = Project(tmp_path, SPIDERS, site=site.url, settings=settings)
    crawl = project.run("crawl", "spider")
    assert f"{missing} lacks scrapy_apify_rq." in " ".join(crawl.log.split())
    assert 'ADDONS = {"scrapy_apify_rq.Addon": 500}' in crawl.log
    assert site.paths == []
