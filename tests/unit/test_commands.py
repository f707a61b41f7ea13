"""``scrapy rq`` on both backends: inspect a queue, repair it, move it. No crawl."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.spiderloader import SpiderLoader

from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.commands import import_entries, output, queues
from scrapy_apify_rq.commands.rq import parser, subcommands
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.api_calls import error
from tests.support.command_line import Done, rq
from tests.support.documents import commands, snippet
from tests.support.queues import NAME, Queue, ServedQueue
from tests.support.waiting import run_async

SITE = "http://site"
HANDLED = {"handled_at": datetime(2026, 1, 1, tzinfo=UTC)}


class Pages(Spider):
    """The project's spider."""

    name = "spider"

    def parse_page(self, response: Any, rank: Any) -> None: ...


class Nameless(Spider):
    """Its constructor would give it a name."""


class Loader(SpiderLoader):
    """Knows that spider by two names."""

    def list(self) -> list[str]:
        return ["one", "two"]

    def load(self, name: str) -> type[Spider]:
        return Nameless


async def run(queue: Queue, line: str, stdin: bytes = b"", **settings: Any) -> Done:
    values = {"SPIDER_MODULES": [__name__], **settings}
    return await rq(queue, *shlex.split(line), stdin=stdin, settings=values)


async def ok(queue: Queue, line: str, stdin: bytes = b"", **settings: Any) -> Done:
    done = await run(queue, line, stdin, **settings)
    assert done.code == 0, done.err
    return done


async def claim(queue: Queue, limit: int, **options: Any) -> list[Entry]:
    """The first pending entries."""
    backend = SqliteBackend(queue.folder, name=NAME, **options)
    await backend.open()
    claimed = await backend.claim(limit, (), 2**24)
    await backend.close()
    return [one.entry for one in claimed.entries]


def plain(path: str, **fields: Any) -> Entry:
    return Entry(id=request_id(path), unique_key=path, url=f"{SITE}{path}", **fields)


def page(path: str, *errors: str, retries: int = 0) -> Entry:
    """An entry that the spider has handled."""
    spider = Pages()
    request = Request(f"{SITE}{path}", spider.parse_page, cb_kwargs={"rank": (1, 2)})
    fields = {"error_messages": list(errors), "retry_count": retries}
    return RequestConverter(spider).encode(request, path).model_copy(update={**HANDLED, **fields})


def fill(queue: Queue) -> Queue:
    """Eight entries: five handled, three of which failed, two pending and one locked."""
    twice = page("/b", "502 Bad Gateway", "500 Internal Server Error", retries=1)
    failed = [twice, page("/boom", "ValueError: no price"), page("/gone", "404 Not Found")]
    pending = [plain(path) for path in ("/locked", "/late", "/later")]
    run_async(queue.add(plain("/", **HANDLED), page("/a"), *failed, *pending))
    run_async(claim(queue, 1, lock_secs=3600, client_key="somebody"))
    return queue


@pytest.fixture
def filled(any_queue: Queue) -> Queue:
    return fill(any_queue)


@pytest.fixture
def embedded(queue: Queue) -> Queue:
    """The same, for what does not depend on where the queue is."""
    return fill(queue)


# Inspecting


async def test_status(filled: Queue) -> None:
    seen = (await ok(filled, "status --json --by label")).json
    counts = {"total": 8, "handled": 5, "pending": 3, "failed": 3, "locked": 1}
    assert {**counts, "name": NAME, "progress": 0.625}.items() <= seen.items()
    assert seen["modifiedAt"].startswith("20")
    assert seen["labels"] == {
        "": {"total": 4, "handled": 1, "pending": 3, "failed": 0},
        "parse_page": {"total": 4, "handled": 4, "pending": 0, "failed": 3},
    }
    assert ("estimatedCostUsd" in seen) == isinstance(filled, ServedQueue)
    if isinstance(filled, ServedQueue):
        reads, writes = seen["operations"]["reads"], seen["operations"]["writes"]
        assert writes == 8 + 1
        assert seen["estimatedCostUsd"] == round((reads * 0.004 + writes * 0.02) / 1000, 4)
    assert (await ok(filled, "status --json")).json.items() >= counts.items()


async def test_status_for_people(filled: Queue) -> None:
    lines = (await ok(filled, "status --by host")).out.splitlines()
    assert lines[0].startswith(f"Request queue {NAME} in ")
    assert lines[1].split() == ["TOTAL", "HANDLED", "PENDING", "FAILED", "LOCKED"]
    assert lines[2].split() == ["8", "5", "3", "3", "1"]
    assert lines[3].endswith(" 62.5% handled")
    assert re.fullmatch(r"last change \d+ (s|min) ago", lines[4])
    assert ("estimated cost $0.00" in lines[5]) == isinstance(filled, ServedQueue)
    assert lines[-2].split() == ["HOST", "TOTAL", "HANDLED", "PENDING", "FAILED"]
    assert lines[-1].split() == ["site", "8", "5", "3", "3"]


LISTS = {
    "": "/ /a /b /boom /gone /late /later /locked",
    "--state pending": "/late /later /locked",
    "--state handled": "/ /a /b /boom /gone",
    "--state failed": "/b /boom /gone",
    "--state locked": "/locked",
    "--state failed --match '/b(oom)?$'": "/b /boom",
    "--match late": "/late /later",
}


async def test_list(filled: Queue) -> None:
    found = {}
    for options in LISTS:
        entries = (await ok(filled, f"list {options} --json")).lines
        found[options] = " ".join(sorted(entry["url"].removeprefix(SITE) for entry in entries))
    assert found == LISTS
    head, *rows = (await ok(filled, "list --state failed --match b")).out.splitlines()
    assert head.split() == ["ID", "STATE", "RETRIES", "METHOD", "URL"]
    shown = {(id, state, url) for id, state, *_, url in map(str.split, rows)}
    failed = {path: f"{SITE}{path}" for path in ("/b", "/boom")}
    assert shown == {(request_id(path), "failed", url) for path, url in failed.items()}
    assert len((await ok(filled, "list --limit 2 --json")).lines) == 2


@pytest.mark.parametrize("by", ["id", "url"])
async def test_show(filled: Queue, by: str) -> None:
    entry = await filled.entry("/b")
    shown = (await ok(filled, f"show {getattr(entry, by)} --json")).json
    assert (shown["state"], shown["entry"]) == ("failed", json.loads(entry.to_json()))
    assert shown["entry"]["errorMessages"] == ["502 Bad Gateway", "500 Internal Server Error"]
    assert shown["request"]["callback"] == "parse_page"
    assert shown["request"]["cb_kwargs"] == {"rank": [1, 2]}
    text = (await ok(filled, f"show {entry.id}")).out
    assert text.count("parse_page") == text.count("method: ") == text.count(f"{SITE}/b") == 1
    for line in ("state: failed", "error 2: 500 Internal Server Error", "callback: parse_page"):
        assert f"  {line}\n" in text
    locked = (await ok(filled, f"show {SITE}/locked --json")).json
    assert (locked["state"], locked["lock"]["clientKey"]) == ("locked", "somebody")
    text = (await ok(filled, f"show {locked['entry']['id']}")).out
    assert "  state: locked by somebody until " in text


async def test_show_of_what_utf_8_cannot_hold(queue: Queue) -> None:
    request = Request(f"{SITE}/", headers={"X": b"\xff"}, meta={"n\ud800": "v\ud800"})
    entry = RequestConverter(Pages()).encode(request, "/")
    await queue.add(entry)
    shown = (await ok(queue, f"show {entry.id} --json")).json["request"]
    assert (shown["headers"], shown["meta"]) == ({"X": "\\xff"}, {"n\\ud800": "v\\ud800"})
    assert "ud800" in (await ok(queue, f"show {entry.id}")).out


async def test_show_without_the_callback(embedded: Queue) -> None:
    id = (await embedded.entry("/b")).id
    shown = await ok(embedded, f"show {id} --json", SPIDER_MODULES=[])
    assert shown.json["undecodable"].startswith("spider 'none' has no method 'parse_page'")
    shown = await ok(embedded, f"show {id} --json --spider two", SPIDER_LOADER_CLASS=Loader)
    assert shown.json["undecodable"].startswith("spider 'two' has no method 'parse_page'")


async def test_errors(filled: Queue) -> None:
    # By Apify's rule an entry also failed if a client wrote a negative retryCount.
    await filled.add(page("/odd", retries=-1))
    groups = (await ok(filled, "errors --json")).lines
    assert {group["message"]: (group["count"], group["url"]) for group in groups} == {
        "500 Internal Server Error": (1, f"{SITE}/b"),
        "404 Not Found": (1, f"{SITE}/gone"),
        "ValueError: no price": (1, f"{SITE}/boom"),
        "(no message)": (1, f"{SITE}/odd"),
    }
    head, *rows = (await ok(filled, "errors")).out.splitlines()
    assert head.split("  ")[0] == "COUNT"
    assert sorted(row.split()[-1] for row in rows) == sorted(group["url"] for group in groups)


async def test_errors_of_a_healthy_queue(queue: Queue) -> None:
    await queue.add(plain("/", **HANDLED))
    done = await ok(queue, "errors")
    assert (done.out, done.err) == ("", "no entry has failed\n")


async def test_what_failed_stands_out_on_a_terminal(
    embedded: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in ("status", "list"):
        assert "\x1b" not in (await ok(embedded, line)).out
        monkeypatch.setenv("FORCE_COLOR", "1")
        # If the standard error is a terminal, too, and has a bar, the results stay where they were.
        red = [one for one in (await ok(embedded, line)).out.splitlines() if "\x1b[31m" in one]
        assert len(red) == {"status": 1, "list": 3}[line]
        monkeypatch.delenv("FORCE_COLOR")


async def test_queues(filled: Queue) -> None:
    assert (await run(filled, "queues --spider nobody")).code == 2
    await ok(filled, "add http://a/ -q other")
    shown = (await ok(filled, "queues --json")).lines
    counts = {one["name"]: (one["total"], one["pending"]) for one in shown}
    assert counts == {NAME: (8, 3), "other": (1, 1)}
    head, *rows = (await ok(filled, "queues", SPIDER_MODULES=[], APIFY_RQ_NAME=None)).out.split(
        "\n"
    )
    assert head.split() == ["NAME", "TOTAL", "PENDING", "ABOUT"]
    assert {row.split()[0] for row in rows if row} == {NAME, "other"}


async def test_no_queues(queue: Queue) -> None:
    done = await ok(queue, "queues")
    assert (done.out, done.err) == ("", f"there is no queue with a name in {queue.folder}\n")
    assert not queue.folder.exists()


async def test_hosts_have_ports(queue: Queue) -> None:
    urls = "http://a:81/x http://a:82/x http://u:p@A:82/y http://[::1]:83/"
    await ok(queue, f"add {urls}")
    hosts = (await ok(queue, "status --by host --json")).json["hosts"]
    assert {host: one["total"] for host, one in hosts.items()} == {
        "a:81": 1,
        "a:82": 2,
        "[::1]:83": 1,
    }


# Scrapy 2.16 leaves the file open.
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_log(embedded: Queue, tmp_path: Path) -> None:
    file = tmp_path / "log"
    await ok(embedded, f"status -L DEBUG --logfile {file}")
    assert "[scrapy.addons] INFO" in file.read_text()
    assert "[scrapy.addons] INFO" in (await ok(embedded, "status -L INFO")).err
    for options in ("-L LOUD", f"--logfile {tmp_path}"):
        assert (await run(embedded, f"status {options}")).code == 2


async def test_control_characters_do_not_reach_the_terminal(queue: Queue) -> None:
    evil = plain("/\x1b[2J\u202e", method="\x1b[2J", user_data={"label": "\x1b[2J"})
    await queue.add(evil)
    for line in ("list", f"show {evil.id}", "status --by label"):
        done = await ok(queue, line)
        assert "\\x1b[2J" in done.out
        assert not {"\x1b", "\u202e"} & set(done.out)


# What cannot be done


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("list --match nowhere", "no entry matches"),
        ("show nowhere", "there is no entry nowhere"),
        ("show http://nowhere", "there is no entry http://nowhere"),
        ("import none/x", "cannot read none/x: No such file or directory"),
        ("add --file none/x", "cannot read none/x: No such file or directory"),
        ("export none/x", "cannot write none/x: No such file or directory"),
        ("input-schema -o /dev/null/x/y", "cannot write /dev/null/x/y: Not a directory"),
        ("show http://n/\udcff", "there is no entry http://n/\\udcff"),
        ("show \udcff", "there is no entry \\udcff"),
        (
            "serve --storage-dir ~no-such-user-here",
            "--storage-dir = '~no-such-user-here': write the path of a folder, such as './storage'",
        ),
    ],
)
async def test_failure_is_exit_status_1(embedded: Queue, line: str, message: str) -> None:
    done = await run(embedded, line)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"scrapy rq {line.split()[0]}: {message}\n"


async def test_wrong_usage_is_exit_status_2(queue: Queue) -> None:
    await queue.add(plain("/"))
    wrong = ["", "nothing", "list --state open", "list --match (", "list --limit 0", "show"]
    wrong += ["retry", "retry --failed someId", "add", "add http://a/ --file -", "purge"]
    wrong += ["purge --yes -q ''", "serve --token ''", "serve --token-file ~no-such-user-here"]
    for line in (*wrong, "status --watch 0"):
        done = await run(queue, line)
        assert (done.code, done.out) == (2, ""), line
        assert "scrapy rq" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("list --limit x", "'x' is not a whole number of at least 1"),
        ("list --limit 0", "'0' is not a whole number of at least 1"),
        ("status --watch x", "'x' is not a number between 0.1 and 86400"),
        ("status --watch nan", "'nan' is not a number between 0.1 and 86400"),
        ("serve --port x", "'x' is not a number between 0 and 65535"),
        ("serve --port 65536", "'65536' is not a number between 0 and 65535"),
        ("retry --handled-before 7x", "'7x' is neither an age, as 30m, 12h, 7d or 2w, nor a date,"),
        (f"retry --handled-before {10**9}w", "is neither an age"),
        ("retry --handled-before 0001-01-01T00:00+01:00", "is neither an age"),
    ],
)
async def test_wrong_values_of_options(queue: Queue, line: str, message: str) -> None:
    done = await run(queue, line)
    assert done.code == 2
    assert message in done.err


async def test_missing_queue_is_not_created(filled: Queue) -> None:
    lines = ["list", "show x", "status", "errors", "retry --failed", "export -", "purge --yes"]
    names = ["nowhere", "A1B2C3D4E5F6G7H8I", "~nowhere"]
    for line, name in itertools.zip_longest(lines, names, fillvalue="nowhere"):
        done = await run(filled, f"{line} -q {name}")
        assert done.code == 1
        assert f"there is no request queue '{name}' in " in done.err
        assert f" These exist: {NAME}. " in done.err


async def test_missing_file_is_not_created(queue: Queue) -> None:
    done = await run(queue, "status")
    assert done.code == 1
    assert "No named queue exists there" in done.err
    assert not queue.folder.exists()


async def test_api_that_cannot_be_used(
    served: ServedQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = await run(served, "status", APIFY_TOKEN="apify_api_wrong")
    assert done.code == 1
    assert "APIFY_TOKEN" in done.err
    assert "apify_api_wrong" not in done.err
    # A crawl would wait for ten minutes.
    monkeypatch.setattr(queues, "_MAX_UNAVAILABLE_TIMEOUT", 0.5)
    begun = time.monotonic()
    done = await run(served, "status", APIFY_API_BASE_URL="http://127.0.0.1:9")
    assert time.monotonic() - begun < 10
    assert done.code == 1
    assert "scrapy rq status: The Apify API has failed for " in done.err
    assert "run the command again" in done.err
    for wrong in ("Traceback", "run the spider", "TIMEOUT is"):
        assert wrong not in done.err


# Which queue


async def test_id_and_name_of_a_queue(filled: Queue) -> None:
    id = (await filled.info()).id
    for wanted in (id, NAME, f"~{NAME}"):
        assert (await ok(filled, f"status --json -q {wanted}")).json["id"] == id
    like_an_id = "seventeenLetters1"
    assert len(like_an_id) == len(id)
    await ok(filled, f"add http://a/ -q {like_an_id}")
    assert (await ok(filled, f"status --json -q {like_an_id}")).json["name"] == like_an_id
    again = await ok(filled, f"add http://a/ --json -q {like_an_id}")
    assert again.json["alreadyPresent"] == 1


async def test_spider_selects_its_queue(embedded: Queue) -> None:
    two: dict[str, Any] = {"SPIDER_LOADER_CLASS": Loader, "APIFY_RQ_NAME": None}
    none = {"SPIDER_MODULES": [], "APIFY_RQ_NAME": None}
    for line, settings, message in (
        ("status", none, "which queue? Add -q with the id or name of a queue"),
        ("status", two, "which queue? Add --spider with one of one, two, or -q with"),
        ("status --spider other", {}, "there is no spider 'other' here. Spiders: spider"),
        ("input-schema", two, "which spider? Add --spider with its name. Spiders: one, two"),
        ("import-jobdir x --yes", two, "which spider? Add --spider with its name. Spiders: one,"),
        ("import-jobdir x --yes", none, "which spider? Add --spider with its name. Spiders: none;"),
    ):
        done = await run(embedded, line, **settings)
        assert done.code == 2
        assert message in done.err
    await ok(embedded, "add http://a/ --spider two", **two)
    assert (await ok(embedded, "status --spider two --json", **two)).json["total"] == 1
    assert (await run(embedded, "status --spider one", **two)).code == 1
    assert (await ok(embedded, f"status -q {NAME} --json", **two)).json["total"] == 8


# Retrying


async def test_retry_puts_entries_back_as_if_never_tried(filled: Queue) -> None:
    before = await filled.entry("/b")
    dry = await ok(filled, "retry --failed --dry-run")
    assert f"{before.id}  {before.url}\n" in dry.out
    assert (len(dry.out.splitlines()), dry.err) == (3, "3 entries would go back to the queue\n")
    dry = await ok(filled, "retry --failed --dry-run --json")
    assert (dry.json, dry.err) == ({"wouldRetry": 3}, "")
    assert await filled.entry("/b") == before
    assert (await ok(filled, "retry --match /b$")).out == "1 entry went back to the queue\n"
    entry = await filled.entry("/b")
    assert (entry.handled_at, entry.retry_count, entry.error_messages) == (None, 0, [])
    assert (await claim(filled, 1))[0].id == entry.id
    assert (await ok(filled, "retry --failed --json")).json == {"retried": 2}
    again = await run(filled, "retry --failed")
    assert (again.code, again.out) == (1, "0 entries went back to the queue\n")


OLD = "/ /a /b /boom /gone"  # handled on 2026-01-01
RETRIED = {
    "--handled-before 7d": OLD,
    "--handled-before 2026-01-01T00:00:01Z": OLD,
    "--handled-before 2026-01-01T00:00:00Z": "",
    "--handled-before 2025-12-30": "",
    "--handled-before 7d --failed": "/b /boom /gone",
    "--handled-before 7d --match '/$'": "/",
    "--handled-before 7d --label parse_page": "/a /b /boom /gone",
    "--label parse_page": "/b /boom /gone",
    "--label parse_page --match boom": "/boom",
    "--label nothing": "",
}


async def test_retry_selects_by_age_label_and_pattern(embedded: Queue) -> None:
    await embedded.add(plain("/new", handled_at=datetime.now(UTC)))
    found = {}
    for options in RETRIED:
        done = await run(embedded, f"retry {options} --dry-run")
        urls = [line.split()[1].removeprefix(SITE) for line in done.out.splitlines()]
        found[options] = " ".join(sorted(urls))
        assert done.code == (0 if urls else 1)
    assert found == RETRIED
    assert (await ok(embedded, "retry --handled-before 7d --json")).json == {"retried": 5}
    left = [entry.url for entry in await embedded.entries() if entry.is_handled]
    assert left == [f"{SITE}/new"]


async def test_retry_of_ids(filled: Queue) -> None:
    fine, pending = (await filled.entry("/a")).id, (await filled.entry("/late")).id
    done = await run(filled, f"retry {fine} {pending} nowhere")
    assert (done.code, done.out) == (1, "1 entry went back to the queue\n")
    assert f"{pending}: still pending\nnowhere: there is no such entry\n" in done.err
    assert "2 could not be retried, see above" in done.err
    assert (await filled.entry("/a")).handled_at is None


async def test_retry_reports_updates_that_the_api_refuses(served: ServedQueue) -> None:
    await served.add(*(page(path, "404 Not Found") for path in ("/1", "/2", "/3")))
    path = f"/requests/{request_id('/2')}"
    served.api.before = lambda call: error(400) if call.is_("PUT", path) else None
    done = await run(served, "retry --failed")
    assert (done.code, done.out) == (1, "2 entries went back to the queue\n")
    assert "1 could not be retried, see above" in done.err
    assert [entry.url for entry in await served.entries() if entry.failed] == [f"{SITE}/2"]


# Adding and moving


async def test_add_takes_a_file_of_urls_and_objects(filled: Queue) -> None:
    await ok(filled, f"add {SITE}/known")
    post = {"url": f"{SITE}/post", "method": "post"}
    more = {"payload": "x=1", "headers": {"X-Y": 5, "X-Z": None}, "userData": {"label": "DETAIL"}}
    wrong = [json.dumps({**post, "methud": 1}), json.dumps({**post, "method": "PURGE"})]
    lines = [
        f"\ufeff# {SITE}/",
        f"{SITE}/known",
        "",
        json.dumps({**post, **more}),
        f"{SITE}/post",
        *wrong,
    ]
    text = "\n".join([*lines, "no-url", "{broken"]).encode()
    done = await run(filled, "add --file - --forefront", text)
    assert (done.code, done.out) == (1, "2 added, 1 already in the queue\n")
    assert re.findall(r"^line \d", done.err, re.MULTILINE) == [f"line {n}" for n in (6, 7, 8, 9)]
    assert "4 could not be added" in done.err
    first = {entry.method: entry for entry in await claim(filled, 2)}
    assert set(first) == {"GET", "POST"}
    assert (first["POST"].payload, first["POST"].headers) == ("x=1", {"X-Y": "5"})
    assert first["POST"].user_data == {"label": "DETAIL"}
    again = await run(filled, "add --file - --json", text)
    assert again.json == {"added": 0, "alreadyPresent": 3, "notAdded": 4}


async def test_export_and_import_keep_everything(tmp_path: Path, filled: Queue) -> None:
    file = tmp_path / "queue.jsonl"
    wrong = ((target, "Is a directory\n") for target in (filled.folder, ".", "/"))
    for target, message in ((file, "8 exported\n"), *wrong):
        assert (await run(filled, f"export {target}")).err.endswith(message)
    assert list(filled.folder.parent.glob("*.part")) == []
    for added in (8, 0):
        done = await ok(filled, f"import {file} -q imported --json")
        assert done.json == {"added": added, "alreadyPresent": 8 - added, "notAdded": 0}
    stored = {entry.to_json() for entry in await filled.entries()}
    assert set((await ok(filled, "export - -q imported")).out.splitlines()) == stored
    seen = (await ok(filled, "status -q imported --json")).json
    assert (seen["total"], seen["handled"], seen["pending"]) == (8, 5, 3)


@pytest.mark.parametrize("command", ["add --file", "import"])
async def test_a_failure_leaves_no_empty_queue(filled: Queue, command: str) -> None:
    assert (await run(filled, f"{command} - -q other", b"{broken")).code == 1
    assert (await run(filled, "import-jobdir /none --yes -q other")).code == 1
    (known,) = (await ok(filled, "queues --json")).lines
    assert known["name"] == NAME
    await ok(filled, f"{command} - -q other")  # of an empty queue
    assert len((await ok(filled, "queues --json")).lines) == 2


@pytest.mark.parametrize("line", ["export -", "items", "list", "retry --failed --dry-run"])
async def test_bar_is_not_in_the_way_of_results(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    await queue.add(page("/a", "404 Not Found"))
    monkeypatch.setenv("FORCE_COLOR", "1")  # the standard error is a terminal
    for is_on_screen in (False, True):
        monkeypatch.setattr(output, "is_on_screen", lambda *_, shown=is_on_screen: shown)
        assert ("0/" in (await ok(queue, line)).err) is not is_on_screen


async def test_import_names_the_invalid_lines(queue: Queue) -> None:
    good = {"uniqueKey": "k\ud800", "url": "http://a/", "headers": {"n": 5}, "retryCount": "?"}
    lines = [good, {"url": "http://a/"}, [], {**good, "id": "wrong"}, {**good, "headers": 5}]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode() + b"\xff\n"
    done = await run(queue, "import -", text)
    assert (done.code, done.out) == (1, "1 added, 0 already in the queue\n")
    wrong = [line.partition(":")[0] for line in done.err.splitlines()]
    assert wrong == [*(f"line {number}" for number in range(2, 7)), "scrapy rq import"]
    assert "uniqueKey: Field required" in done.err
    assert "'wrong' does not belong to this uniqueKey" in done.err


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ('{"n": "\\ud800"}', ""),
        ("5", "it is not a JSON object"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
    ],
)
async def test_odd_items_are_imported_or_named(queue: Queue, item: str, problem: str) -> None:
    line = f'{{"#scrapy": {{"entry": null, "key": "k"}}, "item": {item}}}'
    done = await run(queue, "import -", line.encode())
    assert done.code == bool(problem)
    assert problem in done.err
    assert (await ok(queue, "items")).out == ("" if problem else '{"n": "\\ufffd"}\n')


async def test_a_folder_whose_name_is_no_text(queue: Queue, tmp_path: Path) -> None:
    settings = {"APIFY_RQ_STORAGE_DIR": f"{tmp_path}/\udcff"}
    await ok(queue, "add http://n/", **settings)
    assert f"{tmp_path}/\\udcff/" in (await ok(queue, "status", **settings)).out


async def test_bytes_that_are_no_text_are_no_url(queue: Queue) -> None:
    done = await run(queue, "add http://n/\udcff http://n/")
    assert (done.code, done.out) == (1, "1 added, 0 already in the queue\n")
    assert done.err.startswith("http://n/\\udcff: ")


def test_devices_and_links_are_written_and_not_replaced(tmp_path: Path) -> None:
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    (tmp_path / "file").touch()
    link.symlink_to("file")
    os.mkfifo(fifo)
    ours = os.open(fifo, os.O_RDWR)
    for name in (link, fifo):
        with output.writing(str(name)) as file:
            file.write(b"text")
    assert (link.is_symlink(), link.read_bytes()) == (True, b"text")
    assert os.read(ours, 10) == b"text"
    os.close(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "file", "link"]


def test_one_is_singular() -> None:
    assert [output.counted(number, "item") for number in (0, 1, 2000)] == [
        "0 items",
        "1 item",
        "2,000 items",
    ]
    assert output.counted(2, "entry", "entries") == "2 entries"


async def test_purge_asks_twice_if_the_queue_has_just_changed(
    filled: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(output, "confirm", lambda question, **_: asked.append(question))
    await ok(filled, "purge")
    assert asked[0].startswith("Delete 8 entries, 3 of them pending, of request queue ")
    # An embedded queue that is crawled is refused.
    assert len(asked) == 1 + isinstance(filled, ServedQueue)
    assert all("so a crawl may be using it" in question for question in asked[1:])


async def test_purge_empties_the_queue(filled: Queue) -> None:
    assert (await ok(filled, "purge --yes")).err == "8 deleted\n"
    assert (await ok(filled, "status --json")).json["total"] == 0


async def test_add_reports_what_the_api_refuses(served: ServedQueue) -> None:
    huge = json.dumps({"url": f"{SITE}/huge", "payload": "x" * 9_500_000}).encode()
    done = await run(served, "add --file -", huge)
    assert (done.code, done.out) == (1, "0 added, 0 already in the queue\n")
    assert re.match(r"line 1: its [\d,]+ bytes are more than the API takes", done.err)


@pytest.mark.parametrize("command", ["add", "import"])
async def test_order_of_the_file_is_kept(served: ServedQueue, command: str) -> None:
    """Even if the API fails once, so that a batch is sent again."""
    served.refuse(error(500), nth=1, when=lambda call: call.is_("POST", "/requests/batch"))
    urls = [f"http://x/{number}" for number in range(60)]
    lines = [json.dumps({"uniqueKey": url, "url": url}) for url in urls]
    line = "import -" if command == "import" else f"add {' '.join(urls)}"
    await ok(served, line, "\n".join(lines).encode())
    assert served.refused
    assert [entry.url for entry in await claim(served, 100)] == urls


# Help


COMMANDS = "docs/commands.md"


@pytest.mark.parametrize("subcommand", subcommands(), ids=lambda one: one.NAME)
async def test_each_subcommand_explains_itself(queue: Queue, subcommand: Any) -> None:
    words = " ".join((await ok(queue, f"{subcommand.NAME} --help")).out.split())
    assert subcommand.HELP in words
    assert f"Example: {subcommand.EXAMPLE}" in words


def test_a_shell_can_complete_each_subcommand() -> None:
    """shtab takes what argparse lists with a help text, level by level."""

    def words(parent: Any) -> dict[str, Any]:
        (action,) = (one for one in parent._actions if isinstance(one.choices, dict))
        return {one.dest: action.choices[one.dest] for one in action._choices_actions if one.help}

    found = words(words(parser())["rq"])
    assert list(found) == [one.NAME for one in subcommands()]
    assert "--handled-before" in found["retry"]._option_string_actions


async def test_help_has_no_false_headings(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_entries, "HELP", f"{'word ' * 20}colon: {'word ' * 20}")
    for columns in range(60, 130, 7):
        monkeypatch.setenv("COLUMNS", str(columns))
        done = await ok(queue, "--help")
        assert "==" not in done.out
        assert done.out.startswith("usage: scrapy rq <subcommand>")


async def test_examples_of_the_help_and_the_documents_work(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [one for one in commands(COMMANDS, "The command line") if one[0] == "scrapy"]
    examples = {one.NAME: shlex.split(one.EXAMPLE) for one in subcommands()}
    for name in ("serve", "open", "import-jobdir", "input-schema"):  # they need what is not here
        del examples[name]
    assert {words[2] for words in shown} == set(examples)
    monkeypatch.chdir(tmp_path)
    lines = f"https://example.com/product/3\n{snippet(COMMANDS, 'Add to it', 'json')}"
    tmp_path.joinpath("urls.txt").write_text(lines)
    await ok(queue, "add http://a/ -q my-other-queue")
    urls = [f"https://example.com/product/{number}" for number in (1, 2)]
    failed = [page(url, "404 Not Found").model_copy(update={"url": url}) for url in urls]
    await queue.add(*failed)
    for line in dict.fromkeys(shlex.join(words) for words in (*shown, *examples.values())):
        assert line.startswith("scrapy rq ")
        if " retry " in line:  # other examples may have changed the entries
            await ok(queue, "purge --yes")
            await queue.add(*failed)
        await ok(queue, line.removeprefix("scrapy rq "))
