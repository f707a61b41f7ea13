"""The server's file: rows that another program wrote, damage, and others that write meanwhile."""

from __future__ import annotations

import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.queues import ServedQueue
from tests.support.raw_calls import Caller, one, request

READS = ("", "/head", "/requests", "/requests?filter=pending", one("a"))


def connected(served: ServedQueue) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(served.folder / FILE_NAME, isolation_level=None))


@pytest.mark.parametrize("text", ["'}{ no JSON'", "'[1]'", "CAST(x'7b2261223a22ff227d' AS TEXT)"])
def test_what_no_entry_can_be_is_shown_as_one(
    served: ServedQueue, remote: Caller, text: str
) -> None:
    """As all programs that read a queue expect it, and not as a 500 or as no JSON."""
    remote.add("a", "b")
    with connected(served) as db:
        db.execute(f"UPDATE requests SET json = {text} WHERE rowid = 1")
    found = remote.get("a")
    assert found["id"] == request_id("a")
    assert "scrapy_unreadable" in found["userData"]
    items = [remote("GET", path).data["items"] for path in ("/head", "/requests")]
    items.append(remote("POST", "/head/lock", lockSecs=60, clientKey="me").data["items"])
    for listed in items:
        assert {item["id"] for item in listed} == {request_id("a"), request_id("b")}
    assert remote.get("a")["lockByClient"] == "me"


def test_a_damaged_file_is_no_bug(
    served: ServedQueue, api: Caller, remote: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    remote.add("a")
    with connected(served) as db:
        db.execute("ALTER TABLE requests RENAME TO gone")
        answers = [remote("GET", path) for path in READS[1:]]
        answers += [remote("POST", "/head/lock", lockSecs=9), remote.put("a"), remote.add("b")]
        db.execute("ALTER TABLE queues RENAME TO gone_too")
        answers += [remote("GET"), api("GET"), api("POST", name="new")]
    for answer in answers:
        assert answer.error == (500, "internal-server-error")
        assert FILE_NAME in answer.message
        assert "Put back a copy" in answer.message
    assert not any(record.exc_info for record in caplog.records)
    # Whether lines of less weight are there, too, depends on the tests before this one.
    assert logging.ERROR in [record.levelno for record in caplog.records]


def test_a_file_that_is_replaced_by_something_else(
    served: ServedQueue, api: Caller, remote: Caller
) -> None:
    for file in served.folder.iterdir():
        file.unlink()
    (served.folder / FILE_NAME).write_text("something else" * 1000)
    for answer in (remote("GET"), api("GET"), api("POST", name="new")):
        assert answer.error == (500, "internal-server-error")
        assert "not a database" in answer.message


def test_reads_while_another_program_writes(served: ServedQueue, remote: Caller) -> None:
    remote.add("a")
    stop = threading.Event()

    def write() -> None:
        with connected(served) as db:
            while not stop.is_set():
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE queues SET writes = writes + 1")
                stop.wait(0.002)
                db.execute("COMMIT")
                stop.wait(0.002)  # else nobody else might ever come to write

    with ThreadPoolExecutor(9) as threads:
        writing = threads.submit(write)
        paths = [path for path in READS for _ in range(8)]
        found = list(threads.map(lambda path: remote("GET", path).status, paths))
        stop.set()
        writing.result()
    assert set(found) == {200}
    assert remote("POST", "/requests", request("b")).status == 201
