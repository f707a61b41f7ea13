"""Reading an embedded queue that one may not change, or that others write meanwhile."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scrapy_apify_rq.backends.sqlite.database import FILE_NAME
from scrapy_apify_rq.errors import BackendError
from tests.support.backends import Sqlite, handled, keys_of, numbered, opened
from tests.support.command_line import rq
from tests.support.first_edition import downgrade
from tests.support.queues import NAME, Queue

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user can look into, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        path.chmod(0o755)


@contextmanager
def another_user(folder: Path, mode: int = 0o444, folder_mode: int = 0o555) -> Iterator[None]:
    """Nothing in the folder can be changed, unless the modes say otherwise."""
    for file in folder.iterdir():
        file.chmod(mode)
    folder.chmod(folder_mode)
    system = ctypes.CDLL(None)
    is_root = os.geteuid() == 0  # whom no mode stops
    if is_root:
        system.setfsuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            system.setfsuid(0)
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def crawl_of(folder: Path) -> Sqlite:
    return Sqlite(folder, name=NAME)


def reader_of(folder: Path) -> Sqlite:
    return Sqlite(folder, name=NAME, purpose="read")


async def everything(reader: Sqlite) -> list[str]:
    assert (await reader.info()).pending == await reader.count("pending")
    return sorted(keys_of([entry async for entry in reader.list()]))


async def test_in_a_folder_of_another_user(folder: Path) -> None:
    async with opened(crawl_of(folder)) as crawl:
        await crawl.fill("a", handled("b"))
        await crawl.save_records({"x": b"y"})
        # Its latest changes are in the log, which the owner has to let others read, too.
        with another_user(folder):
            reader = reader_of(folder)
            assert await reader.find()
            assert await everything(reader) == ["a", "b"]
            await reader.close()
    with another_user(folder):
        before = contents(folder)
        assert list(before) == [FILE_NAME]
        reader = reader_of(folder)
        assert await reader.find()
        assert await everything(reader) == ["a", "b"]
        assert await reader.load_records("") == {"x": b"y"}
        with pytest.raises(BackendError, match=r"readonly.* Check who may read and write"):
            await reader.fill("c")
        await reader.close()
        assert contents(folder) == before


async def test_a_crawl_that_begins_to_write_meanwhile(folder: Path) -> None:
    async with opened(crawl_of(folder)) as crawl:
        await crawl.fill(*numbered(250))
    reader = reader_of(folder)
    assert await reader.find()
    entries = reader.list()
    seen = [await anext(entries)]
    for number in range(3):  # it comes and goes, and stays at last
        async with opened(crawl_of(folder)) as crawl:
            await crawl.fill(*numbered(50, 250 + number * 50))
            await crawl.ack(f"{number:05}")
    async with opened(crawl_of(folder)) as crawl:
        await crawl.fill("last")
        seen += [entry async for entry in entries]
        assert sorted(keys_of(seen)) == [*keys_of(numbered(400)), "last"]
        assert (await reader.info())[2:5] == (401, 3, 398)
        await crawl.fill("later")
        assert len(await everything(reader)) == 402
    await reader.close()


@pytest.mark.parametrize(
    ("modes", "is_old", "message"),
    [
        ((0o444, 0), False, "Permission denied.. Check who"),
        ((0, 0o555), False, "unable to open .* Check who may read and write the file"),
        ((), True, "older version of scrapy-apify-rq .format 1, now it is 4., and you may not"),
    ],
)
async def test_what_cannot_be_read(
    folder: Path, modes: tuple[int, ...], is_old: bool, message: str
) -> None:
    async with opened(crawl_of(folder)) as crawl:
        await crawl.fill("a")
    if is_old:
        downgrade(folder)
    with another_user(folder, *modes), pytest.raises(BackendError, match=message):
        await reader_of(folder).find()


async def test_commands_that_read_change_nothing(queue: Queue) -> None:
    failed = handled("b", error_messages=["no"])
    await queue.add(*numbered(2), failed)
    before = contents(queue.folder)
    names = ("status", "list", "errors", "export -", "items", f"show {failed.id}")
    for words in (*names, "retry --failed --dry-run"):
        done = await rq(queue, *words.split())
        assert done.code == 0, done.err
        assert contents(queue.folder) == before
