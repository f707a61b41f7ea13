"""What a person at a terminal sees. A process has a terminal of its own, and an exit status."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.support.documents import commands
from tests.support.process_spiders import Run
from tests.support.queues import Queue
from tests.support.scrapy_project import Project
from tests.support.waiting import wait_until
from tests.support.website import Page, Site, links

PATHS = [f"/{number}" for number in range(20)]
SETTINGS = {"LOGSTATS_INTERVAL": 0, "CONCURRENT_REQUESTS": 4}
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Screen(NamedTuple):
    text: str
    """All that was written to the terminal."""
    output: str
    status: int

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", self.text).replace("\r", "\n")


async def on_terminal(folder: Path, queue: Queue, site: Site, *interrupt_at: str) -> Screen:
    """Crawl at a terminal; press Ctrl-C as soon as it shows the first text, then the next, ..."""
    ours, theirs = pty.openpty()
    text = bytearray()

    def read() -> None:
        # Linux raises an error when the other side is closed.
        with suppress(OSError):
            while data := os.read(ours, 65536):
                text.extend(data)

    project = Project(folder, queue, Run, SETTINGS)
    env = {"TERM": "xterm-256color", "COLUMNS": "80"}
    ((_, crawl, _, *options),) = commands("docs/queue.md", "While it runs")
    words = (crawl, Run.name, *options, "-a", f"site={site.url}")
    async with project.start(*words, env=env, terminal=theirs) as process:
        os.close(theirs)
        reading = asyncio.create_task(asyncio.to_thread(read))
        for shown in interrupt_at:
            seen = partial(text.count, shown.encode())
            await wait_until(lambda seen=seen: seen() or process.has_ended, repr(shown))
            assert seen(), text.decode()
            process.send(signal.SIGINT)
        finished = await process.end()
    await reading
    os.close(ours)
    return Screen(text.decode(), finished.output, finished.status)


async def test_bar(tmp_path: Path, queue: Queue, site: Site) -> None:
    """Whichever backend it is; the lines of progress are tested with both."""
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, Page(delay=0.1))})
    site.serve(dict.fromkeys(PATHS[:2], Page(status=404, delay=0.1)))
    screen = await on_terminal(tmp_path / "project", queue, site)
    assert (screen.status, screen.output) == (0, "")
    counts = [tuple(map(int, pair)) for pair in re.findall(r"(\d+)/(\d+) ", screen.plain)]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 2
    assert counts[-1] == (21, 21)
    assert "100%" in screen.plain
    # The log goes on above it in whole lines.
    crawled = re.findall(r"DEBUG: Crawled \(200\) <GET http://127.0.0.1:\d+/\d*>", screen.plain)
    assert len(crawled) == 19
    long = r"^[^\n]{20,}INFO: Request queue 'test-queue' in [^\n]+ 21 handled, 0 pending"
    assert re.search(long, screen.plain, re.MULTILINE)
    # It leaves the terminal as it was.
    assert screen.text.rfind(SHOWN) > screen.text.rfind(HIDDEN) >= 0
    # Without an interval there are no lines of progress.
    assert not re.search(r"INFO: Request queue: \d+ handled|Crawled 0 pages", screen.plain)


async def test_second_ctrl_c_leaves_the_cursor_shown(
    tmp_path: Path, queue: Queue, site: Site
) -> None:
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, Page(delay=3))})
    screen = await on_terminal(tmp_path / "project", queue, site, HIDDEN, "Received SIGINT")
    assert "forcing unclean shutdown" in screen.plain
    assert screen.text.rfind(SHOWN) > screen.text.rfind(HIDDEN)


async def test_wrong_setting_is_the_last_line(tmp_path: Path, queue: Queue, site: Site) -> None:
    """The reactor's, which these tests have already chosen."""
    wrong = {"TWISTED_REACTOR": "twisted.internet.selectreactor.SelectReactor"}
    project = Project(tmp_path / "project", queue, Run, wrong)
    crawl = await project.run("crawl", Run.name, "-a", f"site={site.url}")
    *log, last = crawl.log.strip().splitlines()
    assert crawl.status == 1
    assert last.startswith("scrapy_apify_rq.errors.ConfigError: "), crawl.log
    for part in ("TWISTED_REACTOR", "asyncio", "Remove the setting", "AsyncioSelectorReactor"):
        assert part in last
    assert not re.search("slot not assigned|Spider opened", crawl.log)
    assert log.count("Traceback (most recent call last):") <= 2
    assert site.paths == []
