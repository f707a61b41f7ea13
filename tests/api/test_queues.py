"""Queues as a whole, by raw calls: their names, lists, clients and bills."""

from __future__ import annotations

import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.queues import NAME, ServedQueue, serving
from tests.support.raw_calls import DATE, NOT_FOUND, Caller, called, handled, one, request
from tests.support.waiting import wait_until


def test_named_queue_is_made_once(api: Caller) -> None:
    created, again = (api("POST", name="made-once") for _ in range(2))
    id = created.data["id"]
    assert (created.status, again.status) == (201, 200)
    assert re.fullmatch(r"[a-zA-Z0-9]{17}", id)
    assert created.headers["Location"] == f"{api.http.base_url}{api.path}/{id}"
    paths = ("/~made-once", "/somebody~made-once")
    assert [again.data["id"], *(api("GET", path).data["id"] for path in paths)] == [id] * 3


def test_queues_are_listed_by_creation(api: Caller) -> None:
    for number in range(3):
        api("POST", name=f"listed-{number}")
    first, second = (api("POST").data for _ in range(2))
    assert first["name"] is None
    assert first["id"] != second["id"]
    page = api("GET", desc=1, limit=2, offset=1).data
    assert [item["name"] for item in page["items"]] == ["listed-1", "listed-0"]
    assert (page["count"], page["limit"], page["offset"], page["desc"]) == (2, 2, 1, True)
    assert [api("GET").data["total"], api("GET", unnamed="true").data["total"]] == [3, 5]
    assert api("GET", ownership="sharedWithMe").data["items"] == []


def test_queue_is_renamed_and_deleted(api: Caller, remote: Caller) -> None:
    new = {"name": "renamed", "generalAccess": "RESTRICTED", "title": "T"}
    before = remote("GET").data
    assert remote("PUT", "", new).data.items() >= {**new, "id": before["id"]}.items()
    assert remote("PUT", "", {"name": None}).data["name"] is None
    gone = remote("DELETE")
    assert (gone.status, gone.json) == (204, None)
    missing = remote("GET")
    assert (missing.error, missing.message) == (NOT_FOUND, "Request Queue was not found")
    assert remote("POST", "/requests", request("a")).error == NOT_FOUND
    assert remote("DELETE").status == 404


def test_names(api: Caller, remote: Caller) -> None:
    api("POST", name="taken")
    assert remote("PUT", "", {"name": "taken"}).error == (400, "name-not-unique")
    for wrong in ("-a", "a-", "a_b", "a~b", "ä", "n" * 64):
        for answer in (api("POST", name=wrong), remote("PUT", "", {"name": wrong})):
            assert answer.error == (400, "invalid-value"), wrong


@pytest.mark.parametrize(
    ("clients", "several"),
    [
        (["one", "one", "one"], False),
        (["one", "two"], True),
        (["one", None], True),
        ([None], False),
        ([None, None], True),
        (["one", "two", "one"], True),
    ],
)
def test_clients_are_told_apart_by_their_keys(
    remote: Caller, clients: list[str | None], several: bool
) -> None:
    for client in clients:
        head = remote("GET", "/head", **({"clientKey": client} if client else {})).data
        remote("GET")
        remote("GET", one("a"))
    assert head["hadMultipleClients"] is several
    assert remote("GET").data["hadMultipleClients"] is several


def test_client_key_has_1_to_32_characters(remote: Caller) -> None:
    for key in ("", "k" * 33):
        assert remote("GET", "/head", clientKey=key).error == (400, "invalid-client-key")
    assert remote("GET", "/head", clientKey="k" * 32).status == 200


def test_statistics_count_what_is_billed(remote: Caller) -> None:
    def assert_stats(*expected: int) -> None:
        stats = remote("GET").data["stats"]
        names = ("readCount", "writeCount", "deleteCount", "headItemReadCount")
        assert tuple(stats[name] for name in names) == expected

    remote.add("a", "b", "c")
    assert_stats(0, 3, 0, 0)
    remote.add("a")
    assert_stats(0, 4, 0, 0)
    remote.head(limit=2)
    remote.get("a")
    remote("GET", "/requests")
    assert_stats(4, 4, 0, 2)
    remote.lock(limit=2)
    assert_stats(4, 6, 0, 2)
    remote("PUT", one("a", "/lock"), clientKey="me", lockSecs=60)
    remote.put("a", handled("a"))
    assert_stats(4, 8, 0, 2)
    remote("DELETE", one("c"))
    assert_stats(4, 8, 1, 2)


def test_reading_waits_for_nobody(served: ServedQueue, remote: Caller) -> None:
    remote.add("a")
    remote.head()
    with closing(sqlite3.connect(served.folder / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor() as threads:
            answers = list(threads.map(lambda _: remote("GET"), range(3)))
        other.execute("ROLLBACK")
    assert [answer.data["stats"]["headItemReadCount"] for answer in answers] == [1] * 3


async def test_changes_are_dated(remote: Caller) -> None:
    def dates() -> tuple[str, str]:
        data = remote("GET").data
        assert all(
            DATE.fullmatch(data[f"{name}At"]) for name in ("created", "modified", "accessed")
        )
        return data["modifiedAt"], data["accessedAt"]

    modified, accessed = dates()
    await wait_until(lambda: dates()[1] > accessed)
    assert dates()[0] == modified
    assert remote.lock() == []
    assert dates()[0] == modified
    remote.add("a")
    assert dates()[0] > modified


async def test_queues_outlive_the_server_and_are_those_of_crawls(tmp_path: Path) -> None:
    with serving(tmp_path) as served, called(served, f"/~{NAME}") as remote:
        remote.http.post("/v2/request-queues", params={"name": NAME})
        remote.add("a", "b")
        remote.get("a")
    backend = SqliteBackend(tmp_path, name=NAME)
    await backend.open()
    claim = await backend.claim(10, set(), 2**24)
    assert [claimed.entry.unique_key for claimed in claim.entries] == ["a", "b"]
    entry = Entry(id=request_id("c"), unique_key="c", url="https://example.com/c")
    await backend.add([entry], forefront=True)
    await backend.close()
    with serving(tmp_path) as served, called(served, f"/~{NAME}") as remote:
        assert remote.head() == ["c", "a", "b"]
        assert remote("GET").data["stats"].items() >= {("writeCount", 3), ("readCount", 1)}


def test_a_file_that_is_deleted_takes_its_queues_along(
    served: ServedQueue, api: Caller, remote: Caller
) -> None:
    """The server goes on with a new one, and does not answer from what only it can still see."""
    remote.add("a")
    shutil.rmtree(served.folder)
    assert remote("GET").error == NOT_FOUND
    assert api("GET", unnamed="true").data["total"] == 0
    shutil.rmtree(served.folder)
    assert (api("POST", name="new").status, api("GET").data["total"]) == (201, 1)
