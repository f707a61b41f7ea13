"""Real crawls in real processes: a Scrapy project in a folder of its own, judged from outside."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from scrapy_apify_rq.backends.base import Info
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from tests.server import Server
from tests.servers import TOKEN, Servers
from tests.starter import Fork, starter
from tests.support import waiting

# Where it is set, new projects crawl over the API, see the fixture "backend".
servers: Servers | None = None

QUEUE = "test-queue"
# Follows the links of its first page.
SPIDER = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    def parse_page(self, response):
        yield {"url": response.url}
"""
_DEFAULTS = {
    "SPIDER_MODULES": ["project.spiders"],
    "ADDONS": {"scrapy_apify_rq.Addon": 500},
    "EXTENSIONS": {"project.stats.StatsFile": 0},
    "APIFY_RQ_NAME": QUEUE,
    "ROBOTSTXT_OBEY": False,
    "TELNETCONSOLE_ENABLED": False,
    "DOWNLOAD_DELAY": 0,
    "LOG_LEVEL": "DEBUG",
}
_STATS_FILE = '''
import json
import os
from pathlib import Path
from scrapy import signals

class StatsFile:
    """Writes the stats where the test can read them, when all is over."""

    @classmethod
    def from_crawler(cls, crawler):
        self = cls()
        self.crawler = crawler
        crawler.signals.connect(self.write, signals.engine_stopped)
        return self

    def write(self):
        stats = self.crawler.stats.get_stats()
        name = f"stats-{self.crawler.spidercls.name}-{os.getpid()}.json"
        Path(name).write_text(json.dumps(stats, default=str))
'''
# Our server's answers lag only when told to; the real delay would cost each crawl three seconds.
_SHORT_DELAY = """
from scrapy_apify_rq.backends.apify.queue import ApifyBackend

ApifyBackend.consistency_delay = 0.2
"""


@dataclass
class Crawl:
    """What one run of Scrapy left behind. ``log`` is its standard error."""

    returncode: int
    log: str
    output: str
    stats: dict[str, Any]


class Project:
    """A Scrapy project with the given spiders. Settings are Python values or texts of code.

    ``spiders`` is the source of its one spider module; it starts with ``import scrapy`` and the
    site's address as ``SITE``.
    """

    def __init__(
        self,
        folder: Path,
        spiders: str,
        *,
        site: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        package = folder / "project"
        package.mkdir(parents=True)
        self._choose_backend(package)
        (package / "stats.py").write_text(_STATS_FILE)
        header = f"import scrapy\nSITE = {site!r}\n"
        (package / "spiders.py").write_text(header + dedent(spiders))
        values = {**_DEFAULTS, **(settings or {})}
        lines = [f"{name} = {value!r}\n" for name, value in values.items()]
        (package / "settings.py").write_text("".join(lines))
        (folder / "scrapy.cfg").write_text("[settings]\ndefault = project.settings\n")

    def _choose_backend(self, package: Path) -> None:
        """``package`` is imported by all that reads the project's settings."""
        self.server: Server | None = None
        self._queues = self.folder / "storage"
        self._environ: dict[str, str] = {}
        if servers is not None:
            # Not the folder that the embedded queue would take: nothing may be written there.
            self._queues = self.folder / "server"
            self.server = servers.serve(self._queues)
            self._environ = {"APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": self.server.url}
        with (package / "__init__.py").open("a") as file:
            file.write(_SHORT_DELAY if self.server else "")

    def start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        script: str | None = None,
        terminal: int | None = None,
    ) -> subprocess.Popen[str]:
        """Run ``scrapy`` with these words; the caller waits for it or kills it.

        ``script`` is the source of a Python program to run in its place. ``terminal`` is a file
        descriptor to use for the standard input and error.
        """
        program = ["-m", "scrapy"]
        if script is not None:
            (self.folder / "script.py").write_text(dedent(script))
            program = ["script.py"]
        return subprocess.Popen(
            [sys.executable, "-W", "error", *program, *command],
            cwd=self.folder,
            env=self._env(env),
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if terminal is None else terminal,
            text=True,
        )

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        script: str | None = None,
        timeout: float = 60,
    ) -> Crawl:
        """Run ``scrapy`` with these words to its end, warnings being errors.

        Without a script, it is a fork.
        """
        if script is None:
            with self.fork(*command, env=env) as fork:
                status, output, log = fork.wait(timeout)
        else:
            with self.start(*command, env=env, script=script) as process:
                try:
                    output, log = process.communicate(timeout=timeout)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise AssertionError(
                        f"no end after {timeout} s:\n{process.communicate()[1]}"
                    ) from None
            status = process.returncode
        assert TOKEN not in output + log
        assert self.server is None or not (self.folder / "storage").exists()
        return Crawl(status, log, output, self._stats())

    def fork(self, *command: str, env: Mapping[str, str] | None = None) -> Fork:
        """Run ``scrapy`` with these words, as a fork of a process that has imported it."""
        return starter().start(command, self.folder, self._env(env))

    def _env(self, more: Mapping[str, str] | None) -> dict[str, str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("APIFY_", "ACTOR_", "CRAWLEE_"))
        }
        return {**clean, **self._environ, **(more or {})}

    def crawl(self, *options: str, spider: str = "spider", timeout: float = 60) -> Crawl:
        """Crawl with success: exit status 0, no bug of ours, no warning."""
        crawl = self.run("crawl", spider, *options, timeout=timeout)
        assert crawl.returncode == 0, crawl.log
        assert "Bug in scrapy-apify-rq" not in crawl.log, crawl.log
        assert "Warning: " not in crawl.log, crawl.log
        return crawl

    def _stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = {}
        for file in self.folder.glob("stats-*.json"):
            stats |= json.loads(file.read_text())
            file.unlink()
        return stats

    def stats(self, pid: int) -> dict[str, Any]:
        """Of one crawl among several that run at the same time."""
        (file,) = self.folder.glob(f"stats-*-{pid}.json")
        stats: dict[str, Any] = json.loads(file.read_text())
        return stats

    # The queue, as it is stored, here or at the server.

    def backend(self, name: str = QUEUE) -> SqliteBackend:
        return SqliteBackend(self._queues, name=name)

    def entries(self, name: str = QUEUE) -> list[Entry]:
        async def read() -> list[Entry]:
            backend = self.backend(name)
            await backend.open()
            entries = [entry async for entry in backend.list()]
            await backend.close()
            return entries

        return waiting.run_async(read())

    def entry(self, path: str, name: str = QUEUE) -> Entry:
        """The one entry whose URL ends with ``path``."""
        found = [entry for entry in self.entries(name) if entry.url.endswith(path)]
        assert len(found) == 1, [(entry.url, entry.unique_key) for entry in found]
        return found[0]

    def info(self, name: str = QUEUE) -> Info:
        async def read() -> Info:
            backend = self.backend(name)
            await backend.open()
            info = await backend.info()
            await backend.close()
            return info

        return waiting.run_async(read())

    def locked(self, name: str = QUEUE) -> list[Entry]:
        """The entries that some worker holds."""

        async def read() -> list[Entry]:
            backend = self.backend(name)
            await backend.open()
            entries = [entry async for entry in backend.list("locked")]
            await backend.close()
            return entries

        return waiting.run_async(read())

    def writes(self, name: str = QUEUE) -> int:
        """As the platform counts and bills them."""
        with closing(sqlite3.connect(self._queues / FILE_NAME)) as db:
            ((count,),) = db.execute("SELECT writes FROM queues WHERE name = ?", (name,))
        return int(count)

    def pending(self, name: str = QUEUE, folder: Path | None = None) -> list[Entry]:
        """The entries still to be crawled, in the queue's order."""

        async def read() -> list[Entry]:
            backend = SqliteBackend(folder or self._queues, name=name)
            await backend.open()
            claim = await backend.claim(1000, (), 2**24)
            await backend.close()
            return [claimed.entry for claimed in claim.entries]

        return waiting.run_async(read())

    def add(self, *entries: Entry, name: str = QUEUE) -> None:
        """Put entries into the queue, as another program would."""

        async def write() -> None:
            backend = self.backend(name)
            await backend.open()
            await backend.add(entries, forefront=False)
            await backend.close()

        waiting.run_async(write())
