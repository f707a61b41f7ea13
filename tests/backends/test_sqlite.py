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

from scrapy_apify_rq.backends.base import EntryItems, LooseItems
from scrapy_apify_rq.backends.sqlite import database
from scrapy_apify_rq.backends.sqlite.database import FILE_NAME, connect
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError, ConfigError
from tests.support.backends import HANDLED_AT, PLENTY, Sqlite, entry, handled, ids, numbered, opened
from tests.support.first_edition import VERSION_1
from tests.support.queues import NAME
from tests.support.waiting import run_async


def sql(folder: Path, statement: str, *values: Any) -> list[Any]:
    """Do by hand what no backend would."""
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def opened_in(folder: Path, **options: Any) -> Any:
    return opened(Sqlite(folder, **{"name": NAME, **options}))


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

    def remember(folder: Path) -> sqlite3.Connection:
        made.append(connect(folder))
        return made[-1]

    monkeypatch.setattr(database, "connect", remember)
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
    with pytest.raises(ConfigError, match=r"file/storage/.*APIFY_RQ_STORAGE_DIR"):
        connect(tmp_path / "file" / "storage")
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match=f"{FILE_NAME}.*APIFY_RQ_STORAGE_DIR"):
        connect(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain text, and a good deal of it\n" * 100, "not a database"),
        (b"\0" * 4096, "not a database"),
        ("CREATE TABLE theirs (x)", "another program"),
        (
            "PRAGMA user_version = 3",
            "newer version of scrapy-apify-rq (format 3, this one reads 2). Upgrade",
        ),
    ],
)
def test_a_file_that_is_not_ours_stays_as_it_is(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    file = tmp_path / FILE_NAME
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        if "PRAGMA" in content:
            connect(tmp_path).close()
        sql(tmp_path, content)
    before = file.read_bytes()
    with pytest.raises(ConfigError) as error:
        connect(tmp_path)
    for part in (message, str(file), "APIFY_RQ_STORAGE_DIR"):
        assert part in str(error.value)
    assert file.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


async def test_a_file_that_is_damaged_later(tmp_path: Path) -> None:
    async with opened_in(tmp_path) as backend:
        await backend.fill(*numbered(1000))
    with (tmp_path / FILE_NAME).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(40 * 4096)
        file.write(b"\xa5" * (size - 40 * 4096))
    async with opened_in(tmp_path) as backend:
        with pytest.raises(BackendError, match=FILE_NAME):
            await backend.take(1000)
        with pytest.raises(BackendError, match=FILE_NAME):
            await backend.listed()


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


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    """From its first byte on, whatever the umask; later it is the owner's decision."""
    umask = os.umask(0)
    try:
        with closing(connect(tmp_path)) as db:
            db.execute("INSERT INTO occupants VALUES (1, 1, '', 1)")
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    assert modes == {f"{FILE_NAME}{end}": 0o600 for end in ("", "-wal", "-shm")}
    (tmp_path / FILE_NAME).chmod(0o660)
    connect(tmp_path).close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o660


# What others do to a queue in use


GONE: dict[str, Callable[[Path], Any]] = {
    "the file is deleted": lambda folder: shutil.rmtree(folder),
    "the file is replaced": lambda folder: (shutil.rmtree(folder), connect(folder).close()),
    "the queue is deleted": lambda folder: drop_and_create(folder),
    "the queue is emptied": lambda folder: purge(folder),
}


async def drop_and_create(folder: Path) -> None:
    """The new queue must not be taken for the old one."""
    store = Store(folder, 0, time.time)
    await store.open()
    record = store.find(name=NAME)
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
        connect(tmp_path).close()
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
    assert sum("ORDER BY position" in text for text in heads) == 6


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
    async with opened(Sqlite(tmp_path, name=NAME, lock_secs=60, client_key="x")) as x:
        await x.fill("a", "b", "c")
        await x.items.save(spills[:2])
        async with opened(Sqlite(tmp_path, name=NAME, lock_secs=60, client_key="y")) as y:
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
    async with opened(Sqlite(tmp_path, name=NAME)) as backend:
        await backend.fill("a")
        (id,) = ids("a")
        for _ in range(8):
            await backend.items.save([LooseItems(["x" * 1000] * 256, "spill", id)])
        query = "SELECT max(length(json)), count(*) FROM item_texts"
        largest, count = backend._database.connection.execute(query).fetchone()
        assert (largest < 2**18, count) == (True, 8)
        await backend.update([handled("a")], forefront=False, items={id: EntryItems([], "spill")})
        assert len([one async for one in backend.items.read()]) == 8 * 256
