"""Whatever is wrong with the file of embedded queues: one line that says what, and the way out."""

from __future__ import annotations

import os
import random
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from tests.support.backends import numbered
from tests.support.command_line import rq
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

PAGE = 4096


def overwrite(file: Path, first: int, content: Callable[[int], bytes]) -> None:
    """From this page on."""
    with file.open("r+b") as target:
        size = target.seek(0, os.SEEK_END) - first * PAGE
        target.seek(first * PAGE)
        target.write(content(size))


def sql(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_other_program(file: Path) -> None:
    file.unlink()
    sql(file, "CREATE TABLE theirs (x)")


class Damage(NamedTuple):
    do: Callable[[Path], Any]
    message: str
    cure: str
    unharmed: tuple[str, ...] = ()
    """The commands that do not meet it."""


RECOVER = ".recover | sqlite3 "
OTHER_FOLDER = "et APIFY_RQ_STORAGE_DIR to a"
DAMAGES = {
    "cut off": Damage(lambda file: os.truncate(file, 20 * PAGE), "malformed", RECOVER),
    "cut off in its head": Damage(lambda file: os.truncate(file, 50), "malformed", RECOVER),
    "random bytes": Damage(
        lambda file: overwrite(file, 0, random.Random(1).randbytes), "not a database", RECOVER
    ),
    "random pages": Damage(
        lambda file: overwrite(file, 20, random.Random(1).randbytes),
        "malformed",
        RECOVER,
        ("retry",),
    ),
    "zeros": Damage(lambda file: overwrite(file, 0, bytes), "not a database", RECOVER),
    "pages of zeros": Damage(
        lambda file: overwrite(file, 20, bytes), "malformed", RECOVER, ("retry",)
    ),
    "a text": Damage(lambda file: file.write_text("text" * PAGE), "not a database", OTHER_FOLDER),
    "a folder": Damage(replace_by_folder, "is a folder", OTHER_FOLDER),
    "of another program": Damage(replace_by_other_program, "another program", OTHER_FOLDER),
    "newer": Damage(lambda file: sql(file, "PRAGMA user_version = 9"), "newer version", "Upgrade"),
    "no version": Damage(lambda file: sql(file, "PRAGMA user_version = 0"), "format 0", RECOVER),
    "no table": Damage(lambda file: sql(file, "DROP TABLE requests"), "no such table", "a copy"),
    "not UTF-8": Damage(
        lambda file: sql(file, "UPDATE requests SET id = CAST(x'ff' AS TEXT) WHERE rowid = 1"),
        "column 'id'",
        "Repair that row",
        ("status", "add", "retry"),
    ),
}
NOT_OURS = ("zeros", "a text", "of another program", "newer", "no version")
COMMANDS = (("list",), ("export", "-"), ("status",), ("add", "http://x.com"), ("retry", "--failed"))


@pytest.mark.parametrize("kind", DAMAGES)
async def test_a_damaged_file(site: Site, queue: Queue, crawls: Crawls, kind: str) -> None:
    damage, file = DAMAGES[kind], queue.folder / FILE_NAME
    await queue.add(*numbered(300, url=f"{site.url}/page", payload="x" * 200))
    damage.do(file)
    before = file.is_file() and file.read_bytes()
    said = {}
    for name, *words in COMMANDS:
        done = await rq(queue, name, *words)
        assert "Traceback" not in done.err
        if name not in damage.unharmed:
            assert done.code == 1
            said[name] = done.err.removesuffix("\n")
    site.serve({"/": "page", "/page": "page"})
    crawl = await crawls.run(Links, site=site.url)
    assert not any(record.exc_info for record in crawl.log)
    assert crawl.reason == "apify_rq_unavailable"
    (said["crawl"],) = [one.getMessage() for one in crawl.log if one.levelname == "ERROR"]
    for line in said.values():
        assert line.count("\n") == 0
        for part in (str(file), damage.message, damage.cure):
            assert part in line
        assert "Nothing that was stored is lost" not in line
    if kind in NOT_OURS:
        assert file.read_bytes() == before


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk(site: Site, queue: Queue, crawls: Crawls) -> None:
    """What is stored stays, and a run with more room goes on."""
    file = queue.folder / FILE_NAME
    await queue.add(*numbered(100, url=f"{site.url}/page", payload="x" * 200))
    page = Held(links(*(f"/{n}" for n in range(1000))))
    site.serve({"/": page, "/page": "page"})
    urls = b"".join(b"http://example.com/%d\n" % n for n in range(1000))
    crawl = await crawls.start(Links, site=site.url)
    await wait_until(page.begun.is_set)
    with full_disk(200_000):
        done = await rq(queue, "add", "--file", "-", stdin=urls)
        page.go.set()
        await crawl.end()
    (line,) = [one.getMessage() for one in crawl.log if one.levelname == "ERROR"]
    for said in (done.err, line):
        assert str(file) in said
        assert "Look whether its disk is full" in said
        assert "Traceback" not in said
    assert crawl.reason == "apify_rq_unavailable"
    assert (await queue.info()).total >= 101
