"""Datasets and key-value stores by raw calls, where the official clients do not go."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from tests.support.first_edition import downgrade
from tests.support.queues import NAME, ServedQueue, serving
from tests.support.raw_calls import NOT_FOUND, Caller, called
from tests.support.waiting import wait_until

ITEMS = [{"n": n, "#scrapy": {"entry": "e"}} for n in range(5)]


@pytest.fixture
def http(api: Caller) -> Caller:
    return Caller(api.http, "/v2")


@pytest.fixture
def dataset(http: Caller) -> Caller:
    return Caller(http.http, f"/v2/datasets/{http('POST', '/datasets').data['id']}")


@pytest.fixture
def store(http: Caller) -> Caller:
    id = http("POST", "/key-value-stores").data["id"]
    return Caller(http.http, f"/v2/key-value-stores/{id}")


def listed(dataset: Caller, **query: object) -> list[object]:
    items: list[object] = dataset("GET", "/items", **query).json
    return items


def test_what_is_shown_of_items(dataset: Caller) -> None:
    assert dataset("POST", "/items", ITEMS[0]).status == 201
    assert dataset("POST", "/items", [*ITEMS[1:], {}, {"#only": "hidden"}]).json == {}
    counts = {"itemCount": 7, "cleanItemCount": 5}
    assert dataset("GET").data.items() >= counts.items()
    bare = [{"n": n} for n in range(5)]
    for query, expected in (
        ({}, [*ITEMS, {}, {"#only": "hidden"}]),
        ({"clean": 1}, bare),
        ({"skipHidden": 1}, [*bare, {}, {}]),
        ({"skipEmpty": 1}, [*ITEMS, {"#only": "hidden"}]),
        ({"fields": "n,#only", "limit": 2}, bare[:2]),
        ({"omit": "#scrapy", "offset": 3, "limit": 2}, bare[3:]),
        ({"desc": 1, "offset": 3, "limit": 3, "clean": 1}, bare[3:0:-1]),
        ({"offset": 7}, []),
        ({"offset": 70, "desc": 1}, []),
    ):
        assert listed(dataset, **query) == expected, query
    with dataset.http.stream("GET", f"{dataset.path}/items?format=jsonl&clean=1") as answer:
        assert [json.loads(line) for line in answer.iter_lines()] == bare
    with dataset.http.stream("GET", f"{dataset.path}/items?format=jsonl&limit=1&offset=9") as none:
        assert none.read() == b""


def test_however_the_items_are_written(dataset: Caller) -> None:
    for body in (b" [ ] ", b' { "a" : [ 1 , { } ] } ', b'\n[\n{"b":\n"\\ud800,]"}\t,{}\r\n]\n'):
        assert dataset("POST", "/items", content=body).status == 201, body
    assert listed(dataset) == [{"a": [1, {}]}, {"b": "\ufffd,]"}, {}]


def test_unwinding(dataset: Caller) -> None:
    parts = [{"b": 1}, {"b": 2, "c": [{"d": 1}, 5]}]
    dataset("POST", "/items", [{"a": 0, "l": parts}, {"a": 1, "l": {"b": 3}}, {"a": 2, "l": 4}])
    assert listed(dataset, unwind="l,c") == [
        {"a": 0, "b": 1},
        {"a": 0, "b": 2, "d": 1},
        {"a": 0, "b": 2, "c": 5},
        {"a": 1, "b": 3},
        {"a": 2, "l": 4},
    ]


def test_a_page_says_where_it_is(dataset: Caller) -> None:
    dataset("POST", "/items", ITEMS)
    for query, expected in (
        ({}, ("5", "0", "999999999999", "5", "false")),
        # Also items that are skipped count, since the clients go on behind them.
        ({"offset": 3, "limit": 10, "desc": 1, "fields": "x", "skipEmpty": 1}, None),
    ):
        headers = dataset("GET", "/items", **query).headers
        names = ("Total", "Offset", "Limit", "Count", "Desc")
        found = tuple(headers[f"X-Apify-Pagination-{name}"] for name in names)
        assert found == (expected or ("5", "3", "10", "2", "true"))


@pytest.mark.parametrize("size", [10, 70_000])
def test_items_of_all_sizes_come_back(dataset: Caller, size: int) -> None:
    """Rows of the file hold many small items, or a large one."""
    items = [{"n": n, "text": "ž" * size} for n in range(2_000_000 // (size + 1000))]
    for start in range(0, len(items), 10):
        dataset("POST", "/items", items[start : start + 10])
    assert listed(dataset) == items
    for offset in (0, 1, 24, len(items) - 1):
        assert listed(dataset, offset=offset, limit=2) == items[offset : offset + 2]
        assert listed(dataset, offset=offset, limit=2, desc=1) == items[::-1][offset : offset + 2]


WRONG = (
    b"""1|"a"|[1]|[[]]|[{}, null]|{||[|[{}|[{},]|[{} {}]|[{}]]|[{}],|{}{}|{"a": NaN}|{"a": 1e400}"""
)


def test_items_are_objects(dataset: Caller) -> None:
    for body in (*WRONG.split(b"|"), b'[{"a": "\xff"}]'):
        assert dataset("POST", "/items", content=body).status == 400, body
        assert dataset("GET").data["itemCount"] == 0


def test_limits(dataset: Caller, store: Caller) -> None:
    body = b'{"a":"%s"}' % (b"x" * 9 * 1024 * 1024)
    too_large = (413, "request-too-large")
    assert dataset("POST", "/items", content=body).error == too_large
    assert store("PUT", "/records/a", content=body).error == too_large
    many = [b"{}"] * 600_000
    assert dataset("POST", "/items", content=b"[%s]" % b",".join(many)).error == too_large
    one = b'[{"a": [%s]}]' % b",".join([b"1"] * 200_000)
    assert dataset("POST", "/items", content=one).error == too_large
    for query in (
        {"format": "xml"},
        {"flatten": "a"},
        {"view": "a"},
        {"limit": -1},
        {"unwind": "a," * 11},
    ):
        assert dataset("GET", "/items", **query).status == 400, query


def test_records(store: Caller) -> None:
    kinds = {"a.json": "application/json", "b": "text/html; charset=utf-8", "c'(!)": "image/png"}
    for key, kind in kinds.items():
        sent = {"Content-Type": kind}
        for body in (b"old", key.encode()):
            done = store("PUT", f"/records/{key}", content=body, headers=sent)
            assert done.status == 201
    for key, kind in kinds.items():
        for verb, body in (("GET", key.encode()), ("HEAD", b"")):
            url = f"{store.path}/records/{key}?attachment=1"
            answer = store.http.request(verb, url)
            assert (answer.status_code, answer.content) == (200, body)
            assert answer.headers["Content-Type"] == kind
            assert answer.headers["Content-Length"] == str(len(key))
            assert answer.headers["Content-Security-Policy"] == "sandbox"
            assert answer.headers["Content-Disposition"] == f'attachment; filename="{key}"'
    assert store("DELETE", "/records/b").status == 204
    for verb in ("GET", "HEAD"):
        assert store.http.request(verb, f"{store.path}/records/b").status_code == 404
    assert store("GET", "/records/b").error == NOT_FOUND
    for wrong in ("a b", "a%2Fb", "%C3%A4", "k" * 257):
        assert store("PUT", f"/records/{wrong}", content=b"").error == (400, "invalid-value")
    for kind in (b"\xff", b"a" * 257):
        refused = store("PUT", "/records/a", content=b"", headers={"Content-Type": kind})
        assert refused.error == (400, "invalid-content-type-header")


def test_keys(store: Caller) -> None:
    names = [f"a-{n}" for n in range(3)] + [f"b-{n}" for n in range(3)]
    for name in reversed(names):
        store("PUT", f"/records/{name}", content=name.encode())
    page = store("GET", "/keys", limit=2, exclusiveStartKey="a-0", prefix="a").data
    url = str(store.http.base_url.join(f"{store.path}/records/a-1"))
    assert page["items"][0] == {"key": "a-1", "size": 3, "recordPublicUrl": url}
    assert {**page, "items": [one["key"] for one in page["items"]]} == {
        "items": ["a-1", "a-2"],
        "count": 2,
        "limit": 2,
        "exclusiveStartKey": "a-0",
        "isTruncated": False,
        "nextExclusiveStartKey": None,
    }
    page = store("GET", "/keys", limit=4).data
    assert (page["isTruncated"], page["nextExclusiveStartKey"]) == (True, "b-0")


async def test_what_was_in_a_storage_is_deleted(
    served: ServedQueue, dataset: Caller, store: Caller
) -> None:
    def rows() -> int:
        with closing(sqlite3.connect(served.folder / FILE_NAME)) as db:
            tables = ("dataset_items", "store_records", "storages")
            return sum(
                db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
            )

    for number in range(200):
        store("PUT", f"/records/{number}", content=b"x")
    dataset("POST", "/items", ITEMS)
    assert rows() == 203
    for storage in (store, dataset):
        assert storage("DELETE").status == 204
    await wait_until(lambda: rows() == 0)


@pytest.mark.parametrize("kind", ["datasets", "key-value-stores"])
def test_storages(http: Caller, kind: str) -> None:
    made = [http("POST", f"/{kind}", name="made") for _ in range(2)]
    assert [answer.status for answer in made] == [201, 200]
    id = made[0].data["id"]
    assert http("GET", f"/{kind}/~made").data["id"] == made[1].data["id"] == id
    other = http("POST", f"/{kind}").data["id"]
    assert http("PUT", f"/{kind}/{other}", {"name": "made"}).error == (400, "name-not-unique")
    assert http("POST", f"/{kind}", name="a_b").error == (400, "invalid-value")
    page = http("GET", f"/{kind}", unnamed=1, desc=1).data
    assert [(one["id"], one["name"]) for one in page["items"]] == [(other, ""), (id, "made")]
    assert page["total"] == 2
    wrong = {"datasets": "key-value-stores", "key-value-stores": "datasets"}[kind]
    assert http("GET", f"/{wrong}/{id}").error == NOT_FOUND
    assert http("DELETE", f"/{kind}/{id}").status == 204
    for verb in ("GET", "DELETE"):
        assert http(verb, f"/{kind}/{id}").error == NOT_FOUND
    assert http("GET", f"/{kind}/{other}/unknown").error == (404, "page-not-found")


def test_the_token_is_checked(served: ServedQueue, dataset: Caller, store: Caller) -> None:
    with called(served, headers={}) as anybody:
        for path in (f"{dataset.path}/items", f"{store.path}/keys", "/v2/datasets"):
            answer = anybody.http.get(path)
            assert answer.status_code == 401, path


def test_a_list_that_cannot_be_completed_does_not_look_complete(dataset: Caller) -> None:
    """Its status has been sent by then, so the connection is cut."""
    for _ in range(5):
        dataset("POST", "/items", [{"text": "x" * 1000}] * 4000)
    url = f"{dataset.path}/items"
    with dataset.http.stream("GET", url) as answer:
        pieces = answer.iter_bytes(1000)
        assert next(pieces).startswith(b'[{"text"')
        assert dataset("DELETE").status == 204
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    assert dataset("GET", "/items").error == NOT_FOUND


def downgrade_to_2(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        for table in ("dataset_items", "store_records", "runs", "storages"):
            db.execute(f"DROP TABLE {table}")
        db.execute("ALTER TABLE requests DROP COLUMN locked_at")
        db.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize("older", [downgrade_to_2, downgrade])
def test_an_older_file_gets_the_tables(tmp_path: Path, older: Callable[[Path], None]) -> None:
    with serving(tmp_path) as served, called(served) as api:
        api("POST", name=NAME)
        Caller(api.http, f"{api.path}/~{NAME}").add("a")
    older(tmp_path)
    for count in (1, 2):
        with serving(tmp_path) as served, called(served) as api:
            assert Caller(api.http, f"{api.path}/~{NAME}").head() == ["a"]
            dataset = Caller(api.http, f"/v2/datasets/{named(api)}")
            dataset("POST", "/items", ITEMS[0])
            assert listed(dataset) == ITEMS[:1] * count


def named(api: Caller) -> str:
    id: str = Caller(api.http, "/v2/datasets")("POST", name="kept").data["id"]
    return id
