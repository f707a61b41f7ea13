"""Requests and locks, by raw calls: what Apify's own clients, beside this, do not send or show."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import datetime
from typing import Any

import httpx
import pytest

from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.server import requests
from tests.support.raw_calls import DATE, NOT_FOUND, Answer, Caller, handled, keys, one, request
from tests.support.waiting import wait_until

NOT_HELD = (400, "request-handled-or-locked")
INVALID = (400, "invalid-value")


def test_ids_are_those_of_the_platform(remote: Caller) -> None:
    added = remote("POST", "/requests", request("http://example.com"))
    assert added.status == 201
    assert added.data["requestId"] == "8OamqXBCpPHxyH9"


def test_null_is_like_absent(remote: Caller) -> None:
    names = ("payload", "headers", "userData", "errorMessages", "handledAt", "method")
    assert remote("POST", "/requests", request("a", **dict.fromkeys(names))).status == 201
    assert remote.get("a")["method"] == "GET"


def test_odd_values_do_not_cost_the_batch(remote: Caller) -> None:
    odd = {"n": 1, "b": True, "list": ["x", 2, None], "cookie": ["a=1", "b=2"], "none": None}
    batch = [request("a", headers=odd), request("b\ud800", userData={"\udc00": "\ud83d"})]
    assert remote("POST", "/requests/batch", batch).status == 201
    texts = {"n": "1", "b": "true", "list": "x, 2", "cookie": "a=1; b=2"}
    assert remote.get("a")["headers"] == texts
    stored = remote.get("b\ufffd")
    assert (stored["uniqueKey"], stored["userData"]) == ("b\ufffd", {"\ufffd": "\ufffd"})
    assert remote.head() == ["a", "b\ufffd"]


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_a_number_beyond_pythons_stays_one(remote: Caller, text: str) -> None:
    """Also where a lone surrogate is mended. A word that is not JSON is refused, not made null."""
    found: dict[str, Any] = {"n": math.inf, "text": text and "\ufffd"}
    fields = request("a", userData={"n": "@", "text": text}, payload={"n": "@", "text": text})
    for verb, path, status in (("POST", "", 201), ("PUT", f"/{request_id('a')}", 200)):
        for number, expected in (("1e400", status), ("NaN", 400), ("Infinity", 400)):
            body = json.dumps(fields).replace('"@"', number)
            assert remote(verb, f"/requests{path}", content=body.encode()).status == expected
    stored = remote.get("a")
    assert (stored["userData"], stored["payload"]) == (found, found)
    assert "Infinity" not in remote.http.get(f"{remote.path}/requests/{request_id('a')}").text


WRONG = [
    {"url": "https://example.com"},
    {"uniqueKey": "b"},
    request("b", userData=[1]),
    request("b", handledAt="soon"),
    request("b", handledAt=1),
    request("b", handledAt="9999-12-31T23:59:59-23:59"),
    request("b", handledAt="0001-01-01T00:00:00+14:00"),
    request("b", method="BREW"),
    request("b", headers=["n: 1"]),
    request("b", retryCount="1"),
    request("b", id=request_id("b")),
    "b",
]


def test_wrong_batch_stores_nothing(remote: Caller) -> None:
    bodies: list[tuple[Any, str]] = [
        ([], "invalid-value"),
        ([request(str(n)) for n in range(26)], "invalid-value"),
        ([request("a"), request("a")], "request-queue-duplicate-requests"),
        *(([request("a"), wrong], "invalid-value") for wrong in WRONG),
        (request("a"), "invalid-request"),
    ]
    for body, error in bodies:
        assert remote("POST", "/requests/batch", body).error == (400, error), body
        assert remote.counts() == (0, 0, 0)


def test_limits_are_cut_to_their_maximum(remote: Caller) -> None:
    assert remote("GET", "/head", limit=5000).data["limit"] == 1000
    assert remote("GET", "/requests", limit=50_000).data["limit"] == 10_000
    assert remote("POST", "/head/lock", limit=100, lockSecs=1).data["limit"] == 25


@pytest.mark.parametrize("date", ["2026-01-02T05:04:05.678+02:00", "2026-01-02T03:04:05.678901"])
def test_dates_are_kept_in_utc(remote: Caller, date: str) -> None:
    remote.put("a", request("a", handledAt=date))
    assert remote.get("a")["handledAt"] == "2026-01-02T03:04:05.678Z"


def test_id_must_be_that_of_the_key(remote: Caller) -> None:
    assert remote.put("a", request("b")).error == (400, "request-id-invalid")
    assert remote.put("a", {"uniqueKey": "a"}).error == INVALID
    remote.put("a", request("a", id="whatever"))
    assert remote.get("a")["id"] == request_id("a")


def test_unknown_request_is_not_found(remote: Caller) -> None:
    answer = remote("GET", one("a"))
    assert (answer.error, answer.message) == (NOT_FOUND, "Request was not found")


def test_pages_show_each_request_once(remote: Caller) -> None:
    names = {f"key-{n}" for n in range(7)}
    remote.add(*names)
    remote.put("key-3", handled("key-3"))
    pages = [remote("GET", "/requests", limit=3)]
    while cursor := pages[-1].data.get("nextCursor"):
        pages.append(remote("GET", "/requests", limit=3, cursor=cursor))
        assert pages[-1].data["cursor"] == cursor
    assert "cursor" not in pages[0].data
    assert [len(keys(page)) for page in pages] == [3, 3, 1]
    assert {key for page in pages for key in keys(page)} == names
    in_order = ["key-0", "key-1", "key-2", "key-4", "key-5", "key-6"]
    for name in in_order:
        remote.put(name, request(name))
    remote.put("key-6", request("key-6"), forefront="true")
    some = remote("GET", "/requests", limit=4, filter="pending")
    cursor = some.data["nextCursor"]
    rest = remote("GET", "/requests", filter="pending", cursor=cursor)
    assert keys(some) + keys(rest) == ["key-6", *in_order[:-1]]
    for wrong in ({"cursor": cursor}, {"cursor": pages[0].data["nextCursor"], "filter": "locked"}):
        assert remote("GET", "/requests", **wrong).error == (400, "invalid-parameter")
    first = remote("GET", "/requests", limit=1).data["items"][0]["id"]
    rest = remote("GET", "/requests", exclusiveStartId=first).data
    assert (len(rest["items"]), rest["exclusiveStartId"]) == (6, first)


def test_page_is_cut_where_it_gets_too_long(
    remote: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_PAGE_BYTES", 10_000)
    for name in "abcde":
        remote("POST", "/requests", request(name, payload="x" * (11_000 if name == "a" else 4000)))
    found, pages, more = [], 0, {"filter": "pending"}
    while more:
        page = remote("GET", "/requests", **more)
        found += keys(page)
        pages += 1
        cursor = page.data.get("nextCursor")
        more = {"filter": "pending", "cursor": cursor} if cursor else {}
    assert sorted(found) == list("abcde")
    assert 3 <= pages <= 4


def test_deleting(remote: Caller) -> None:
    remote.add("a", "b", "c", "d")
    for _ in range(2):
        gone = remote("DELETE", one("a"))
        assert (gone.status, gone.json) == (204, None)
    named = [{"id": request_id("b")}, {"uniqueKey": "c"}, {"uniqueKey": "unknown"}]
    answer = remote("DELETE", "/requests/batch", named)
    assert answer.status == 200
    assert answer.data == {"processedRequests": named, "unprocessedRequests": []}
    for wrong in ({}, {"id": 1}):
        assert remote("DELETE", "/requests/batch", [wrong]).error == INVALID
    assert remote.counts() == (1, 0, 1)


def test_lock_is_shown(remote: Caller) -> None:
    remote.add("a", "b", "c")
    answer = remote("POST", "/head/lock", clientKey="me", lockSecs=60, limit=2)
    assert answer.status == 201
    data = answer.data
    assert all(DATE.fullmatch(item["lockExpiresAt"]) for item in data["items"])
    assert (data["lockSecs"], data["clientKey"]) == (60, "me")
    stored = remote.get("a")
    assert stored["lockByClient"] == "me"
    assert stored["lockExpiresAt"] == data["items"][0]["lockExpiresAt"]
    assert remote.lock("me") == ["c"]
    assert remote.lock("you") == []
    assert remote.head() == ["a", "b", "c"]
    assert remote.counts() == (3, 0, 3)
    remote.put("b", handled("b"), clientKey="you")
    assert "lockByClient" not in remote.get("b")


async def test_expired_lock_gives_the_request_back_to_its_place(remote: Caller) -> None:
    remote.add("a", "b")
    assert remote.lock("me", secs=0.2, limit=1) == ["a"]
    await wait_until(lambda: "lockExpiresAt" not in remote.get("a"))
    assert remote("PUT", one("a", "/lock"), clientKey="me", lockSecs=9).error == NOT_HELD
    assert remote.lock("you") == ["a", "b"]


def test_only_the_holder_prolongs_and_deletes_a_lock(remote: Caller) -> None:
    remote.add("a", "b")
    remote.lock("me", limit=1)
    before = remote.get("a")["lockExpiresAt"]

    def prolong(key: str, client: str) -> Answer:
        return remote("PUT", one(key, "/lock"), clientKey=client, lockSecs=120)

    assert prolong("a", "you").error == NOT_HELD
    assert prolong("b", "me").error == NOT_HELD
    assert prolong("unknown", "me").error == NOT_FOUND
    after = prolong("a", "me").data["lockExpiresAt"]
    moved = datetime.fromisoformat(after) - datetime.fromisoformat(before)
    assert 59 < moved.total_seconds() < 90
    for client, status in (("you", 400), ("me", 204), ("me", 400)):
        assert remote("DELETE", one("a", "/lock"), clientKey=client).status == status
    assert remote.lock("you") == ["a", "b"]
    remote.put("a", handled("a"))
    assert prolong("a", "you").error == NOT_HELD


async def test_clients_that_lock_at_one_time_get_different_requests(remote: Caller) -> None:
    for start in range(0, 100, 25):
        remote.add(*(f"key-{n}" for n in range(start, start + 25)))
    base, headers = remote.http.base_url, remote.http.headers
    async with httpx.AsyncClient(base_url=base, headers=headers) as http:
        calls = [
            http.post(f"{remote.path}/head/lock?clientKey=client-{n}&lockSecs=60&limit=10")
            for n in range(10)
        ]
        answers = [Answer(response) for response in await asyncio.gather(*calls)]
    ids = [item["id"] for answer in answers for item in answer.data["items"]]
    assert len(ids) == len(set(ids)) == 100
