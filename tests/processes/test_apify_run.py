"""``apify run`` of the real Apify CLI (a process) over a project of ours.

It starts what ``scrapy.cfg`` names, empties storages, gives the input, and forwards Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from scrapy_apify_rq import __main__ as main
from tests.support import npm_packages as npm
from tests.support.process_spiders import Run
from tests.support.queues import TOKEN, Queue, ServedQueue
from tests.support.scrapy_project import Process, Project
from tests.support.waiting import PATIENCE, wait_until
from tests.support.website import Held, Site, begun, let_go, links

SCHEMA = {"title": "t", "type": "object", "schemaVersion": 1, "properties": {}}
ACTOR = {"actorSpecification": 1, "name": "x", "version": "0.1", "input": SCHEMA}
PAGES = [f"/{number}" for number in range(6)]


class Cli:
    """The CLI, with a home of its own, in the folder of a project."""

    def __init__(self, installed: Path, project: Project, home: Path) -> None:
        self._program = str(installed / "node_modules" / "apify-cli" / "dist" / "apify.js")
        self.project = project
        self._environ = {
            "APIFY_CLI_DISABLE_TELEMETRY": "1",
            "APIFY_CLI_SKIP_UPDATE_CHECK": "1",
            "APIFY_DISABLE_KEYRING": "1",
            "HOME": str(home),
        }

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> Process:
        node = shutil.which("node")
        assert node is not None
        environ = {**self._environ, **(env or {})}
        return self.project.start(*words, env=environ, program=[node, self._program])


def project_in(folder: Path) -> Project:
    """It has the default queue, wherever that is."""
    settings = {"CONCURRENT_REQUESTS": 2, "APIFY_RQ_STORAGE_DIR": None, "APIFY_RQ_NAME": None}
    project = Project(folder, Queue(folder), Run, settings)
    with (folder / "scrapy.cfg").open("a") as file:
        file.write(f"[apify]\nmainpy_location = scrapy_apify_rq\nspider = {Run.name}\n")
    # The CLI asks which version it is, which takes two seconds where it is installed.
    (folder / "crawlee.py").write_text("raise ImportError\n")
    (folder / ".actor").mkdir()
    (folder / ".actor" / "actor.json").write_text(json.dumps(ACTOR))
    return project


@pytest.fixture
def cli(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Cli:
    installed = npm.installed(request.config, tmp_path_factory, "cli", "apify-cli@1")
    return Cli(installed, project_in(tmp_path / "project"), tmp_path / "home")


def crawl_in(project: Path) -> int:
    """The process of the crawl in this folder, which the shell of the CLI has started."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # no process, or one that has ended
            words = (folder / "cmdline").read_text().split("\0")
            if "scrapy_apify_rq" in words and (folder / "cwd").readlink() == project:
                return int(folder.name)
    raise AssertionError("there is no crawl")


async def test_run_of_the_cli(site: Site, served: ServedQueue, cli: Cli) -> None:
    """It resumes what a run before it has left, which is a fork with the variables that the CLI
    sets. With a token, it stays on this machine. Ctrl-C, doubled as by bash, loses nothing.
    """
    project = cli.project
    store = {"CRAWLEE_STORAGE_DIR": str(project.folder / "storage"), "CRAWLEE_PURGE_ON_START": "0"}
    one_page = ("-s", "CLOSESPIDER_PAGECOUNT=1", "-s", "CONCURRENT_REQUESTS=1")
    held = {path: Held("page") for path in PAGES}
    site.serve({"/": links(*PAGES), **held})
    before = await project.crawl(*one_page, env=store, site=site.url)
    assert "the queue holds 1 handled, 6 pending" in before.log
    env = {"APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": served.api.url}
    given = ("--input", json.dumps({"site": site.url, "maxConcurrency": 1}))
    async with cli.start("run", "--resurrect", *given, env=env) as process:
        await begun(held[PAGES[0]], patience=3 * PATIENCE)  # node and Python have to start
        crawl = crawl_in(project.folder)
        os.kill(crawl, signal.SIGINT)
        await wait_until(lambda: "shutting down gracefully" in process.log, "the first Ctrl-C")
        os.kill(crawl, signal.SIGINT)
        await process.end()
    assert "resuming, 6 pending, 1 handled" in process.log
    assert "forcing unclean shutdown" in process.log
    let_go(*held.values())
    resumed = await project.crawl(env=store, site=site.url)
    assert "resuming, 6 pending, 1 handled" in resumed.log
    assert "the queue holds 7 handled, 0 pending" in resumed.log
    assert sorted(site.paths) == sorted(["/", *PAGES, PAGES[0]])
    assert not served.api.calls


async def test_exit_status_for_input_that_is_not_valid(tmp_path: Path) -> None:
    project = project_in(tmp_path / "project")
    folder = tmp_path / "storage" / "key_value_stores" / "default"
    folder.mkdir(parents=True)
    (folder / "KEY.json").write_text('{"maxConcurrency": 0}')
    env = {"CRAWLEE_STORAGE_DIR": str(tmp_path / "storage"), "CRAWLEE_INPUT_KEY": "KEY"}
    ended = await project.run("-a", "site=x", env=env, script=Path(main.__file__))
    assert ended.status == 2
    assert "not valid: maxConcurrency = 0: write a whole number of at least 1" in ended.log
    assert not (tmp_path / "storage" / "request_queues.sqlite").exists()
