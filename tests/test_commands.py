"""``scrapy rq`` on both backends: inspect a queue, repair it, move it.

All tests read the queue of one crawl. Tests that change something change a copy of it. Subcommands
run in this process, through Scrapy's command line, unless a test needs a separate process.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import scrapy
from scrapy.cmdline import execute
from scrapy.settings import Settings
from scrapy.spiderloader import SpiderLoader

from scrapy_apify_rq.backends.base import Info
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.commands.rq import subcommands
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.project import QUEUE, Crawl, Project
from tests.servers import TOKEN
from tests.support.api_calls import Call, error, serving_in_thread
from tests.support.waiting import run_async
from tests.support.website import Hit, Page, Site, links

Folders = pytest.TempPathFactory
SPIDER = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page, cb_kwargs={"rank": (1, 2)})

    def parse_page(self, response, rank):
        if "boom" in response.url:
            raise ValueError("no price")
"""
# Tested in test_server.py and test_jobdir.py.
TESTED_ELSEWHERE = ("serve", "import-jobdir")
COMMANDS = [one for one in subcommands() if one.NAME not in TESTED_ELSEWHERE]
SETTINGS: dict[str, Any] = {"RETRY_TIMES": 1, "LOG_LEVEL": "INFO"}


class Spider(scrapy.Spider):
    """Stands for the project's spider in commands that run in this process."""

    name = "spider"

    def parse_page(self, response: Any, rank: Any) -> None: ...


@dataclass
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The output, parsed as JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> dict[str, Any]:
        (only,) = self.lines
        return only


@dataclass
class Queue:
    """The queue of a crawl of the local site."""

    project: Project
    site: Site

    def rq(self, *words: str, stdin: bytes = b"", **settings: Any) -> Done:
        """Run ``scrapy rq`` with these arguments, in this process and outside any project."""
        values = {"SPIDER_MODULES": [__name__], **self.settings, **settings}
        out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
        given = io.TextIOWrapper(io.BytesIO(stdin))
        with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", given):
            try:
                execute(["scrapy", "rq", *words], Settings(values))
            except SystemExit as end:
                code = end.code or 0
        texts = []
        for stream in (out, err):
            stream.flush()
            stream.seek(0)
            texts.append(stream.read())
        assert TOKEN not in "".join(texts)
        assert isinstance(code, int)
        return Done(code, *texts)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that select the crawl's queue."""
        if self.project.server is None:
            where = {"APIFY_RQ_BACKEND": "sqlite", "APIFY_RQ_STORAGE_DIR": self.project._queues}
        else:
            where = {"APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": self.project.server.url}
        return {"APIFY_RQ_NAME": QUEUE, **where, **SETTINGS}

    def ok(self, *words: str, stdin: bytes = b"", **settings: Any) -> Done:
        done = self.rq(*words, stdin=stdin, **settings)
        assert done.code == 0, done.err
        return done

    def copy(self, name: str) -> str:
        """Copy all entries into a new queue, and return its name."""
        done = self.ok("import", "-", "-q", name, stdin=self.ok("export", "-").out.encode())
        assert done.out == "8 added, 0 already in the queue\n"
        return name

    def entry(self, path: str, name: str = QUEUE) -> Entry:
        return self.project.entry(f"{self.site.url}{path}", name)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start ``scrapy rq`` as a separate process in the project."""
        others = ("APIFY_", "ACTOR_", "CRAWLEE_", "COLUMNS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "scrapy", "rq", *words],
            env={**clean, **self.project._environ, "TERM": "xterm"},
            **{"cwd": self.project.folder, **options},
        )


def make(folder: Path, site: Site, **settings: Any) -> Queue:
    return Queue(Project(folder, SPIDER, site=site.url, settings={**SETTINGS, **settings}), site)


@pytest.fixture(scope="module")
def queue(tmp_path_factory: Folders, backend: str) -> Iterator[Queue]:
    """Eight entries: five handled, three of which failed, two pending and one locked."""
    pages: dict[str, Any] = {
        "/": links("/a", "/b", "/boom", "/gone"),
        "/a": "a",
        "/b": [500, 500, 500, "better now"],  # with RETRY_TIMES = 1 it fails at the second error
        "/boom": "boom",
        "/late": "late",
        "/later": "later",
        "/locked": "locked",
    }
    with Site(pages) as site:
        queue = make(tmp_path_factory.mktemp("queue"), site)
        queue.project.crawl()
        paths = ("/locked", "/late", "/later")
        queue.project.add(
            *(Entry(id=request_id(p), unique_key=p, url=f"{site.url}{p}") for p in paths)
        )
        lock(queue.project)
        yield queue


def lock(project: Project) -> None:
    """Lock the first pending entry, as another consumer would."""

    async def claim() -> None:
        options = {"lock_secs": 3600, "client_key": "somebody"}
        backend = SqliteBackend(project._queues, name=QUEUE, **options)  # type: ignore[arg-type]
        await backend.open()
        await backend.claim(1, (), 2**24)
        await backend.close()

    run_async(claim())


# Inspecting


def test_status_counts(queue: Queue) -> None:
    seen = queue.ok("status", "--json").json
    counts = {"total": 8, "handled": 5, "pending": 3, "failed": 3, "locked": 1}
    assert counts.items() <= seen.items()
    assert seen["name"] == QUEUE
    assert seen["progress"] == 0.625
    assert seen["modifiedAt"].startswith("20")
    if queue.project.server is None:
        assert "estimatedCostUsd" not in seen
    else:
        done = seen["operations"]
        # The crawl adds five entries, acks five and retries one. The fixture adds three and locks
        # one.
        assert done["writes"] == 5 + 5 + 1 + 3 + 1
        cost = (done["reads"] * 0.004 + done["writes"] * 0.02) / 1000
        assert seen["estimatedCostUsd"] == round(cost, 4)


def test_status_for_people(queue: Queue) -> None:
    lines = queue.ok("status", "--by", "host").out.splitlines()
    assert lines[0].startswith(f"Request queue {QUEUE} in ")
    assert lines[1].split() == ["TOTAL", "HANDLED", "PENDING", "FAILED", "LOCKED"]
    assert lines[2].split() == ["8", "5", "3", "3", "1"]
    assert lines[3].endswith(" 62.5% handled")
    assert re.fullmatch(r"last change \d+ (s|min) ago", lines[4])
    assert ("estimated cost $0.00" in lines[5]) == (queue.project.server is not None)
    assert lines[-2].split() == ["HOST", "TOTAL", "HANDLED", "PENDING", "FAILED"]
    assert lines[-1].split() == ["127.0.0.1", "8", "5", "3", "3"]


def test_status_by_label(queue: Queue) -> None:
    labels = queue.ok("status", "--by", "label", "--json").json["labels"]
    assert labels == {
        "": {"total": 4, "handled": 1, "pending": 3, "failed": 0},
        "parse_page": {"total": 4, "handled": 4, "pending": 0, "failed": 3},
    }


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ([], {"/", "/a", "/b", "/boom", "/gone", "/late", "/later", "/locked"}),
        (["--state", "pending"], {"/late", "/later", "/locked"}),
        (["--state", "handled"], {"/", "/a", "/b", "/boom", "/gone"}),
        (["--state", "failed"], {"/b", "/boom", "/gone"}),
        (["--state", "locked"], {"/locked"}),
        (["--state", "failed", "--match", "/b(oom)?$"], {"/b", "/boom"}),
        (["--match", "late"], {"/late", "/later"}),
    ],
)
def test_list(queue: Queue, options: list[str], paths: set[str]) -> None:
    for_programs = queue.ok("list", *options, "--json").lines
    assert {entry["url"].removeprefix(queue.site.url) for entry in for_programs} == paths
    head, *rows = queue.ok("list", *options).out.splitlines()
    assert head.split() == ["ID", "STATE", "RETRIES", "METHOD", "URL"]
    assert {row.split()[-1].removeprefix(queue.site.url) for row in rows} == paths
    assert {row.split()[0] for row in rows} == {entry["id"] for entry in for_programs}
    if options[:2] == ["--state", "failed"]:
        assert {row.split()[1] for row in rows} == {"failed"}


def test_list_stops_at_the_limit(queue: Queue) -> None:
    assert len(queue.ok("list", "--limit", "2", "--json").lines) == 2


def test_nothing_found_is_exit_status_1(queue: Queue) -> None:
    for words in (["list", "--match", "nowhere"], ["show", "nowhere"], ["show", "http://nowhere"]):
        done = queue.rq(*words)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"scrapy rq {words[0]}: ")


@pytest.mark.parametrize("by", ["id", "URL"])
def test_show(queue: Queue, by: str) -> None:
    entry = queue.entry("/b")
    shown = queue.ok("show", entry.id if by == "id" else entry.url, "--json").json
    assert shown["state"] == "failed"
    assert shown["entry"] == json.loads(entry.to_json())
    assert shown["entry"]["errorMessages"] == ["500 Internal Server Error"] * 2
    assert shown["request"]["callback"] == "parse_page"
    assert shown["request"]["cb_kwargs"] == {"rank": [1, 2]}
    text = queue.ok("show", entry.id).out
    assert "  state: failed\n" in text
    assert "  error 2: 500 Internal Server Error\n" in text
    assert "  callback: parse_page\n" in text


def test_show_reports_the_lock(queue: Queue) -> None:
    shown = queue.ok("show", f"{queue.site.url}/locked", "--json").json
    assert shown["state"] == "locked"
    assert shown["lock"]["clientKey"] == "somebody"
    assert "  state: locked by somebody until " in queue.ok("show", shown["entry"]["id"]).out


def test_show_without_the_spider_says_what_is_missing(queue: Queue) -> None:
    shown = queue.ok("show", queue.entry("/b").id, "--json", SPIDER_MODULES=[]).json
    assert shown["undecodable"] == "spider 'none' has no method 'parse_page'"


def test_errors(queue: Queue) -> None:
    groups = {group["message"]: group for group in queue.ok("errors", "--json").lines}
    assert {message: group["count"] for message, group in groups.items()} == {
        "500 Internal Server Error": 1,
        "404 Not Found": 1,
        "ValueError: no price": 1,
    }
    assert groups["404 Not Found"]["url"] == f"{queue.site.url}/gone"
    head, *rows = queue.ok("errors").out.splitlines()
    assert head.split("  ")[0] == "COUNT"
    assert sorted(row.split()[-1] for row in rows) == sorted(g["url"] for g in groups.values())


def test_errors_of_an_entry_without_a_message(queue: Queue) -> None:
    """By Apify's rule an entry also failed if a client wrote a negative ``retryCount``."""
    odd = Entry(id=request_id("odd"), unique_key="odd", url="http://odd/", retry_count=-1)
    odd.handled_at = datetime.now(UTC)
    odd.headers, odd.no_retry = {}, False
    queue.project.add(odd, name="odd")
    assert queue.ok("errors", "-q", "odd", "--json").json["message"] == "(no message)"


def test_control_characters_do_not_reach_the_terminal(queue: Queue) -> None:
    name = queue.copy("evil")
    evil = Entry(id=request_id("evil"), unique_key="evil", url="http://h/\x1b[2J", no_retry=False)
    evil.user_data["label"] = "\x1b[2J"
    queue.project.add(evil, name=name)
    for words in (["list"], ["show", evil.id], ["status", "--by", "label"]):
        done = queue.ok(*words, "-q", name)
        assert "\\x1b[2J" in done.out
        assert "\x1b" not in done.out


# Which queue


def test_commands_on_the_embedded_queue_do_not_import_aiohttp(queue: Queue) -> None:
    if queue.project.server is not None:
        pytest.skip("the API is HTTP")
    words = [sys.executable, "-X", "importtime", "-m", "scrapy", "rq", "status"]
    done = subprocess.run(words, cwd=queue.project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "scrapy_apify_rq.commands.queues" in loaded
    assert "aiohttp" not in loaded


def test_a_missing_queue_is_not_created(queue: Queue) -> None:
    words = ["list", "show x", "status", "errors", "retry --failed", "export -", "purge --yes"]
    for command in words:
        for name in ("nowhere", "A1B2C3D4E5F6G7H8I", "~nowhere"):
            done = queue.rq(*command.split(), "-q", name)
            assert done.code == 1
            assert f"there is no request queue '{name}' in " in done.err
            assert QUEUE in done.err.partition("These exist: ")[2]
    assert "nowhere" not in queue.rq("status", "-q", "x").err.partition("These exist: ")[2]


def test_a_missing_file_is_not_created(tmp_path: Path, queue: Queue) -> None:
    folder = tmp_path / "storage"
    done = queue.rq("status", APIFY_RQ_BACKEND="sqlite", APIFY_RQ_STORAGE_DIR=folder)
    assert done.code == 1
    assert "No named queue exists there" in done.err
    assert not folder.exists()


def test_a_queue_is_found_by_its_id(queue: Queue) -> None:
    id = queue.project.info().id
    for wanted in (id, QUEUE, f"~{QUEUE}"):
        assert queue.ok("status", "-q", wanted, "--json").json["id"] == id


def test_a_name_that_looks_like_an_id_is_found(queue: Queue) -> None:
    name = "seventeenLetters1"
    assert len(name) == 17
    queue.ok("add", "http://a/", "-q", name)
    assert queue.ok("status", "-q", name, "--json").json["name"] == name
    assert queue.ok("add", "http://a/", "-q", name, "--json").json["alreadyPresent"] == 1


def test_outside_a_project_the_name_of_the_queue_is_enough(tmp_path: Path, queue: Queue) -> None:
    where = f"APIFY_RQ_STORAGE_DIR={queue.project._queues}"
    done = queue.start(
        *("status", "-q", QUEUE, "--json", "-s", where), cwd=tmp_path, stdout=subprocess.PIPE
    )
    seen = json.loads(done.communicate(timeout=30)[0])
    assert (seen["name"], seen["total"]) == (QUEUE, 8)
    assert list(tmp_path.iterdir()) == []


def test_without_a_spider_or_a_queue_it_asks_which(queue: Queue) -> None:
    done = queue.rq("status", SPIDER_MODULES=[], APIFY_RQ_NAME=None)
    assert done.code == 2
    assert "which queue? Add -q with the id or name of a queue" in done.err
    done = queue.rq("status", "--spider", "other")
    assert done.code == 2
    assert "there is no spider 'other' here. Spiders: spider" in done.err


def test_the_option_spider_selects_a_spider(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    spider = "class {0}(scrapy.Spider):\n    name = '{0}'\n"
    texts = ("import scrapy\n", *map(spider.format, ("one", "two")))
    (tmp_path / "two_spiders.py").write_text("".join(texts))
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"SPIDER_MODULES": ["two_spiders"], "APIFY_RQ_NAME": None}
    done = queue.rq("status", **settings)
    assert done.code == 2
    assert "which queue? Add --spider with one of one, two, or -q with" in done.err
    queue.ok("add", "http://a/", "--spider", "two", **settings)
    assert queue.ok("status", "--spider", "two", "--json", **settings).json["total"] == 1
    assert queue.rq("status", "--spider", "one", **settings).code == 1
    assert queue.ok("status", "-q", QUEUE, "--json", **settings).json["total"] == 8


class Loader(SpiderLoader):
    """Knows a spider whose class has no name."""

    class Nameless(scrapy.Spider):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__("named-later", **kwargs)

    def list(self) -> list[str]:
        return ["named-later"]

    def load(self, name: str) -> type[scrapy.Spider]:
        return self.Nameless


def test_a_spider_may_get_its_name_in_its_constructor(queue: Queue) -> None:
    shown = queue.ok("show", queue.entry("/b").id, "--json", SPIDER_LOADER_CLASS=Loader).json
    assert shown["undecodable"] == "spider 'named-later' has no method 'parse_page'"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "nothing",
        "list --state open",
        "list --match (",
        "list --limit 0",
        "show",
        "retry",
        "retry --failed someId",
        "add",
        "add http://a/ --file -",
        "status --watch 0",
        "purge",
    ],
)
def test_wrong_usage_is_exit_status_2(queue: Queue, words: str) -> None:
    done = queue.rq(*words.split())
    assert (done.code, done.out) == (2, "")
    assert "scrapy rq" in done.err


def test_a_wrong_token_is_not_shown(queue: Queue) -> None:
    if queue.project.server is None:
        pytest.skip("only the API has a token")
    done = queue.rq("status", APIFY_TOKEN="apify_api_wrong")
    assert done.code == 1
    assert "APIFY_TOKEN" in done.err
    assert "apify_api_wrong" not in done.err


# Retrying


def test_retry_puts_entries_back_as_if_never_tried(queue: Queue) -> None:
    name = queue.copy("retried")
    before = queue.entry("/b", name)
    dry = queue.ok("retry", "--failed", "--dry-run", "-q", name)
    assert dry.out == "3 entries would go back to the queue\n"
    assert f"{before.id}  {before.url}\n" in dry.err
    assert queue.entry("/b", name) == before
    assert queue.ok("retry", "--match", "/b$", "-q", name).out == "1 entry went back to the queue\n"
    entry = queue.entry("/b", name)
    assert (entry.handled_at, entry.retry_count, entry.error_messages) == (None, 0, [])
    assert queue.project.pending(name)[0].id == entry.id
    assert queue.ok("retry", "--failed", "-q", name, "--json").json == {"retried": 2}
    again = queue.rq("retry", "--failed", "-q", name)
    assert (again.code, again.out) == (1, "0 entries went back to the queue\n")


def test_retry_of_ids(queue: Queue) -> None:
    name = queue.copy("retried-ids")
    fine, pending = queue.entry("/a", name).id, queue.entry("/late", name).id
    done = queue.rq("retry", fine, pending, "nowhere", "-q", name)
    assert done.code == 1
    assert done.out == "1 entry went back to the queue\n"
    assert f"{pending}: still pending\nnowhere: there is no such entry\n" in done.err
    assert "2 could not be retried, see above" in done.err
    assert queue.entry("/a", name).handled_at is None


def test_a_retried_page_is_tried_the_full_number_of_times(queue: Queue) -> None:
    name = queue.copy("again")
    queue.site.hits.clear()
    queue.ok("retry", "--match", "/b$", "-q", name)
    crawl = queue.project.crawl("-s", f"APIFY_RQ_NAME={name}")
    assert queue.site.paths.count("/b") == 2  # one more error, and one more try
    entry = queue.entry("/b", name)
    assert not entry.failed
    assert entry.retry_count == 1
    assert crawl.stats["retry/count"] == 1


@pytest.mark.parametrize("access", ["single", "shared"])
def test_a_running_crawl_picks_up_retried_and_added_entries(
    tmp_path: Path, backend: str, access: str
) -> None:
    release = threading.Event()

    def slow(hit: Hit) -> Page:
        release.wait(60)
        return Page("slow")

    pages: dict[str, Any] = {
        "/": links("/gone", "/slow"),
        "/gone": [404, "here"],
        "/slow": slow,
        "/new": "new",
    }
    with Site(pages) as site:
        queue = make(tmp_path, site, APIFY_RQ_CLIENT_KEY="ours", APIFY_RQ_ACCESS=access)
        tool = {"APIFY_RQ_CLIENT_KEY": "ours", "APIFY_RQ_ACCESS": access}
        with (queue.project.folder / "project" / "__init__.py").open("a") as file:
            file.write("ApifyBackend.lag = 2\n" if queue.project.server else "")
        with queue.project.start("crawl", "spider") as crawl:
            wait_until(lambda: any(entry.failed for entry in failed(queue.project)))
            assert queue.ok("retry", "--failed", **tool).out == "1 entry went back to the queue\n"
            urls = (f"{site.url}/new", f"{site.url}/slow")
            assert queue.ok("add", *urls, **tool).out == "1 added, 1 already in the queue\n"
            release.set()
            _, log = crawl.communicate(timeout=60)
        assert crawl.returncode == 0, log
        assert "Another program uses" not in log  # both have the same client key
        assert sorted(site.paths) == ["/", "/gone", "/gone", "/new", "/slow"]
        seen = queue.ok("status", "--json").json
    assert (seen["handled"], seen["pending"], seen["failed"]) == (4, 0, 0)


def failed(project: Project) -> list[Entry]:
    return [entry for entry in project.entries() if entry.failed]


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


# Adding and moving


def test_add_takes_a_file_of_urls_and_objects(queue: Queue) -> None:
    site = queue.site.url
    lines = [
        f"{site}/a",  # the crawl has added it, under the same key
        "",
        f'{{"url": "{site}/post", "method": "POST", "payload": "x=1", "headers": {{"X-Y": "z"}},'
        ' "userData": {"label": "DETAIL"}}',
        f"{site}/post",
        f'{{"url": "{site}/post", "methud": "POST"}}',
        f'{{"url": "{site}/post", "method": "PURGE"}}',
        "no-url",
        "{broken",
    ]
    name = queue.copy("added")
    text = "\n".join(lines).encode()
    done = queue.rq("add", "--file", "-", "--forefront", "-q", name, stdin=text)
    assert done.code == 1
    assert done.out == "2 added, 1 already in the queue\n"
    assert [line.partition(":")[0] for line in done.err.splitlines()[:4]] == [
        f"line {number}" for number in (5, 6, 7, 8)
    ]
    assert "4 could not be added" in done.err
    first, second, *_ = queue.project.pending(name)
    assert {first.method, second.method} == {"GET", "POST"}
    (post,) = (entry for entry in (first, second) if entry.method == "POST")
    assert (post.payload, post.headers) == ("x=1", {"X-Y": "z"})
    assert post.user_data == {"label": "DETAIL"}
    again = queue.rq("add", "--file", "-", "-q", name, "--json", stdin=text)
    assert again.json == {"added": 0, "alreadyPresent": 3, "notAdded": 4}


def test_export_and_import_keep_everything(tmp_path: Path, queue: Queue) -> None:
    file = tmp_path / "queue.jsonl"
    assert queue.ok("export", str(file)).err == "8 exported\n"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    for added in (8, 0):
        done = queue.ok("import", str(file), "-q", "imported", "--json")
        assert done.json == {"added": added, "alreadyPresent": 8 - added, "notAdded": 0}
    one, other = queue.project.entries(), queue.project.entries("imported")
    assert {entry.id: entry for entry in one} == {entry.id: entry for entry in other}
    assert counts(queue.project.info()) == counts(queue.project.info("imported"))


def counts(info: Info) -> tuple[int, int, int]:
    return info.total, info.handled, info.pending


def test_import_names_the_invalid_lines(queue: Queue) -> None:
    good = {"uniqueKey": "k", "url": "http://a/"}
    lines = [good, {"url": "http://a/"}, [], {**good, "id": "wrong"}, {**good, "handledAt": "?"}]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode() + b"\xff\n"
    done = queue.rq("import", "-", "-q", "wrong", stdin=text)
    assert (done.code, done.out) == (1, "1 added, 0 already in the queue\n")
    wrong = [line.partition(":")[0] for line in done.err.splitlines()]
    assert wrong == [*(f"line {number}" for number in range(2, 7)), "scrapy rq import"]
    assert "uniqueKey: Field required" in done.err
    assert "'wrong' does not belong to this uniqueKey" in done.err


def test_errors_name_the_file_that_cannot_be_used(tmp_path: Path, queue: Queue) -> None:
    for words in (
        ["import", f"{tmp_path}/none", "-q", "x"],
        ["add", "--file", f"{tmp_path}/none", "-q", "x"],
        ["export", f"{tmp_path}/none/file"],
    ):
        done = queue.rq(*words)
        assert done.code == 1
        assert f"{tmp_path}/none" in done.err


def test_purge_empties_the_queue(queue: Queue) -> None:
    name = queue.copy("purged")
    assert queue.ok("purge", "--yes", "-q", name).err == "8 deleted\n"
    assert queue.ok("status", "-q", name, "--json").json["total"] == 0


def test_add_reports_what_the_api_refuses(queue: Queue) -> None:
    if queue.project.server is None:
        pytest.skip("the embedded queue refuses nothing")
    huge = json.dumps({"url": f"{queue.site.url}/huge", "payload": "x" * 9_500_000}).encode()
    done = queue.rq("add", "--file", "-", "-q", "huge", stdin=huge)
    assert (done.code, done.out) == (1, "0 added, 0 already in the queue\n")
    assert re.match(r"line 1: its [\d,]+ bytes are more than the API takes", done.err)


def test_import_and_add_keep_the_order_of_the_file(tmp_path: Path, queue: Queue) -> None:
    if queue.project.server is None:
        pytest.skip("the embedded queue takes one batch at a time")
    failures = [error(500)]
    with serving_in_thread(tmp_path, TOKEN) as api:
        api.before = lambda call: (
            failures and call.is_("POST", "/requests/batch") and failures.pop()
        )
        settings = {"APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": api.url}
        urls = [f"http://x/{number}" for number in range(60)]
        queue.ok("add", *urls, "-q", "added", **settings)
        exported = [json.dumps({"uniqueKey": url, "url": url}) for url in urls]
        failures.append(error(500))
        queue.ok("import", "-", "-q", "imported", stdin="\n".join(exported).encode(), **settings)
    assert not failures
    for name in ("added", "imported"):
        assert [entry.url for entry in queue.project.pending(name, tmp_path)] == urls


def test_retry_reports_updates_that_the_api_refuses(tmp_path: Path, queue: Queue) -> None:
    with serving_in_thread(tmp_path, TOKEN) as api:

        def refuse(call: Call) -> Any:
            return error(400) if call.is_("PUT", f"/requests/{refused}") else None

        settings = {"APIFY_RQ_BACKEND": "apify", "APIFY_TOKEN": TOKEN}
        settings |= {"APIFY_API_BASE_URL": api.url, "APIFY_RQ_NAME": "other"}
        exported = queue.ok("export", "-").out.encode()
        queue.ok("import", "-", stdin=exported, **settings)
        refused = queue.entry("/b").id
        api.before = refuse
        done = queue.rq("retry", "--failed", **settings)
        assert (done.code, done.out) == (1, "2 entries went back to the queue\n")
        assert "1 could not be retried, see above" in done.err
        assert [
            one["id"] for one in queue.ok("list", "--state", "failed", "--json", **settings).lines
        ] == [refused]


def test_an_unreachable_api_is_reported_soon(queue: Queue) -> None:
    settings = {"APIFY_RQ_BACKEND": "apify", "APIFY_TOKEN": TOKEN}
    settings |= {"APIFY_API_BASE_URL": "http://127.0.0.1:9", "APIFY_RQ_UNAVAILABLE_TIMEOUT": 1}
    done = queue.rq("status", **settings)
    assert done.code == 1
    assert "scrapy rq status: " in done.err
    assert "Traceback" not in done.err


# Terminals and Ctrl-C


@pytest.fixture
def interrupted(tmp_path: Path, queue: Queue) -> tuple[bytes, Crawl]:
    """Interrupt an import while it waits for more lines; return the lines it had read."""
    lines = b"".join(
        b'{"uniqueKey": "k%d", "url": "http://a/%d"}\n' % (number, number) for number in range(150)
    )
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = queue.start("import", str(fifo), "-q", "interrupted", **streams)
    with process, fifo.open("wb") as file:
        file.write(lines)
        file.flush()
        wait_until(lambda: queue.project.info("interrupted").total >= 100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    return lines, Crawl(process.returncode, err.decode(), out.decode(), {})


def test_an_interrupted_import_can_be_repeated(
    queue: Queue, interrupted: tuple[bytes, Crawl]
) -> None:
    lines, ended = interrupted
    assert ended.returncode == 130, ended.log
    assert ended.log == (
        "scrapy rq import: interrupted. What it did so far is kept; you can safely run it again\n"
    )
    queue.ok("import", "-", "-q", "interrupted", stdin=lines)
    assert queue.project.info("interrupted").total == 150


class Terminal:
    """A command that runs on a pseudo-terminal."""

    def __init__(self, queue: Queue, *words: str) -> None:
        self._master, slave = pty.openpty()
        self.process = queue.start(*words, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        give_up_at = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < give_up_at, self.seen
            if not select.select([self._master], [], [], 1)[0]:
                continue
            try:
                self.seen += os.read(self._master, 10_000).decode()
            except OSError:  # the program has ended
                raise AssertionError(self.seen) from None

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_watch_refreshes_until_ctrl_c(queue: Queue) -> None:
    name = queue.copy("watched")
    with closing(
        Terminal(queue, "status", "--watch", "0.2", "--by", "host", "-q", name)
    ) as terminal:
        terminal.wait_for("62.5% handled")
        queue.project.add(Entry(id=request_id("k"), unique_key="k", url="http://a/"), name=name)
        terminal.wait_for("55.6% handled")
        terminal.wait_for("0 pages/min")
        assert "127.0.0.1" in terminal.seen
        assert "counting" not in terminal.seen  # no second progress bar
        assert "\x1b[" in terminal.seen  # the display is redrawn in place
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.process.wait(30) == 0


def test_watch_prints_json_to_a_pipe(queue: Queue) -> None:
    words = ["status", "--watch", "0.1", "--json"]
    with queue.start(*words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert [look["handled"] for look in looks] == [5, 5, 5]
    assert [look["pagesPerMinute"] for look in looks] == [None, 0, 0]
    # Over the API, counting failed entries would read the whole queue each time.
    assert looks[0]["failed"] == (3 if queue.project.server is None else None)


def test_long_operations_show_progress_on_a_terminal(tmp_path: Path, queue: Queue) -> None:
    with closing(Terminal(queue, "export", f"{tmp_path}/file")) as terminal:
        terminal.wait_for("exporting")
        terminal.wait_for("8 exported")
        assert terminal.process.wait(30) == 0


def test_purge_asks_first(queue: Queue) -> None:
    name = queue.copy("asked")
    for answer, total in (("n", 8), ("y", 0)):
        with closing(Terminal(queue, "purge", "-q", name)) as terminal:
            terminal.wait_for("Delete all 8 entries, 3 of them pending, of request queue asked in ")
            terminal.wait_for("[y/N]")
            terminal.type(f"{answer}\n")
            terminal.wait_for("nothing was deleted" if total else "8 deleted")
            assert terminal.process.wait(30) == (1 if total else 0)
        assert queue.project.info(name).total == total


def test_a_closed_pipe_gives_no_traceback(queue: Queue) -> None:
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with queue.start("list", **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# Help


@pytest.mark.parametrize("subcommand", subcommands(), ids=lambda one: one.NAME)
def test_each_subcommand_explains_itself(subcommand: Any) -> None:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as end:
        execute(["scrapy", "rq", subcommand.NAME, "--help"], Settings())
    assert end.value.code == 0
    words = " ".join(out.getvalue().split())
    assert subcommand.HELP in words
    assert f"Example: {subcommand.EXAMPLE}" in words


def test_the_examples_of_the_help_and_the_readme_work(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "urls.txt").write_text("https://example.com/product/3\n")
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.split("\n## See it, repair it, move it\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    examples = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    assert {line.split()[2] for line in examples} == {one.NAME for one in COMMANDS}
    stored = [by_crawl(queue, number) for number in (1, 2)]
    for name in ("examples", "my-other-queue"):
        queue.ok("add", "http://a/", "-q", name)
    queue.project.add(*stored, name="examples")
    for example in dict.fromkeys([*examples, *(one.EXAMPLE for one in COMMANDS)]):
        words = shlex.split(example)
        assert words[:2] == ["scrapy", "rq"]
        if words[2] == "retry":  # other examples may have changed the entries
            queue.ok("purge", "--yes", "-q", "examples")
            queue.project.add(*stored, name="examples")
        queue.ok(*words[2:], APIFY_RQ_NAME="examples")


def by_crawl(queue: Queue, number: int) -> Entry:
    """An entry for a product page that failed, with the key that a crawl would give it."""
    name = f"product-{number}"
    queue.ok("add", f"https://example.com/product/{number}", "-q", name)
    (entry,) = queue.project.entries(name)
    entry.handled_at = datetime.now(UTC)
    entry.error_messages = ["500 Internal Server Error"]
    return entry
