"""What a crawl tells of its progress: lines in the log, and a bar on a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.project import SPIDER, Crawl, Project
from tests.servers import TOKEN
from tests.support.api_calls import Call, error, serving_in_thread
from tests.support.readme import commands
from tests.support.website import Page, Site, links

INTERVAL = 0.3
PATHS = [f"/{n}" for n in range(20)]
LINE = re.compile(
    r"INFO: Request queue: (\d+) handled, (\d+) pending; this run: (\d+) failed,"
    r" (\d+) pages/min; (?:about (\d+):(\d\d):(\d\d) left at this pace|none left|time left unknown)"
)


def slow_site() -> Site:
    """Twenty pages of a tenth of a second, two of which fail."""
    pages = dict.fromkeys(PATHS, Page(delay=0.1))
    gone = dict.fromkeys(["/0", "/1"], Page(status=404, delay=0.1))
    return Site({"/": links(*PATHS), **pages, **gone})


# Lines


@pytest.fixture(scope="module")
def lines(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    settings = {
        "CONCURRENT_REQUESTS": 1,
        "LOGSTATS_INTERVAL": INTERVAL,
        "APIFY_RQ_PROGRESS": True,
    }
    with slow_site() as site:
        folder = tmp_path_factory.mktemp("lines")
        return Project(folder / "project", SPIDER, site=site.url, settings=settings).crawl()


def test_a_line_tells_the_counts_the_rate_and_the_time_left(lines: Crawl) -> None:
    found = list(LINE.finditer(lines.log))
    assert len(found) >= 3
    handled, pending, failed, rates = zip(
        *(map(int, line.groups()[:4]) for line in found), strict=True
    )
    assert sorted(handled) == list(handled)
    assert {one + other for one, other in zip(handled, pending, strict=True)} == {21}
    assert failed[-1] == 2
    # A tenth of a second for each page, or more; but acks may come in bursts.
    assert 0 < max(rates) <= 2000
    for line, left, rate in zip(found, pending, rates, strict=True):
        if line[7] and rate:
            assert abs(int(line[6]) * 60 + int(line[7]) - 60 * left / rate) <= 1


def test_scrapy_tells_its_own_counts_as_ever(lines: Crawl) -> None:
    assert "Crawled 0 pages (at 0 pages/min)" in lines.log


def test_the_queue_is_asked_once_for_each_line(lines: Crawl) -> None:
    calls = lines.stats.get("apify_rq/api/calls/queue_get", 0)
    # And at the start and the end.
    assert calls <= len(LINE.findall(lines.log)) + 3


def test_there_is_no_bar_where_there_is_no_terminal(lines: Crawl) -> None:
    assert "\x1b" not in lines.log
    assert "━" not in lines.log


def test_a_queue_that_does_not_answer_costs_the_line_and_no_more(tmp_path: Path) -> None:
    def refuse(call: Call) -> Any:
        return error(500) if call.is_("GET", "") else None

    with serving_in_thread(tmp_path / "server", TOKEN) as api, slow_site() as site:
        settings = {
            "APIFY_TOKEN": TOKEN,
            "APIFY_API_BASE_URL": api.url,
            "APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5,
            "LOGSTATS_INTERVAL": 0.1,
            "CONCURRENT_REQUESTS": 4,
        }
        api.before = refuse
        crawl = Project(tmp_path / "project", SPIDER, site=site.url, settings=settings).crawl()
        assert sorted(site.paths) == sorted(["/", *PATHS])
    assert crawl.stats["finish_reason"] == "finished"
    assert crawl.stats["apify_rq/handled"] == 21
    assert not LINE.search(crawl.log)


# The bar


class Screen(NamedTuple):
    text: str
    """All that was written to the terminal."""
    output: str
    returncode: int

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", self.text).replace("\r", "\n")


def on_terminal(project: Project, *interrupt_at: str) -> Screen:
    """Crawl at a terminal; press Ctrl-C as soon as it shows the first text, then the next, ..."""
    ours, theirs = pty.openpty()
    text = bytearray()
    more = threading.Event()

    def read() -> None:
        # Linux raises an error when the other side is closed.
        with suppress(OSError):
            while data := os.read(ours, 65536):
                text.extend(data)
                more.set()

    reader = threading.Thread(target=read)
    env = {"TERM": "xterm-256color", "COLUMNS": "80"}
    ((_, *words),) = commands("While it runs")
    with project.start(*words, env=env, terminal=theirs) as process:
        os.close(theirs)
        reader.start()
        for shown in interrupt_at:
            while shown.encode() not in text:
                assert more.wait(30), text.decode()
                more.clear()
            process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    reader.join()
    os.close(ours)
    return Screen(text.decode(), output, process.returncode)


SHY = {"LOGSTATS_INTERVAL": 0, "CONCURRENT_REQUESTS": 4}


@pytest.fixture(scope="module")
def bar(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Screen:
    with slow_site() as site:
        folder = tmp_path_factory.mktemp("bar")
        project = Project(folder / "project", SPIDER, site=site.url, settings=SHY)
        return on_terminal(project)


def test_the_bar_goes_from_what_is_known_to_its_end(bar: Screen) -> None:
    assert bar.returncode == 0
    shown = [tuple(map(int, pair)) for pair in re.findall(r"(\d+)/(\d+) ", bar.plain)]
    assert shown == sorted(shown)
    assert len(set(shown)) >= 2
    assert shown[-1] == (21, 21)
    assert "100%" in bar.plain


def test_the_log_goes_on_above_the_bar_in_whole_lines(bar: Screen) -> None:
    crawled = re.findall(r"DEBUG: Crawled \(200\) <GET http://127.0.0.1:\d+/\d*>", bar.plain)
    assert len(crawled) == 19
    long = r"^[^\n]{20,}INFO: Request queue 'test-queue' in [^\n]+ 21 handled, 0 pending"
    assert re.search(long, bar.plain, re.MULTILINE)


def test_the_bar_leaves_the_terminal_as_it_was(bar: Screen) -> None:
    assert bar.text.rfind("\x1b[?25h") > bar.text.rfind("\x1b[?25l") >= 0  # the cursor
    assert bar.output == ""


def test_without_an_interval_there_is_no_line(bar: Screen) -> None:
    assert not LINE.search(bar.plain)
    assert "Crawled 0 pages" not in bar.plain


def test_a_second_ctrl_c_leaves_the_cursor_shown(tmp_path: Path) -> None:
    with Site({"/": links(*PATHS)}, default=Page(delay=3)) as site:
        project = Project(tmp_path, SPIDER, site=site.url, settings=SHY)
        screen = on_terminal(project, "\x1b[?25l", "Received SIGINT")
    assert "forcing unclean shutdown" in screen.plain
    assert screen.text.rfind("\x1b[?25h") > screen.text.rfind("\x1b[?25l")
