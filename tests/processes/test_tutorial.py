"""The tutorial, step by step, as a reader would do it: processes, one of which is killed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.command_line import rq
from tests.support.documents import README, Block, blocks, section
from tests.support.queues import Queue
from tests.support.scrapy_project import ROOT, Finished, ForkedProcess, Process
from tests.support.waiting import wait_until
from tests.support.website import Answer, Held, Page, Site, begun, let_go

TUTORIAL = "docs/tutorial.md"
REAL_SITE = "https://quotes.toscrape.com"
AUTHORS = 20
HELD = [f"/author/{author}" for author in (8, 9, 10, 11)]
"""As many as are fetched at a time: the crawl stops here, until it is killed."""
# A new project fetches one page per second, and imports what no test needs.
FAST = """
from tests.support.project_settings import EXTENSIONS_BASE
DOWNLOAD_DELAY = 0
CONCURRENT_REQUESTS_PER_DOMAIN = 4
TELNETCONSOLE_ENABLED = False
"""


def quotes() -> dict[str, Answer]:
    """Ten pages of quotes, and one for each author."""
    pages: dict[str, Answer] = {}
    for number in range(1, 11):
        quotes = "".join(
            f'<div class="quote"><span class="text">{number}.{place}</span>'
            '<small class="author">x</small>'
            f'<a href="/author/{(2 * number + place) % AUTHORS}">x</a></div>'
            for place in range(10)
        )
        more = f'<li class="next"><a href="/page/{number + 1}/">x</a></li>' if number < 10 else ""
        pages["/" if number == 1 else f"/page/{number}/"] = quotes + more
    for author in range(AUTHORS):
        text = f'<h3 class="author-title">{author}</h3>'
        pages[f"/author/{author}"] = Page(text, delay=0.02)
    return pages


def shape(text: str) -> str:
    """A text without its numbers, ids, paths and the widths of its columns, and without the totals,
    which a run may not have saved when it was killed.
    """
    text = re.sub(r"; all \d+ runs .* before a kill\)", "", text)
    text = re.sub(r"\b[A-Za-z0-9]{15}\b", "ID", text)
    text = re.sub(r" in /\S+/storage/", " in STORAGE/", text)
    text = re.sub(r"http\S+", "URL", text)
    text = re.sub(r"[━╸╺]+", "BAR", text)
    return " ".join(re.sub(r"\d+([.:,]\d+)*", "N", text).split())


class Reader:
    """Does what the tutorial says. The first crawl is killed in the middle."""

    def __init__(self, folder: Path, site: Site) -> None:
        self._folder = folder
        self._site = site
        self._crawls = 0
        self._queue = Queue(folder / "storage")
        self._held = {path: Held(quotes()[path]) for path in HELD}  # type: ignore[arg-type]
        site.serve(self._held)
        self.output = ""
        """Of the last command of ``scrapy rq``."""
        self.log = ""
        """Of the last crawl."""

    async def take(self, block: Block) -> None:
        if block.language == "python":
            name = block.lines[0].removeprefix("# ")
            with (self._folder / name).open("a") as file:
                file.write(block.text.replace(REAL_SITE, self._site.url))
        elif block.language == "bash" and block.mark.startswith("run by"):
            for line in block.lines:
                await self._run(line.replace(REAL_SITE, self._site.url).split())
        elif block.mark == "the output":
            assert shape(block.text) == shape(self.output)
        elif block.mark == "the log":
            said = [shape(line.partition("] ")[2]) for line in self.log.splitlines()]
            assert [line for line in block.lines if shape(line) not in said] == []

    async def _run(self, words: list[str]) -> None:
        _, command, *rest = words
        if command == "rq":
            project = {"SPIDER_MODULES": ["quotes.spiders"], "BOT_NAME": "quotes"}
            project["APIFY_RQ_NAME"] = None  # type: ignore[assignment]
            done = await rq(self._queue, *rest, settings=project)
            assert done.code == 0, done.err
            self.output = done.out
        elif command == "crawl":
            self._crawls += 1
            finished = await self._process(words, is_killed=self._crawls == 1)
            self.log = finished.log
        else:
            await self._process(words)
            with (self._folder / "quotes" / "settings.py").open("a") as file:
                file.write(FAST)

    async def _process(self, words: list[str], *, is_killed: bool = False) -> Finished:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        started = (
            Process([sys.executable, "-m", *words], self._folder, environ)
            if is_killed
            else ForkedProcess(words[1:], self._folder, environ)
        )
        async with started as process:
            if is_killed:
                await begun(*self._held.values())
                unacked = {"/robots.txt", *HELD}
                await wait_until(
                    lambda: self._queue.handled == len(set(self._site.paths) - unacked), "all acks"
                )
                await process.kill()
                let_go(*self._held.values())
            finished = await process.end()
        assert is_killed or finished.status == 0, finished.log
        return finished


async def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    shown = blocks(TUTORIAL)
    with Site(quotes()) as site:
        reader = Reader(tmp_path, site)
        for block in shown:
            await reader.take(block)
        assert set(quotes()) <= set(site.paths)
    items = Counter(map(str, json.loads((tmp_path / "quotes.json").read_text())))
    assert len(items) == 100 + AUTHORS
    assert set(items.values()) == {1}
    assert "this run handled 1 (1 of them failed)" in reader.log


def test_the_readme_shows_the_same() -> None:
    """Its commands and outputs are some of the tutorial's."""
    told = {line for block in blocks(TUTORIAL) for line in block.lines}
    for block in blocks(README, "Run, kill, run again"):
        assert {line.partition("  #")[0] for line in block.lines} <= told
    assert TUTORIAL in section(README, "Run, kill, run again")
