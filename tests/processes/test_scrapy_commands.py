"""Scrapy's own commands work and keep away from the queue: each runs a reactor of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.processes.scripts.two_spiders import First
from tests.support.queues import NAME, Queue, ServedQueue
from tests.support.scrapy_project import Project
from tests.support.website import Site, links

PURGE = {"APIFY_RQ_PURGE_ON_START": True}
BY_HAND = {
    "ADDONS": {},
    "SCHEDULER": "scrapy_apify_rq.Scheduler",
    "DOWNLOADER_MIDDLEWARES": {"scrapy_apify_rq.DownloaderMiddleware": 10000},
    "SPIDER_MIDDLEWARES": {"scrapy_apify_rq.SpiderMiddleware": 10000},
}
# Words, what the command prints, and what the site is asked for. {} is the site's address.
COMMANDS: list[tuple[list[str], str, list[str]]] = [
    (["shell", "{}/", "-c", "fetch('{}/1') or response.status"], "200", ["/", "/1"]),
    (["shell", "-c", "fetch('{}/1') or response.url"], "{}/1", ["/1"]),
    (["shell", "--spider=second", "{}/", "-c", "crawler.spidercls.name"], "second", ["/"]),
    (["fetch", "{}/1"], "the page", ["/1"]),
    (["fetch", "--spider=first", "{}/1"], "the page", ["/1"]),
    (["view", "{}/1"], "file://", ["/1"]),
    (["parse", "--spider=first", "--depth=2", "{}/"], "'path': '/1'", ["/", "/1"]),
    (["check", "first"], "", ["/"]),
    (["list"], "first\nsecond\n", []),
    (["settings", "--get", "APIFY_RQ_NAME"], f"{NAME}\n", []),
    (["version", "--verbose"], "Scrapy", []),
]


# What differs between them: a shell and spiders that crawl.
FEW = [COMMANDS[number] for number in (2, 4, 6, 7)]


@pytest.mark.parametrize(
    ("settings", "backend", "is_there", "commands"),
    [
        (BY_HAND, "queue", False, FEW),
        (PURGE, "queue", True, COMMANDS),
        (PURGE, "served", True, FEW),
    ],
    ids=["by hand, no queue", "add-on, queue to be emptied", "add-on, the same over the API"],
)
async def test_commands(
    site: Site,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    settings: dict[str, Any],
    backend: str,
    is_there: bool,
    commands: list[tuple[list[str], str, list[str]]],
) -> None:
    site.serve({"/": links("/1"), "/1": "<html><body>the page</body></html>"})
    queue: Queue = request.getfixturevalue(backend)
    if is_there:
        await queue.add(Entry(id=request_id("key"), unique_key="key", url=f"{site.url}/pending"))
    before = contents(queue.folder)
    project = Project(tmp_path / "project", queue, First, settings)
    env = {"BROWSER": "echo %s", "SITE": site.url}
    for name, expected, _ in commands:
        done = await project.run(*(word.replace("{}", site.url) for word in name), env=env)
        assert expected.replace("{}", site.url) in done.output, (name, done.log)
        assert "Traceback" not in done.log
        assert "Request queue " not in done.log
        assert done.status == 0, name
    assert site.paths == [path for _, _, paths in commands for path in paths]
    assert contents(queue.folder) == before
    assert queue.folder.exists() == is_there
    assert not (project.folder / "storage").exists()
    if isinstance(queue, ServedQueue):
        assert queue.api.calls == []


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.glob("*")}


def test_imports_where_the_queue_is_not_used(tmp_path: Path) -> None:
    """Scrapy imports the module of ``scrapy rq`` for each of its commands, wherever it is run."""
    words = [sys.executable, "-X", "importtime", "-m", "scrapy", "version"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    ours = {name for name in loaded if name.startswith("scrapy_apify_rq.")}
    assert "scrapy_apify_rq.errors" in ours
    assert ours <= {f"scrapy_apify_rq.{name}" for name in ("commands", "commands.rq", "errors")}


def test_imports_of_an_embedded_crawl(tmp_path: Path) -> None:
    """Without the project of these tests, which imports more."""
    (tmp_path / "one.py").write_text(
        "import scrapy, sys\n\n\n"
        "class One(scrapy.Spider):\n"
        '    name, start_urls = "one", ["data:,"]\n'
        '    custom_settings = {"ADDONS": {"scrapy_apify_rq.Addon": 500}}\n\n'
        "    def parse(self, response):\n"
        "        yield {}\n\n"
        "    def closed(self, reason):\n"
        "        print(reason, *sys.modules)\n"
    )
    words = [sys.executable, "-m", "scrapy", "runspider", "one.py", "-o", "items.jl", "--nolog"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    reason, *loaded = done.stdout.split()
    assert reason == "finished"
    assert "scrapy_apify_rq.backends.sqlite.queue" in loaded
    unneeded = ("scrapy_apify_rq.server", "scrapy_apify_rq.backends.apify", "httpx2", "rich")
    assert not [name for name in loaded if name.startswith(unneeded)]
