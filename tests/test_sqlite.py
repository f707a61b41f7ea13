"""What is special to the embedded queue: its file, other programs' locks, rows edited by hand."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.backends.sqlite import database
from scrapy_apify_rq.backends.sqlite.database import FILE_NAME, connect
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import BackendError, ConfigError
from tests.test_backends import asynchronous, entry, handled

PLENTY = 16 * 1024 * 1024
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def sql(folder: Path, statement: str, *values: Any) -> list[Any]:
    """Do by hand what no backend would."""
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


async def opened(folder: Path, **options: Any) -> SqliteBackend:
    backend = SqliteBackend(folder, **{"name": "queue", **options})
    await backend.open()
    return backend


# The file


@asynchronous
async def test_the_file_is_reopened(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    backend = await opened(folder)
    await backend.add([entry("a"), handled("b")], forefront=False)
    await backend.close()
    assert backend.location == str(folder / FILE_NAME)
    assert [file.name for file in folder.iterdir()] == [FILE_NAME]
    backend = await opened(folder)
    assert [claimed.entry for claimed in (await backend.claim(9, (), PLENTY)).entries] == [
        entry("a")
    ]
    await backend.close()


@asynchronous
async def test_each_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[sqlite3.Connection] = []

    def remembered(folder: Path) -> sqlite3.Connection:
        made.append(connect(folder))
        return made[-1]

    await (await opened(tmp_path)).close()
    monkeypatch.setattr(database, "connect", remembered)
    backend = SqliteBackend(tmp_path, name="other")
    assert not await backend.find()
    await backend.open()
    await backend.close()
    assert made
    for db in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            db.execute("SELECT 1")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    # Tests may run as root, whom no permission stops; a path below a file stops everybody.
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/storage/.*APIFY_RQ_STORAGE_DIR"):
        connect(tmp_path / "file" / "storage")


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match=f"{FILE_NAME}.*APIFY_RQ_STORAGE_DIR"):
        connect(tmp_path)


def refused(folder: Path) -> str:
    """The message of the ConfigError; the file must stay as it is."""
    before = (folder / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError) as error:
        connect(folder)
    assert (folder / FILE_NAME).read_bytes() == before
    assert [file.name for file in folder.iterdir()] == [FILE_NAME]
    assert str(folder / FILE_NAME) in str(error.value)
    assert "APIFY_RQ_STORAGE_DIR" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [b"plain text, and a good deal of it\n" * 100, b"\0" * 4096])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    assert "not a database" in refused(tmp_path)


def test_a_database_of_another_program(tmp_path: Path) -> None:
    sql(tmp_path, "CREATE TABLE theirs (x)")
    assert "another program" in refused(tmp_path)


def test_a_file_of_a_newer_version(tmp_path: Path) -> None:
    connect(tmp_path).close()
    sql(tmp_path, "PRAGMA user_version = 2")
    message = refused(tmp_path)
    assert "newer version" in message
    assert "format 2, this one reads 1" in message


def test_an_empty_file_is_made_a_queue(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    connect(tmp_path).close()
    assert sql(tmp_path, "SELECT count(*) FROM queues") == [(0,)]


@asynchronous
async def test_a_file_that_is_damaged_later(tmp_path: Path) -> None:
    backend = await opened(tmp_path)
    for number in range(40):
        await backend.add(
            [entry(f"{n:05}") for n in range(number * 25, number * 25 + 25)], forefront=False
        )
    await backend.close()
    with (tmp_path / FILE_NAME).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(8 * 4096)
        file.write(b"\xa5" * (size - 8 * 4096))
    backend = await opened(tmp_path)
    with pytest.raises(BackendError, match=FILE_NAME):
        await backend.claim(1000, (), PLENTY)
    with pytest.raises(BackendError, match=FILE_NAME):
        [_ async for _ in backend.list()]
    await backend.close()


# Which queue


@asynchronous
async def test_a_queue_by_id_or_by_name(tmp_path: Path) -> None:
    backend = await opened(tmp_path, name="mine")
    await backend.add([entry("a")], forefront=False)
    info = await backend.info()
    await backend.close()
    for id in (info.id, "~mine", "somebody~mine"):
        backend = await opened(tmp_path, name=None, id=id)
        assert await backend.info() == info
        await backend.close()
    assert sql(tmp_path, "SELECT count(*) FROM queues") == [(1,)]


@pytest.mark.parametrize("id", ["aBcDeFgHiJkLmNoPq", "~other", "somebody~other", "mine"])
@asynchronous
async def test_an_id_that_is_not_there(tmp_path: Path, id: str) -> None:
    await (await opened(tmp_path, name="mine")).close()
    backend = SqliteBackend(tmp_path, id=id)
    with pytest.raises(ConfigError) as error:
        await backend.open()
    await backend.close()
    for part in ("APIFY_RQ_ID", repr(id), str(tmp_path / FILE_NAME), "APIFY_RQ_NAME"):
        assert part in str(error.value)
    assert sql(tmp_path, "SELECT count(*) FROM queues") == [(1,)]


# Another process holds the file

HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
db.execute("COMMIT")
"""


@contextmanager
def locked(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The file is locked by a process that lets go when it reads a line."""
    command = [sys.executable, "-c", HOLDER, str(folder / FILE_NAME)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield holder
        release(holder)


def release(holder: subprocess.Popen[str]) -> None:
    if holder.poll() is None:
        holder.communicate("\n", timeout=30)


@asynchronous
async def test_a_short_lock_is_waited_for_without_blocking_the_loop(tmp_path: Path) -> None:
    backend = await opened(tmp_path)
    with locked(tmp_path) as holder:
        adding = asyncio.create_task(backend.add([entry("a")], forefront=False))
        turns = 0
        # SQLite itself would wait for its busy timeout, and the loop with it.
        while turns < 20:
            started = asyncio.get_running_loop().time()
            await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - started < 2
            turns += 1
        assert not adding.done()
        assert (await backend.info()).total == 0  # who reads need not wait
        release(holder)
        (answer,) = await adding
    assert not answer.was_already_present
    assert [claimed.entry for claimed in (await backend.claim(9, (), PLENTY)).entries] == [
        entry("a")
    ]
    await backend.close()


@pytest.mark.parametrize("method", ["add", "update"])
@asynchronous
async def test_a_lock_that_outlasts_our_patience(tmp_path: Path, method: str) -> None:
    backend = await opened(tmp_path, patience=0.1)
    with locked(tmp_path):
        write = getattr(backend, method)
        with pytest.raises(BackendError) as error:
            await write([entry("a")], forefront=False)
        assert str(tmp_path / FILE_NAME) in str(error.value)
        assert "locked" in str(error.value)
        assert error.value.reason == "apify_rq_unavailable"
    # The backend is fine when the file is.
    await backend.add([entry("b")], forefront=False)
    assert (await backend.info()).total == 1
    await backend.close()


@asynchronous
async def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    backend = await opened(tmp_path)
    b = request_id("b")
    sql(
        tmp_path,
        f"CREATE TRIGGER full BEFORE INSERT ON requests WHEN NEW.id = '{b}'"
        " BEGIN SELECT RAISE(FAIL, 'disk full'); END",
    )
    with pytest.raises(BackendError, match=f"{FILE_NAME} failed: disk full"):
        await backend.add([entry("a"), entry("b"), entry("c")], forefront=False)
    assert (await backend.info()).total == 0
    assert await backend.get(request_id("a")) is None
    await backend.add([entry("a"), entry("c")], forefront=False)
    assert (await backend.info()).total == 2
    await backend.close()


# Indexes


@asynchronous
async def test_no_statement_scans_or_sorts_the_entries(tmp_path: Path) -> None:
    backend = await opened(tmp_path, lock_secs=60)
    single = await opened(tmp_path)
    statements: set[str] = set()
    for queue in (backend, single):  # the only way to see what is really asked
        queue._database.connection.set_trace_callback(statements.add)
    ids = [request_id("a"), request_id("b")]
    await backend.add([entry("a"), entry("b"), entry("c")], forefront=False)
    await single.claim(2, (), PLENTY)
    await backend.claim(2, (), PLENTY)
    await backend.prolong(ids)
    await backend.get(ids[0])
    await backend.info()
    await backend.update([entry("a"), handled("b")], forefront=True)
    for state in (None, "pending", "handled", "failed", "locked"):
        [_ async for _ in backend.list(state)]
    await backend.unlock()
    await backend.delete(ids)
    await backend.purge()
    await single.close()
    await backend.close()

    asked = [text for text in statements if text.startswith(("SELECT", "UPDATE", "DELETE"))]
    assert (
        sum("position IS NOT NULL" in text and "ORDER BY position" in text for text in asked) == 2
    )
    for statement in asked:
        plan = [row[3] for row in sql(tmp_path, f"EXPLAIN QUERY PLAN {statement}")]
        assert plan, statement
        for step in plan:
            assert not step.startswith("SCAN"), (statement, plan)
            assert "TEMP B-TREE" not in step, (statement, plan)


@pytest.mark.parametrize("lock_secs", [None, 60])
@asynchronous
async def test_a_claim_does_not_go_through_the_ids(tmp_path: Path, lock_secs: int | None) -> None:
    # They lie at random in their index: each would be a read of another page of a large file.
    backend = await opened(tmp_path, lock_secs=lock_secs)
    await backend.add([entry("a"), entry("b")], forefront=False)
    statements: set[str] = set()
    backend._database.connection.set_trace_callback(statements.add)
    assert len((await backend.claim(9, (), PLENTY)).entries) == 2
    await backend.close()
    asked = [text for text in statements if "requests" in text]
    assert asked
    for statement in asked:
        for row in sql(tmp_path, f"EXPLAIN QUERY PLAN {statement}"):
            assert "requests_by_id" not in row[3], statement


@asynchronous
async def test_an_entry_that_goes_while_it_is_claimed(tmp_path: Path) -> None:
    backend, other = await opened(tmp_path), await opened(tmp_path)
    keys = [f"{n:03}" for n in range(150)]
    await backend.add([entry(key) for key in keys], forefront=False)
    claiming = asyncio.create_task(backend.claim(150, (), PLENTY))
    await asyncio.sleep(0)  # by now the order is read, and the first hundred entries
    await other.delete([request_id("149")])
    await other.add([entry("new")], forefront=False)  # SQLite gives it the rowid that is free
    claim = await claiming
    assert [claimed.entry.unique_key for claimed in claim.entries] == keys[:-1]
    assert len(sql(tmp_path, "SELECT 1 FROM requests WHERE rowid = 150")) == 1
    await other.close()
    await backend.close()


# Rows edited by hand

VALID = entry(
    "a", payload="body", headers={"A": "b"}, user_data={"label": "parse"}, error_messages=["one"]
)


def edited(**values: Any) -> str:
    return json.dumps({**json.loads(VALID.to_json()), **values})


DEEP = "[" * 100_000 + "]" * 100_000
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "the entry"),
    "garbage": ("}{ not JSON", "the entry"),
    "cut off": (edited()[:-20], "the entry"),
    "a list": ("[1, 2]", "the entry"),
    "a number": ("5", "the entry"),
    "bytes": (b"\xff\xfe\x00\x01", "the entry"),
    "text that is not UTF-8": (edited(url="@").encode().replace(b"@", b"\xff"), "the entry"),
    "a lone surrogate": (edited(url="https://example.com/\ud800"), "the entry"),
    "100,000 arrays": (DEEP, "the entry"),
    "100,000 arrays inside": (edited(userData={"x": "@"}).replace('"@"', DEEP), "the entry"),
    "300 arrays inside": (
        edited(userData={"x": "@"}).replace('"@"', "[" * 300 + "]" * 300),
        "the entry",
    ),
    "no URL": (edited(url=None), "url"),
    "nothing": ("{}", "id"),
    **{
        f"{name} is {value!r}": (edited(**{name: value}), name)
        for name, value in {
            "uniqueKey": 5,
            "url": ["https://example.com/"],
            "method": {},
            "payload": [1],
            "headers": {"A": ["b"]},
            "userData": "text",
            "retryCount": "many",
            "noRetry": "perhaps",
            "errorMessages": ["fine", 5],
            "loadedUrl": False,
            "handledAt": "yesterday",
        }.items()
    },
    "5 MB in a wrong place": (edited(retryCount="x" * 5_000_000), "retryCount"),
    "5 MB of garbage": ("x" * 5_000_000, "the entry"),
}


def damage(folder: Path, text: str | bytes) -> None:
    value = "CAST(? AS TEXT)" if isinstance(text, bytes) else "?"
    sql(folder, f"UPDATE requests SET json = {value} WHERE id = ?", text, VALID.id)


@pytest.mark.parametrize("name", BROKEN)
@asynchronous
async def test_a_broken_row_is_claimed_and_acked_once(tmp_path: Path, name: str) -> None:
    text, where = BROKEN[name]
    backend = await opened(tmp_path)
    await backend.add([VALID, entry("b")], forefront=False)
    damage(tmp_path, text)
    answer = await backend.claim(9, (), PLENTY)
    assert [claimed.entry.id for claimed in answer.entries] == [VALID.id, request_id("b")]
    found = answer.entries[0].entry
    assert found.broken is not None
    assert found.broken.startswith(where)
    assert await backend.get(VALID.id) == found
    assert await anext(backend.list("pending")) == found
    # What the scheduler does with it.
    found.handled_at = NOW
    found.error_messages.append(found.broken)
    await backend.update([found], forefront=False)
    again = await backend.get(VALID.id)
    assert again is not None
    assert again.broken is None
    assert again.failed
    assert again.user_data == found.user_data
    assert [
        claimed.entry.unique_key for claimed in (await backend.claim(9, (), PLENTY)).entries
    ] == ["b"]
    assert (await backend.info()).handled == 1
    await backend.close()


@asynchronous
async def test_a_broken_row_keeps_what_it_held(tmp_path: Path) -> None:
    backend = await opened(tmp_path)
    await backend.add([VALID], forefront=False)

    async def read(text: str | bytes) -> Entry:
        damage(tmp_path, text)
        ((found, _),) = (await backend.claim(9, (), PLENTY)).entries
        return found

    found = await read(edited(retryCount="many", loadedUrl=5, more="?"))
    kept = found.model_copy(update={"broken": None, "user_data": {"label": "parse"}})
    assert kept == VALID
    unreadable = json.loads(found.user_data["unreadable"])
    assert unreadable == {"retryCount": "many", "loadedUrl": 5, "more": "?"}

    found = await read(edited(userData=["x"], headers=5))
    assert (found.url, found.payload) == (VALID.url, "body")
    assert json.loads(found.user_data["unreadable"]) == {"userData": ["x"], "headers": 5}

    found = await read("}{ not JSON")
    assert found.user_data == {"unreadable": "}{ not JSON"}

    deep = edited(userData={"x": "@"}).replace('"@"', "[" * 300 + "]" * 300)
    found = await read(deep)
    assert (found.url, found.unique_key) == (VALID.url, "a")
    assert found.user_data == {"unreadable": deep}
    await backend.close()


@asynchronous
async def test_a_row_that_says_another_id_is_acked_under_its_own(tmp_path: Path) -> None:
    backend = await opened(tmp_path)
    await backend.add([VALID], forefront=False)
    damage(tmp_path, edited(id="another"))
    ((found, _),) = (await backend.claim(9, (), PLENTY)).entries
    assert found.id == VALID.id
    found.handled_at = NOW
    await backend.update([found], forefront=False)
    assert (await backend.claim(9, (), PLENTY)).entries == []
    assert (await backend.info()).total == 1
    await backend.close()


@pytest.mark.parametrize("depth", [100, 195])
@asynchronous
async def test_an_entry_as_deep_as_can_be_read_can_be_written(tmp_path: Path, depth: int) -> None:
    backend = await opened(tmp_path)
    await backend.add([VALID], forefront=False)
    damage(
        tmp_path,
        edited(userData={"x": "@"}).replace('"@"', "[" * depth + "]" * depth),
    )
    ((found, _),) = (await backend.claim(9, (), PLENTY)).entries
    assert found.broken is None
    await backend.update([found], forefront=False)
    assert await backend.get(VALID.id) == found
    await backend.close()


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, check_same_thread=False)
    with closing(other):
        other.execute("BEGIN IMMEDIATE")
        other.execute("SELECT count(*) FROM sqlite_master").fetchone()
        release = threading.Timer(0.2, other.rollback)
        release.start()
        connect(tmp_path).close()
        release.join()
