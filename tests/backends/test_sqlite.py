"""What only the embedded queue has: its file, others' locks on it, indexes, rows edited by hand."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.base import EntryItems, LooseItems, Purpose
from scrapy_apify_rq.backends.sqlite import catalog, database, table
from scrapy_apify_rq.backends.sqlite.database import FILE_NAME, Database
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError, ConfigError
from tests.support.backends import HANDLED_AT, PLENTY, Sqlite, entry, handled, ids, numbered, opened
from tests.support.command_line import rq
from tests.support.first_edition import VERSION_1
from tests.support.queues import NAME, Queue
from tests.support.waiting import run_async, wait_until


def sql(folder: Path, statement: str, *values: Any) -> list[Any]:
    """Do by hand what no backend would."""
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def opened_in(folder: Path, **options: Any) -> Any:
    return opened(Sqlite(folder, **{"name": NAME, **options}))


def open_file(folder: Path) -> Database:
    database = Database(folder, patience=0)
    database.open()
    return database


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Sqlite]:
    opening = opened_in(tmp_path)
    yield run_async(opening.__aenter__())
    run_async(opening.__aexit__(None, None, None))


# The file


@pytest.mark.parametrize("is_there", [False, True])
async def test_the_file_is_made_even_of_an_empty_one(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "not" / "there yet"
    if is_there:
        folder.mkdir(parents=True)
        (folder / FILE_NAME).touch()
    async with opened_in(folder) as backend:
        await backend.fill("a", handled("b"))
    assert backend.location == str(folder / FILE_NAME)
    assert [file.name for file in folder.iterdir()] == [FILE_NAME]
    async with opened_in(folder) as backend:
        assert await backend.entries() == [entry("a")]


async def test_each_connection_is_closed(
    backend: Sqlite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sqlite3.Connection] = []

    def remember(*args: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*args, **options))
        return made[-1]

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", remember)
    other = Sqlite(tmp_path, name="other")
    assert not await other.find()
    await other.open()
    await other.close()
    assert made
    for db in made:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            db.execute("SELECT 1")


def test_a_place_where_no_file_can_be_made(tmp_path: Path) -> None:
    # Tests may run as root, whom no permission stops; a path below a file stops everybody.
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match=r"file/storage/.*APIFY_RQ_STORAGE_DIR"):
        open_file(tmp_path / "file" / "storage")
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(BackendError, match=f"{FILE_NAME}.*APIFY_RQ_STORAGE_DIR"):
        open_file(tmp_path)


OCCUPANTS = """
CREATE TABLE occupants (queue INTEGER PRIMARY KEY REFERENCES queues (key), pid INTEGER NOT NULL,
    host TEXT NOT NULL, since REAL NOT NULL);
"""


@pytest.mark.parametrize("more", ["", OCCUPANTS])
async def test_a_file_of_the_first_edition(tmp_path: Path, more: str) -> None:
    file = tmp_path / FILE_NAME
    with closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.executescript(f"PRAGMA journal_mode = WAL; {VERSION_1}{more}")
        for key, name in ((3, NAME), (7, "other")):
            old.execute(
                "INSERT INTO queues (key, id, name, created_at, modified_at, accessed_at, total,"
                " last, writes) VALUES (?, ?, ?, 5, 6, 7, 1, 1, 9)",
                (key, f"{name:x<17}", name),
            )
            values = (key, *ids("a"), entry("a").to_json())
            old.execute("INSERT INTO requests VALUES (?, ?, 1, FALSE, NULL, NULL, ?)", values)
        file.chmod(0o644)
        async with opened_in(tmp_path) as backend:  # while the old version has the file open, too
            assert (await backend.info())[:5] == (f"{NAME:x<17}", NAME, 1, 0, 1)
            await backend.occupy(alone=True)
            await backend.fill("b")
            await backend.save_records({"x": b"y"})
            assert await backend.keys() == ["a", "b"]
        assert old.execute("SELECT host FROM requests WHERE queue = 7").fetchall() == [
            ("example.com",)
        ]
        assert old.execute("SELECT total, writes FROM queues ORDER BY key").fetchall() == [
            (2, 10),
            (1, 9),
        ]
    assert file.stat().st_mode & 0o777 == 0o600
    # No key of an older queue is used again.
    store = Store(tmp_path, 0, time.time)
    await store.open()
    first, _ = await store.get_or_create("newest")
    await store.drop(first.key)
    second, _ = await store.get_or_create("newest")
    assert (first.key, second.key) == (8, 9)
    await store.close()


async def test_a_file_of_version_2(tmp_path: Path) -> None:
    async with opened_in(tmp_path) as backend:
        await backend.fill("a", "b")
        await backend.ack("b")
    for statement in (
        "ALTER TABLE requests DROP COLUMN locked_at",
        "ALTER TABLE queues ADD COLUMN purges INTEGER NOT NULL DEFAULT 0",
        "DROP TABLE feeds",
        "PRAGMA user_version = 2",
    ):
        sql(tmp_path, statement)
    async with opened_in(tmp_path, lock_secs=60) as backend:
        assert await backend.look() == ("a", 2, 1, 1)
        assert await backend.count("locked") == 1
        await backend.items.note({"x": "y"})
        await backend.purge()
        assert await backend.look() == ("", 0, 0, 0)


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    """From its first byte on, whatever the umask; later it is the owner's decision."""
    umask = os.umask(0)
    try:
        with closing(open_file(tmp_path)) as db:
            db.change("INSERT INTO occupants VALUES (1, 1, '', 1)")
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {f"{FILE_NAME}{end}": 0o600 for end in ("", "-wal", "-shm")}
    (tmp_path / FILE_NAME).chmod(0o660)
    open_file(tmp_path).close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize(("purpose", "level"), [("crawl", 1), ("store", 2)])
async def test_what_is_stored_for_others_outlasts_a_power_cut(
    tmp_path: Path, purpose: Purpose, level: int
) -> None:
    async with opened_in(tmp_path, purpose=purpose) as backend:
        assert backend._database.row("PRAGMA synchronous") == (level,)


async def test_commands_and_the_server_store_for_others(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    purposes: list[str] = []
    make = Database.__init__

    def remember(self: Database, folder: Path, patience: float, purpose: str = "crawl") -> None:
        purposes.append(purpose)
        make(self, folder, patience, purpose)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "__init__", remember)
    for words in ("add https://example.com", "import -"):
        assert (await rq(queue, *words.split())).code == 0
    Store(queue.folder, 0, time.time)
    assert purposes == ["store"] * 3


async def test_a_disk_where_sqlite_cannot_use_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def on_network(path: Path, **options: Any) -> sqlite3.Connection:
        # One of SQLite's ways to lock a file, without the shared memory that the log needs.
        return connect(f"file:{path}?vfs=unix-dotfile", uri=True, **options)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", on_network)
    async with opened_in(tmp_path, patience=5) as one, opened_in(tmp_path, patience=5) as other:
        await asyncio.gather(*(backend.fill("a", "b") for backend in (one, other)))
        assert (await other.info()).total == 2
        assert one._database.row("PRAGMA synchronous") == (2,)
        await one.close()
        await one.open()
    warnings = [text for text in caplog.messages if "cannot use its write-ahead log" in text]
    assert len(warnings) == 2  # one for each
    assert "Set APIFY_RQ_STORAGE_DIR to a folder on a local disk" in warnings[0]


async def test_a_bug_of_sqlite_matters_to_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for version in ((3, 51, 2), (3, 51, 3), (3, 50, 7), (3, 50, 6), (3, 44, 6), (3, 45, 0)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        for lock_secs in (None, 60):
            caplog.clear()
            async with opened_in(tmp_path, lock_secs=lock_secs) as backend:
                await backend.close()
                await backend.open()
            found[version, lock_secs] = caplog.text.count("Use a Python with SQLite 3.51.3")
    assert {version for version in found if found[version]} == {
        ((3, 51, 2), 60),
        ((3, 50, 6), 60),
        ((3, 45, 0), 60),
    }
    assert max(found.values()) == 1


# What others do to a queue in use


GONE: dict[str, Callable[[Path], Any]] = {
    "the file is deleted": lambda folder: shutil.rmtree(folder),
    "the file is replaced": lambda folder: (shutil.rmtree(folder), open_file(folder).close()),
    "the queue is deleted": lambda folder: drop_and_create(folder),
    "the queue is emptied": lambda folder: purge(folder),
}


async def drop_and_create(folder: Path) -> None:
    """The new queue must not be taken for the old one."""
    store = Store(folder, 0, time.time)
    await store.open()
    record = await store.find(name=NAME)
    assert record is not None
    await store.drop(record.key)
    again, is_new = await store.get_or_create(NAME)
    assert is_new
    assert again.key > record.key
    await store.close()


async def purge(folder: Path) -> None:
    async with opened_in(folder) as other:
        await other.purge()


@pytest.mark.parametrize("lock_secs", [None, 60])
@pytest.mark.parametrize("happens", GONE.values(), ids=GONE)
async def test_a_queue_that_is_gone(
    tmp_path: Path, lock_secs: int | None, happens: Callable[[Path], Any]
) -> None:
    folder = tmp_path / "storage"
    async with opened_in(folder, lock_secs=lock_secs) as backend:
        await backend.occupy(alone=lock_secs is None)
        await backend.fill("a")
        await backend.purge()  # our own is none of these
        await backend.fill("b", "c")
        await backend.check()
        if inspect.isawaitable(done := happens(folder)):
            await done
        for call in (
            backend.check(),
            backend.info(),
            backend.take(),
            backend.fill("d"),
            backend.ack("b"),
            backend.save_records({"x": b"y"}),
        ):
            with pytest.raises(BackendError, match=str(folder)) as error:
                await call
            assert error.value.reason == "apify_rq_gone"
    if (folder / FILE_NAME).exists():
        async with opened_in(folder) as new:
            assert await new.look() == ("", 0, 0, 0)


async def test_who_only_looks_may_see_a_queue_emptied(backend: Sqlite, tmp_path: Path) -> None:
    await backend.fill("a")
    await purge(tmp_path)
    assert await backend.look() == ("", 0, 0, 0)


# Which queue


async def test_a_queue_by_its_id(backend: Sqlite, tmp_path: Path) -> None:
    info = await backend.info()
    for id in (info.id, f"~{info.name}", f"somebody~{info.name}"):
        async with opened_in(tmp_path, name=None, id=id) as same:
            assert await same.info() == info
    for id in ("aBcDeFgHiJkLmNoPq", "~other", "somebody~other", info.name):
        with pytest.raises(ConfigError) as error:
            async with opened_in(tmp_path, name=None, id=id):
                pass
        for part in ("APIFY_RQ_ID", repr(id), str(tmp_path / FILE_NAME), "APIFY_RQ_NAME"):
            assert part in str(error.value)
    assert sql(tmp_path, "SELECT count(*) FROM queues") == [(1,)]


# Others hold the file


@contextmanager
def locked(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection that lets go of the file at the end, or before with ``rollback()``."""
    file = folder / FILE_NAME
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other
        other.rollback()


async def test_a_short_lock_is_waited_for_without_blocking_the_loop(
    backend: Sqlite, tmp_path: Path
) -> None:
    with locked(tmp_path) as other:
        adding = asyncio.create_task(backend.fill("a"))
        # SQLite itself would wait for its busy timeout, and the loop with it.
        for _ in range(20):
            started = asyncio.get_running_loop().time()
            await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - started < 2
        assert not adding.done()
        assert (await backend.info()).total == 0  # who reads need not wait
        other.rollback()
        (answer,) = await adding
    assert not answer.was_already_present
    assert await backend.entries() == [entry("a")]


async def test_a_long_lock_is_logged_once(
    backend: Sqlite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many wait: another process may be suspended in mid-write, and hold it for ever."""
    monkeypatch.setattr(database, "_LONG_LOCK", 0.05)
    caplog.set_level("INFO")
    with locked(tmp_path) as other:
        adding = [asyncio.create_task(backend.fill(key)) for key in "ab"]
        await wait_until(lambda: caplog.messages, "a warning")
        assert (await backend.info()).total == 0  # who reads need not wait
        await asyncio.sleep(0.1)
        other.rollback()
        await asyncio.gather(*adding)
    warning, info = caplog.messages
    assert f"locked {tmp_path / FILE_NAME} for 0 s. Is it suspended (Ctrl-Z)?" in warning
    assert info == f"{tmp_path / FILE_NAME} is no longer locked"


@pytest.mark.parametrize("method", ["fill", "put"])
async def test_a_lock_that_outlasts_our_patience(tmp_path: Path, method: str) -> None:
    async with opened_in(tmp_path, patience=0.1) as backend:
        with locked(tmp_path), pytest.raises(BackendError) as error:
            await getattr(backend, method)("a")
        assert str(tmp_path / FILE_NAME) in str(error.value)
        assert "locked" in str(error.value)
        assert error.value.reason == "apify_rq_unavailable"
        # The backend is fine when the file is.
        await backend.fill("b")
        assert (await backend.info()).total == 1


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path) as other:
        release = threading.Timer(0.2, other.rollback)
        release.start()
        open_file(tmp_path).close()
        release.join()


async def test_a_batch_is_stored_whole_or_not_at_all(backend: Sqlite, tmp_path: Path) -> None:
    full = "SELECT RAISE(FAIL, 'disk full')"
    b = ids("b")[0]
    sql(
        tmp_path,
        f"CREATE TRIGGER t BEFORE INSERT ON requests WHEN NEW.id = '{b}' BEGIN {full}; END",
    )
    with pytest.raises(BackendError, match=f"{FILE_NAME} failed: disk full"):
        await backend.fill("a", "b", "c")
    assert await backend.look() == ("", 0, 0, 0)
    assert await backend.get(*ids("a")) is None
    await backend.fill("a", "c")
    assert (await backend.info()).total == 2


# Indexes


async def test_no_statement_scans_or_sorts_the_entries(backend: Sqlite, tmp_path: Path) -> None:
    asked: set[str] = set()
    async with opened_in(tmp_path, lock_secs=60) as shared:
        for queue in (backend, shared):  # the only way to see what is really asked
            queue._database.connection.set_trace_callback(asked.add)
        await shared.fill("a", "b", "c")
        before = asked.copy()
        asked.clear()
        for share in (None, 2):
            await backend.take(2, share=share)
            await shared.take(2, share=share)
        claims = asked.copy()
        await shared.prolong(ids("a", "b"))
        await shared.get(*ids("a"))
        await shared.info()
        await shared.put("a", handled("b"), forefront=True)
        for state in (None, "pending", "handled", "failed", "locked"):
            await shared.listed(state)
        await shared.unlock()
        await shared.delete(ids("a", "b"))
        await shared.save_records({"x": b"", "y": None})
        await shared.load_records("x")
        await shared.purge()
    plans = {
        text: [row[3] for row in sql(tmp_path, f"EXPLAIN QUERY PLAN {text}")]
        for text in asked | before
        if text.startswith(("SELECT", "UPDATE", "DELETE", "WITH RECURSIVE"))
    }
    for text, steps in plans.items():
        assert steps, text
        scans = [step for step in steps if step.startswith("SCAN")]
        if "RECURSIVE" in text:  # it scans the hosts that it has found one by one
            scans = [step for step in scans if "requests" in step]
        assert not scans, (text, steps)
        assert "TEMP B-TREE" not in "".join(steps), (text, steps)
        # Ids lie at random in their index: each would be a read of another page of a large file.
        if text in claims and "requests" in text:
            assert "requests_by_id" not in "".join(steps), (text, steps)
    heads = [text for text in plans if "position IS NOT NULL" in text]
    assert sum("ORDER BY position" in text for text in heads) == 8


async def test_what_is_few_is_found_among_many(backend: Sqlite) -> None:
    await backend.fill(*numbered(500, handled_at=HANDLED_AT), "pending")
    steps: list[None] = []
    backend._database.connection.set_progress_handler(lambda: steps.append(None), 1)
    assert await backend.listed("pending") == {"pending"}
    assert await backend.listed("locked") == await backend.listed("failed") == set()
    assert await backend.count("locked") == await backend.count("failed") == 0
    assert len(steps) < 500


async def test_an_ack_searches_no_index(backend: Sqlite, tmp_path: Path) -> None:
    async with opened_in(tmp_path) as other:
        await other.fill("claimed")
    await backend.take()
    await backend.fill("added")
    await backend.put("added")  # a retry
    asked: list[str] = []
    backend._database.connection.set_trace_callback(asked.append)
    await backend.ack("claimed", "added")
    plans = [
        step[3]
        for text in asked
        if text.startswith(("SELECT", "UPDATE")) and "requests" in text
        for step in sql(tmp_path, f"EXPLAIN QUERY PLAN {text}")
    ]
    assert plans == ["SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)"] * 4
    assert (await backend.info()).handled == 2


async def test_an_entry_that_was_moved_is_acked(backend: Sqlite, tmp_path: Path) -> None:
    await backend.fill("a", "b", "c")
    async with opened_in(tmp_path) as other:
        await other.delete(ids("a", "c"))
        await other.fill("new", "a")  # "new" has the row of "c" now
    await backend.ack("a", "b", "c")
    rows = sql(tmp_path, "SELECT id, position IS NULL FROM requests ORDER BY rowid")
    assert rows == list(zip(ids("b", "new", "a", "c"), (1, 0, 1, 1), strict=True))


async def test_few_rows_are_remembered(backend: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MOST_ROWIDS", 3)
    await backend.fill("a", "b", handled("c"), "d")
    await backend.take(1)
    await backend.fill("e")
    assert list(backend._table._rowids) == ids("d", "a", "e")
    await backend.ack("a", "d")
    assert list(backend._table._rowids) == ids("e")
    assert await backend.listed("pending") == {"b", "e"}


# Hosts


async def test_entries_without_a_host_have_a_turn(tmp_path: Path) -> None:
    grouped = [entry(f"{name}{n}", url=f"https://{name}.com/") for name in "ab" for n in range(9)]
    async with opened_in(tmp_path) as backend:
        await backend.fill(*grouped)
        assert await backend.keys(4, share=9) == ["a0", "a1", "b0", "b1"]
        sql(tmp_path, "UPDATE requests SET host = NULL WHERE id = ?", *ids("b8"))
        assert await backend.keys(3, share=9) == ["a0", "b0", "b8"]
        assert len(await backend.keys(99, share=99)) == 18


async def test_hosts_without_number_have_their_turns(backend: Sqlite) -> None:
    hosts = [f"{n:03}.com" for n in range(600)]
    await backend.fill(*(entry(host, url=f"https://{host}/") for host in hosts))
    found: list[str] = []
    while len(found) < 600:
        claim = await backend.take(100, found, share=100)
        assert claim.more
        found += [one.entry.unique_key for one in claim.entries]
    assert sorted(found) == hosts
    claims = [await backend.take(100, found, share=100) for _ in range(3)]
    assert [claim.entries for claim in claims] == [[], [], []]


async def test_an_entry_that_goes_while_it_is_claimed(backend: Sqlite, tmp_path: Path) -> None:
    async with opened_in(tmp_path) as other:
        await backend.fill(*numbered(150))
        claiming = asyncio.create_task(backend.claim(150, (), PLENTY))
        await asyncio.sleep(0)  # by now the order is read, and the first hundred entries
        await other.delete(ids("00149"))
        await other.fill("new")  # SQLite gives it the rowid that is free
        assert [one.entry for one in (await claiming).entries] == numbered(149)
        assert len(sql(tmp_path, "SELECT 1 FROM requests WHERE rowid = 150")) == 1


# Rows edited by hand

VALID = entry(
    "a", payload="body", headers={"A": "b"}, user_data={"label": "parse"}, error_messages=["one"]
)


def edited(**values: Any) -> str:
    return json.dumps({**json.loads(VALID.to_json()), **values})


def deep(depth: int) -> str:
    """With arrays in arrays."""
    return edited(userData={"x": "@"}).replace('"@"', "[" * depth + "]" * depth)


def damage(folder: Path, text: str | bytes) -> None:
    value = "CAST(? AS TEXT)" if isinstance(text, bytes) else "?"
    sql(folder, f"UPDATE requests SET json = {value} WHERE id = ?", text, VALID.id)


UNREADABLE: dict[str, str | bytes] = {
    "empty": "",
    "garbage": "}{ not JSON",
    "cut off": edited()[:-20],
    "a list": "[1, 2]",
    "a number": "5",
    "bytes": b"\xff\xfe\x00\x01",
    "text that is not UTF-8": edited(url="@").encode().replace(b"@", b"\xff"),
    "100,000 arrays": "[" * 100_000 + "]" * 100_000,
    "100,000 arrays inside": deep(100_000),
    "300 arrays inside": deep(300),
    "5 MB of garbage": "x" * 5_000_000,
}
WRONG = {"uniqueKey": 5, "url": ["https://example.com/"], "headers": "A: b"}
BROKEN = [
    *[pytest.param(text, "the entry", id=name) for name, text in UNREADABLE.items()],
    *[pytest.param(edited(**{name: value}), name, id=name) for name, value in WRONG.items()],
    pytest.param(edited(url=None), "url", id="no URL"),
    pytest.param("{}", "uniqueKey", id="nothing"),
    pytest.param(edited(headers="x" * 5_000_000), "headers", id="5 MB in a wrong place"),
]


@pytest.mark.parametrize(("text", "where"), BROKEN)
async def test_a_broken_row_is_claimed_and_acked_once(
    backend: Sqlite, tmp_path: Path, text: str | bytes, where: str
) -> None:
    await backend.fill(VALID, "b")
    damage(tmp_path, text)
    found, other = await backend.entries()
    assert (found.id, other) == (VALID.id, entry("b"))
    assert found.broken is not None
    assert found.broken.startswith(where)
    assert await backend.get(VALID.id) == found
    assert await anext(backend.list("pending")) == found
    # What the scheduler does with it.
    found.handled_at = HANDLED_AT
    found.error_messages.append(found.broken)
    await backend.put(found)
    again = await backend.get(VALID.id)
    assert again is not None
    assert again.broken == found.broken
    assert again.failed
    assert again.user_data == found.user_data
    assert await backend.look() == ("b", 2, 1, 1)


async def test_a_broken_row_keeps_what_it_held(backend: Sqlite, tmp_path: Path) -> None:
    await backend.fill(VALID)

    async def read(text: str) -> tuple[Entry, str]:
        damage(tmp_path, text)
        (found,) = await backend.entries()
        return found, found.user_data.pop("scrapy_unreadable")["original"]

    found, unreadable = await read(edited(retryCount="many", loadedUrl=5, more="?"))
    assert found == VALID
    assert json.loads(unreadable) == {"retryCount": "many", "loadedUrl": 5, "more": "?"}
    found, unreadable = await read(edited(userData=["x"], headers=5))
    assert (found.url, found.payload) == (VALID.url, "body")
    assert json.loads(unreadable) == {"userData": ["x"], "headers": 5}
    found, unreadable = await read("}{ not JSON")
    assert (found.user_data, unreadable) == ({}, "}{ not JSON")
    found, unreadable = await read(deep(300))
    assert (found.url, found.unique_key, found.user_data) == (VALID.url, "a", {})
    assert unreadable == deep(300)


async def test_a_row_that_says_another_id_is_acked_under_its_own(
    backend: Sqlite, tmp_path: Path
) -> None:
    await backend.fill(VALID)
    damage(tmp_path, edited(id="another"))
    (found,) = await backend.entries()
    assert found.id == VALID.id
    await backend.put(found.model_copy(update={"handled_at": HANDLED_AT}))
    assert await backend.look() == ("", 1, 1, 0)


@pytest.mark.parametrize("depth", [100, 195])
async def test_an_entry_as_deep_as_can_be_read_can_be_written(
    backend: Sqlite, tmp_path: Path, depth: int
) -> None:
    await backend.fill(VALID)
    damage(tmp_path, deep(depth))
    (found,) = await backend.entries()
    assert found.broken is None
    await backend.put(found)
    assert await backend.get(VALID.id) == found


async def test_a_lock_that_is_none(backend: Sqlite, tmp_path: Path) -> None:
    await backend.occupy(alone=True)
    await backend.close()
    (lock,) = (tmp_path / "request_queues.locks").iterdir()
    lock.write_text("text" * 5000)
    await backend.open()
    with pytest.raises(BackendError, match=rf"{lock} .*not a database.* Delete it if no crawl"):
        await backend.occupy(alone=True)


async def test_a_lock_that_cannot_be_made_is_not_taken_for_a_crawl(tmp_path: Path) -> None:
    """Whatever the folder is called."""
    folder = tmp_path / "blocked"
    async with opened_in(folder) as backend:
        (folder / "request_queues.locks").touch()
        with pytest.raises(BackendError, match=r"locks.* cannot be used .*File exists"):
            await backend.occupy(alone=True)


async def test_a_folder_that_cannot_be_looked_into(tmp_path: Path) -> None:
    """As a folder of the network that is gone; a link to itself is one that root cannot use."""
    folder = tmp_path / "storage"
    async with opened_in(folder) as backend:
        shutil.rmtree(folder)
        folder.symlink_to(folder)
        with pytest.raises(BackendError, match=r"cannot be used .*Too many levels"):
            await backend.info()


async def test_one_crawl_alone_or_workers(tmp_path: Path) -> None:
    """In this process; ``processes/test_locks`` has two."""
    async with (
        opened_in(tmp_path) as one,
        opened_in(tmp_path) as two,
        opened_in(tmp_path, name="other") as other,
    ):
        await one.occupy(alone=False)
        await two.occupy(alone=False)
        await two.close()
        await two.open()
        with pytest.raises(ConfigError, match=r"is being crawled already, by this process"):
            await two.occupy(alone=True)
        await other.occupy(alone=True)  # of another queue
        await one.close()
        await two.occupy(alone=True)
        await one.open()
        for alone in (True, False):
            with pytest.raises(ConfigError, match="is being crawled already"):
                await one.occupy(alone=alone)


async def test_what_waits_for_an_update_that_cannot_come_is_deleted(tmp_path: Path) -> None:
    """Of an earlier run of this worker, or of one that another worker has done since."""

    def rows(backend: Sqlite) -> list[str]:
        query = "SELECT entry FROM items JOIN item_texts USING (number) ORDER BY entry"
        return [id for (id,) in backend._database.connection.execute(query)]

    a, b, c = sorted(ids("a", "b", "c"))
    spills = [LooseItems(["{}"], id, id) for id in (a, b, c)]
    async with opened_in(tmp_path, lock_secs=60, client_key="x") as x:
        await x.fill("a", "b", "c")
        await x.items.save(spills[:2])
        async with opened_in(tmp_path, lock_secs=60, client_key="y") as y:
            await y.items.save(spills[2:])
            await y.update([await x.get(a)], forefront=False)
            await y.items.discard_spilled()
            assert rows(y) == [a, b]
            done = await x.get(a)
            done.handled_at = HANDLED_AT
            await y.update([done], forefront=False)
            await y.items.discard_spilled()
            assert rows(y) == [b]


async def test_many_items_become_valid_at_once(tmp_path: Path) -> None:
    """The fewer rows, the shorter it takes: they are no larger than what can be read at once."""
    async with opened_in(tmp_path) as backend:
        await backend.fill("a")
        (id,) = ids("a")
        for _ in range(8):
            await backend.items.save([LooseItems(["x" * 1000] * 256, "spill", id)])
        query = "SELECT max(length(json)), count(*) FROM item_texts"
        largest, count = backend._database.connection.execute(query).fetchone()
        assert (largest < 2**18, count) == (True, 8)
        await backend.update([handled("a")], forefront=False, items={id: EntryItems([], "spill")})
        assert len([one async for one in backend.items.read()]) == 8 * 256


# Purging


async def test_purging_lets_others_have_their_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_SLICE", 0)
    async with opened_in(tmp_path) as backend, opened_in(tmp_path, name="other") as other:
        for queue in (other, backend, other):
            await queue.fill(*numbered(1000))
            items = EntryItems(['{"x": 1}'])
            await queue.update([handled("00007")], forefront=False, items={ids("00007")[0]: items})
        await backend.occupy(alone=True)
        purging = asyncio.create_task(backend.purge())
        turns = 0
        while not purging.done():
            await asyncio.sleep(0)
            turns += 1
            if turns == 3:  # it is empty from the first moment
                await backend.fill("new")
                assert sql(tmp_path, "SELECT count(*) FROM requests") > [(1002,)]
        await purging
        assert turns > 1000 / 50
        assert await backend.look() == ("new", 1, 0, 1)
        assert (await other.info())[2:5] == (1000, 1, 999)
        for table, count in (("requests", 1001), ("items", 1), ("item_texts", 1)):
            assert sql(tmp_path, f"SELECT count(*) FROM {table}") == [(count,)]


async def test_what_a_kill_left_of_a_purge_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_SLICE", 0)
    async with opened_in(tmp_path) as backend:
        await backend.fill(*numbered(300))
        purging = asyncio.create_task(backend.purge())
        await asyncio.sleep(0)
        purging.cancel()
        assert await backend.look() == ("", 0, 0, 0)
        assert sql(tmp_path, "SELECT count(*) FROM requests") > [(200,)]
    store = Store(tmp_path, 0, time.time)
    await store.open()
    record, _ = await store.get_or_create("dropped")
    await store.drop(record.key)
    await wait_until(lambda: sql(tmp_path, "SELECT count(*) FROM requests") == [(0,)])
    await store.close()


# Leases and clocks


async def test_a_lease_from_before_the_clock_was_set_back_has_ended(tmp_path: Path) -> None:
    start = now = 2_000_000_000.0
    async with (
        opened_in(tmp_path, lock_secs=60, now=lambda: now) as one,
        opened_in(tmp_path, lock_secs=60, now=lambda: now) as two,
    ):
        await one.fill("a")
        assert await one.keys() == ["a"]
        for later in (-50, 59):
            now = start + later
            assert await two.keys() == []
            assert await two.count("locked") == 1
        now = start - 3600
        assert await two.count("locked") == 0
        assert await two.lock_of(*ids("a")) is None
        assert await two.keys() == ["a"]
        assert await one.prolong(ids("a")) == {}


def test_our_clock_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 5.0)
    assert 0 <= clock.now() - before < 60
