"""The API server: raw calls on a real socket, judged by the answers.

Every answer is checked against the OpenAPI description as well, where it is at hand.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.limits import MAX_BODY
from tests.server import Server, serve, start
from tests.support import api_description as description
from tests.support.waiting import run_async

DESCRIPTION = None if description.missing() else description.Description()
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Answer:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.json = response.json() if response.content else None

    @property
    def data(self) -> Any:
        assert self.status < 300, self.json
        return self.json["data"]

    @property
    def error(self) -> tuple[int, str]:
        """Status and type."""
        return self.status, self.json["error"]["type"]


class Api:
    """A caller of the server, below a path."""

    def __init__(self, url: str, path: str = "") -> None:
        self.url = url
        self.path = path
        self._http = httpx.Client(base_url=url, timeout=30)

    def __call__(self, verb: str, path: str = "", body: Any = None, **options: Any) -> Answer:
        parameters = options.pop("params", {})
        if body is not None:
            options["json"] = body
        answer = Answer(self._http.request(verb, self.path + path, params=parameters, **options))
        if DESCRIPTION is not None:
            verb = parameters.get("method", verb)
            DESCRIPTION.check(verb, self.path + path, answer.status, answer.json)
        return answer

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    # What most tests do

    def add(self, *keys: str, **parameters: Any) -> Any:
        return self("POST", "/requests/batch", [request(key) for key in keys], params=parameters)

    def head(self, **parameters: Any) -> list[str]:
        items = self("GET", "/head", params=parameters).data["items"]
        return [item["uniqueKey"] for item in items]

    def lock(self, key: str = "me", secs: float = 60, **parameters: Any) -> list[str]:
        parameters |= {"clientKey": key, "lockSecs": secs}
        items = self("POST", "/head/lock", params=parameters).data["items"]
        return [item["uniqueKey"] for item in items]

    def counts(self) -> tuple[int, int, int]:
        data = self("GET").data
        return (
            data["totalRequestCount"],
            data["handledRequestCount"],
            data["pendingRequestCount"],
        )


def request(key: str, **fields: Any) -> dict[str, Any]:
    return {"uniqueKey": key, "url": f"https://example.com/{key}", **fields}


def one(key: str, suffix: str = "") -> str:
    return f"/requests/{request_id(key)}{suffix}"


def handled(key: str) -> dict[str, Any]:
    return request(key, handledAt="2026-01-02T03:04:05.678Z")


def eventually(condition: Callable[[], bool], timeout: float = 10) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with Api(server.url) as api:
        yield api
    server.faults()


@pytest.fixture
def queue(api: Api) -> Iterator[Api]:
    id = api("POST", "/v2/request-queues").data["id"]
    with Api(api.url, f"/v2/request-queues/{id}") as queue:
        yield queue


# The collection


def test_a_named_queue_is_made_once(api: Api) -> None:
    created = api("POST", "/v2/request-queues", params={"name": "made-once"})
    again = api("POST", "/v2/request-queues", params={"name": "made-once"})
    assert (created.status, again.status) == (201, 200)
    assert created.data["id"] == again.data["id"]
    assert re.fullmatch(r"[a-zA-Z0-9]{17}", created.data["id"])
    assert created.headers["Location"] == f"{api.url}/v2/request-queues/{created.data['id']}"
    for path in ("~made-once", "somebody~made-once"):
        assert api("GET", f"/v2/request-queues/{path}").data["id"] == created.data["id"]


def test_every_unnamed_queue_is_new(api: Api) -> None:
    first, second = (api("POST", "/v2/request-queues") for _ in range(2))
    assert first.data["id"] != second.data["id"]
    assert first.data["name"] is None


def test_queues_are_listed_by_creation(api: Api) -> None:
    names = [f"listed-{n}" for n in range(3)]
    for name in names:
        api("POST", "/v2/request-queues", params={"name": name})
    api("POST", "/v2/request-queues")
    page = api("GET", "/v2/request-queues", params={"desc": 1, "limit": 2, "offset": 1}).data
    assert [item["name"] for item in page["items"]] == ["listed-1", "listed-0"]
    assert (page["count"], page["limit"], page["offset"], page["desc"]) == (2, 2, 1, True)
    named = api("GET", "/v2/request-queues").data["total"]
    assert api("GET", "/v2/request-queues", params={"unnamed": "true"}).data["total"] > named
    shared = api("GET", "/v2/request-queues", params={"ownership": "sharedWithMe"}).data
    assert shared["items"] == []


def test_a_queue_is_renamed_and_deleted(api: Api, queue: Api) -> None:
    before = queue("GET").data
    changed = queue("PUT", "", {"name": "renamed", "generalAccess": "RESTRICTED", "title": "T"})
    assert changed.data["name"] == "renamed"
    assert changed.data["generalAccess"] == "RESTRICTED"
    assert changed.data["id"] == before["id"]
    assert queue("PUT", "", {"name": None}).data["name"] is None
    gone = queue("DELETE")
    assert (gone.status, gone.json) == (204, None)
    missing = queue("GET")
    assert missing.error == (404, "record-not-found")
    assert missing.json["error"]["message"] == "Request Queue was not found"
    assert queue("POST", "/requests", request("a")).error == (404, "record-not-found")
    assert queue("DELETE").status == 404


def test_a_name_belongs_to_one_queue(api: Api, queue: Api) -> None:
    api("POST", "/v2/request-queues", params={"name": "taken"})
    assert queue("PUT", "", {"name": "taken"}).error == (400, "name-not-unique")


# Adding


def test_a_request_comes_back_as_it_was_sent(queue: Api) -> None:
    sent = request(
        "complex|ключ",
        method="POST",
        payload='{"a": "ž"}',
        headers={"X-A": "1"},
        userData={"deep": {"list": [1, None, {"x": 1.5}]}, "__crawlee": {"state": 4}},
        retryCount=2,
        noRetry=True,
        errorMessages=["one", "two"],
        loadedUrl="https://example.com/loaded",
    )
    added = queue("POST", "/requests", sent)
    assert added.status == 201
    assert added.data == {
        "requestId": request_id("complex|ключ"),
        "wasAlreadyPresent": False,
        "wasAlreadyHandled": False,
    }
    assert queue("GET", one("complex|ключ")).data == {"id": request_id("complex|ключ"), **sent}


def test_ids_are_those_of_the_platform(queue: Api) -> None:
    key = "http://example.com"
    assert queue("POST", "/requests", request(key)).data["requestId"] == "8OamqXBCpPHxyH9"


def test_null_is_like_absent(queue: Api) -> None:
    nulls = dict.fromkeys(
        ("payload", "headers", "userData", "errorMessages", "handledAt", "method")
    )
    assert queue("POST", "/requests", request("a", **nulls)).status == 201
    assert queue("GET", one("a")).data["method"] == "GET"


def test_adding_again_changes_nothing(queue: Api) -> None:
    queue("POST", "/requests", request("a", userData={"n": 1}))
    queue.add("b")
    again = queue("POST", "/requests", request("a", userData={"n": 2}), params={"forefront": 1})
    assert (again.data["wasAlreadyPresent"], again.data["wasAlreadyHandled"]) == (True, False)
    assert queue("GET", one("a")).data["userData"] == {"n": 1}
    assert queue.counts() == (2, 0, 2)
    queue("PUT", one("a"), handled("a"))
    again = queue("POST", "/requests", request("a"))
    assert (again.data["wasAlreadyPresent"], again.data["wasAlreadyHandled"]) == (True, True)
    assert queue.head() == ["b"]


def test_what_is_added_as_handled_is_handled(queue: Api) -> None:
    added = queue("POST", "/requests", handled("a"))
    assert added.data["wasAlreadyHandled"] is False
    assert queue.counts() == (1, 1, 0)
    assert queue.head() == []


def test_a_batch_tells_of_every_request(queue: Api) -> None:
    queue("POST", "/requests", request("b"))
    answer = queue.add("a", "b", "c")
    assert answer.status == 201
    assert answer.data["unprocessedRequests"] == []
    assert answer.data["processedRequests"] == [
        {
            "uniqueKey": key,
            "requestId": request_id(key),
            "wasAlreadyPresent": key == "b",
            "wasAlreadyHandled": False,
        }
        for key in "abc"
    ]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ([], "invalid-value"),
        ([request(str(n)) for n in range(26)], "invalid-value"),
        ([request("a"), request("a")], "request-queue-duplicate-requests"),
        ([request("a"), {"url": "https://example.com"}], "invalid-value"),
        ([request("a"), {"uniqueKey": "b"}], "invalid-value"),
        ([request("a"), request("b", userData=[1])], "invalid-value"),
        ([request("a"), request("b", handledAt="soon")], "invalid-value"),
        ([request("a"), request("b", handledAt=1)], "invalid-value"),
        ([request("a"), request("b", method="BREW")], "invalid-value"),
        ([request("a"), request("b", headers={"n": 1})], "invalid-value"),
        ([request("a"), request("b", retryCount="1")], "invalid-value"),
        ([request("a"), request("b", id=request_id("b"))], "invalid-value"),
        ([request("a"), "b"], "invalid-value"),
        (request("a"), "invalid-request"),
    ],
)
def test_a_wrong_batch_stores_nothing(queue: Api, body: Any, error: str) -> None:
    assert queue("POST", "/requests/batch", body).error == (400, error)
    assert queue.counts() == (0, 0, 0)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b'{"uniqueKey": "\\ud800"}', b"\xff"])
def test_a_body_is_a_json_object(queue: Api, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = queue("POST", "/requests", content=body, headers=headers)
    assert answer.error == (400, "invalid-request")
    assert answer.json["error"]["message"] == "POST data must be a JSON object"


def test_a_body_says_that_it_is_json(queue: Api) -> None:
    answer = queue("POST", "/requests", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.error == (400, "invalid-content-type-header")


# Order


def test_first_in_first_out_and_forefront_before_all(queue: Api) -> None:
    queue.add("a", "b")
    queue.add("c", "d", forefront="true")
    queue("POST", "/requests", request("e"), params={"forefront": "1"})
    assert queue.head() == ["e", "d", "c", "a", "b"]
    queue("PUT", one("c"), request("c"))
    queue("PUT", one("b"), request("b"), params={"forefront": "true"})
    assert queue.head() == ["b", "e", "d", "a", "c"]
    assert queue.head(limit=2) == ["b", "e"]


def test_the_head_holds_part_of_each_request(queue: Api) -> None:
    long = "k" * 200
    queue("POST", "/requests", request(long, userData={"a": 1}, retryCount=3))
    data = queue("GET", "/head").data
    (item,) = data["items"]
    assert item == {
        "id": request_id(long),
        "uniqueKey": "k" * 114 + "...[truncated]",
        "url": f"https://example.com/{long}"[:114] + "...[truncated]",
        "method": "GET",
        "retryCount": 3,
    }
    assert data["limit"] == 100
    assert DATE.fullmatch(data["queueModifiedAt"])
    assert queue("GET", one(long)).data["uniqueKey"] == long


def test_limits_are_cut_to_their_maximum(queue: Api) -> None:
    assert queue("GET", "/head", params={"limit": 5000}).data["limit"] == 1000
    assert queue("GET", "/requests", params={"limit": 50_000}).data["limit"] == 10_000
    locked = queue("POST", "/head/lock", params={"limit": 100, "lockSecs": 1})
    assert locked.data["limit"] == 25


# Updating


def test_an_update_tells_what_was_before(queue: Api) -> None:
    def put(body: dict[str, Any]) -> tuple[bool, bool]:
        answer = queue("PUT", one("a"), body)
        assert answer.status == 200
        assert answer.data["requestId"] == request_id("a")
        return answer.data["wasAlreadyPresent"], answer.data["wasAlreadyHandled"]

    assert put(request("a")) == (False, False)
    assert put(handled("a")) == (True, False)
    assert queue.counts() == (1, 1, 0)
    assert put(handled("a")) == (True, True)
    assert queue.counts() == (1, 1, 0)
    assert put(request("a")) == (True, True)
    assert queue.counts() == (1, 0, 1)


def test_an_update_replaces_the_whole_request(queue: Api) -> None:
    queue("POST", "/requests", request("a", userData={"n": 1}, errorMessages=["x"]))
    queue("PUT", one("a"), {**handled("a"), "id": "whatever"})
    stored = queue("GET", one("a")).data
    assert stored["handledAt"] == "2026-01-02T03:04:05.678Z"
    assert stored["userData"] == {}
    assert stored["errorMessages"] == []


@pytest.mark.parametrize("date", ["2026-01-02T05:04:05.678+02:00", "2026-01-02T03:04:05.678901"])
def test_dates_are_kept_in_utc(queue: Api, date: str) -> None:
    queue("PUT", one("a"), request("a", handledAt=date))
    assert queue("GET", one("a")).data["handledAt"] == "2026-01-02T03:04:05.678Z"


def test_the_id_must_be_that_of_the_key(queue: Api) -> None:
    assert queue("PUT", one("a"), request("b")).error == (400, "request-id-invalid")
    assert queue("PUT", one("a"), {"uniqueKey": "a"}).error == (400, "invalid-value")


# Reading and deleting


def test_an_unknown_request_is_not_found(queue: Api) -> None:
    answer = queue("GET", one("a"))
    assert answer.error == (404, "record-not-found")
    assert answer.json["error"]["message"] == "Request was not found"


def test_pages_show_each_request_once(queue: Api) -> None:
    keys = {f"key-{n}" for n in range(7)}
    queue.add(*keys)
    queue("PUT", one("key-3"), handled("key-3"))
    seen, parameters, pages = [], {"limit": 3}, 0
    while True:
        page = queue("GET", "/requests", params=parameters).data
        pages += 1
        assert page.get("cursor") == parameters.get("cursor")
        seen += [item["uniqueKey"] for item in page["items"]]
        if "nextCursor" not in page:
            break
        parameters["cursor"] = page["nextCursor"]
    assert sorted(seen) == sorted(keys)
    assert pages == 3
    first = queue("GET", "/requests", params={"limit": 1}).data["items"][0]["id"]
    rest = queue("GET", "/requests", params={"exclusiveStartId": first}).data
    assert len(rest["items"]) == 6
    assert rest["exclusiveStartId"] == first


def test_lists_are_filtered_by_state(queue: Api) -> None:
    queue.add("locked", "pending", "handled")
    assert queue.lock(limit=1) == ["locked"]
    queue("PUT", one("handled"), handled("handled"))

    def listed(states: str) -> set[str]:
        items = queue("GET", "/requests", params={"filter": states} if states else {}).data["items"]
        return {item["uniqueKey"] for item in items}

    assert listed("locked") == {"locked"}
    assert listed("pending") == {"pending"}
    assert listed("pending,locked") == {"pending", "locked"}
    assert listed("") == {"pending", "locked", "handled"}


def test_deleting_by_id_and_in_batches(queue: Api) -> None:
    queue.add("a", "b", "c", "d")
    gone = queue("DELETE", one("a"))
    assert (gone.status, gone.json) == (204, None)
    assert queue("GET", one("a")).status == 404
    assert queue("DELETE", one("a")).status == 204
    named = [{"id": request_id("b")}, {"uniqueKey": "c"}, {"uniqueKey": "unknown"}]
    answer = queue("DELETE", "/requests/batch", named)
    assert answer.status == 200
    assert answer.data == {"processedRequests": named, "unprocessedRequests": []}
    assert queue.counts() == (1, 0, 1)
    assert queue("DELETE", "/requests/batch", [{}]).error == (400, "invalid-value")
    assert queue("DELETE", "/requests/batch", [{"id": 1}]).error == (400, "invalid-value")
    assert queue.counts() == (1, 0, 1)


# Locks


def test_a_lock_keeps_others_away(queue: Api) -> None:
    queue.add("a", "b", "c")
    answer = queue("POST", "/head/lock", params={"clientKey": "me", "lockSecs": 60, "limit": 2})
    assert answer.status == 201
    data = answer.data
    assert [item["uniqueKey"] for item in data["items"]] == ["a", "b"]
    assert all(DATE.fullmatch(item["lockExpiresAt"]) for item in data["items"])
    assert (data["lockSecs"], data["clientKey"], data["queueHasLockedRequests"]) == (60, "me", True)
    stored = queue("GET", one("a")).data
    assert stored["lockByClient"] == "me"
    assert stored["lockExpiresAt"] == data["items"][0]["lockExpiresAt"]
    assert queue.lock("me") == ["c"]
    assert queue.lock("you") == []
    assert queue.head() == ["a", "b", "c"]
    assert queue.counts() == (3, 0, 3)


def test_an_expired_lock_gives_the_request_back_to_its_place(queue: Api) -> None:
    queue.add("a", "b")
    assert queue.lock("me", secs=0.2, limit=1) == ["a"]
    eventually(lambda: "lockExpiresAt" not in queue("GET", one("a")).data)
    error = queue("PUT", one("a", "/lock"), params={"clientKey": "me", "lockSecs": 9}).error
    assert error == (400, "request-handled-or-locked")
    assert queue.lock("you") == ["a", "b"]


def test_only_the_holder_prolongs_and_deletes_a_lock(queue: Api) -> None:
    queue.add("a", "b")
    queue.lock("me", limit=1)
    before = queue("GET", one("a")).data["lockExpiresAt"]

    def prolong(key: str, client: str) -> Answer:
        return queue("PUT", one(key, "/lock"), params={"clientKey": client, "lockSecs": 120})

    assert prolong("a", "you").error == (400, "request-handled-or-locked")
    assert prolong("b", "me").error == (400, "request-handled-or-locked")
    assert prolong("unknown", "me").error == (404, "record-not-found")
    after = prolong("a", "me").data["lockExpiresAt"]
    moved = datetime.fromisoformat(after[:-1]) - datetime.fromisoformat(before[:-1])
    assert 59 < moved.total_seconds() < 90
    for client, status in (("you", 400), ("me", 204), ("me", 400)):
        assert queue("DELETE", one("a", "/lock"), params={"clientKey": client}).status == status
    assert queue.lock("you") == ["a", "b"]
    queue("PUT", one("a"), handled("a"))
    assert prolong("a", "you").error == (400, "request-handled-or-locked")


def test_a_lock_can_end_at_the_forefront(queue: Api) -> None:
    queue.add("a", "b", "c")
    queue.lock("me", limit=3)
    queue("DELETE", one("c", "/lock"), params={"clientKey": "me", "forefront": "true"})
    queue("DELETE", one("b", "/lock"), params={"clientKey": "me"})
    assert queue.lock("you") == ["c", "b"]


def test_unlock_ends_the_locks_of_one_client(queue: Api) -> None:
    queue.add("a", "b", "c", "d")
    queue.lock("me", limit=3)
    queue.lock("you")
    assert queue("POST", "/requests/unlock", params={"clientKey": "me"}).data == {
        "unlockedCount": 3
    }
    assert queue.lock("third") == ["a", "b", "c"]


def test_an_update_ends_the_lock(queue: Api) -> None:
    queue.add("a", "b")
    queue.lock("me")
    queue("PUT", one("a"), request("a", retryCount=1), params={"clientKey": "me", "forefront": 1})
    assert queue.lock("me") == ["a"]
    queue("PUT", one("b"), handled("b"), params={"clientKey": "you"})
    assert queue.counts() == (2, 1, 1)
    assert "lockByClient" not in queue("GET", one("b")).data


def test_clients_that_lock_at_one_time_get_different_requests(queue: Api) -> None:
    for start_ in range(0, 100, 25):
        queue.add(*(f"key-{n}" for n in range(start_, start_ + 25)))

    async def lock_all() -> list[str]:
        async with httpx.AsyncClient(base_url=queue.url) as http:
            calls = [
                http.post(
                    f"{queue.path}/head/lock",
                    params={"clientKey": f"client-{n}", "lockSecs": 60, "limit": 10},
                )
                for n in range(10)
            ]
            answers = await asyncio.gather(*calls)
        return [item["id"] for answer in answers for item in answer.json()["data"]["items"]]

    ids = run_async(lock_all())
    assert len(ids) == len(set(ids)) == 100


# Clients, counters, statistics


@pytest.mark.parametrize(
    ("keys", "several"),
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
    queue: Api, keys: list[str | None], several: bool
) -> None:
    for key in keys:
        head = queue("GET", "/head", params={"clientKey": key} if key else {}).data
        queue("GET")
        queue("GET", one("a"))
    assert head["hadMultipleClients"] is several
    assert queue("GET").data["hadMultipleClients"] is several


@pytest.mark.parametrize("key", ["", "k" * 33])
def test_a_client_key_has_1_to_32_characters(queue: Api, key: str) -> None:
    assert queue("GET", "/head", params={"clientKey": key}).error == (400, "invalid-client-key")
    assert queue("GET", "/head", params={"clientKey": "k" * 32}).status == 200


def test_statistics_count_what_is_billed(queue: Api) -> None:
    def stats() -> tuple[int, int, int, int]:
        counts = queue("GET").data["stats"]
        return (
            counts["readCount"],
            counts["writeCount"],
            counts["deleteCount"],
            counts["headItemReadCount"],
        )

    queue.add("a", "b", "c")
    assert stats() == (0, 3, 0, 0)
    queue.add("a")
    assert stats() == (0, 4, 0, 0)
    queue.head(limit=2)
    queue("GET", one("a"))
    queue("GET", "/requests")
    assert stats() == (4, 4, 0, 2)
    queue.lock(limit=2)
    assert stats() == (4, 6, 0, 2)
    queue("PUT", one("a", "/lock"), params={"clientKey": "me", "lockSecs": 60})
    queue("PUT", one("a"), handled("a"))
    assert stats() == (4, 8, 0, 2)
    queue("DELETE", one("c"))
    assert stats() == (4, 8, 1, 2)


def test_changes_are_dated(queue: Api) -> None:
    created = queue("GET").data
    assert all(DATE.fullmatch(created[name]) for name in ("createdAt", "modifiedAt", "accessedAt"))
    eventually(lambda: queue("GET").data["accessedAt"] > created["accessedAt"])
    assert queue("GET").data["modifiedAt"] == created["modifiedAt"]
    assert queue.lock() == []
    assert queue("GET").data["modifiedAt"] == created["modifiedAt"]
    queue.add("a")
    assert queue("GET").data["modifiedAt"] > created["modifiedAt"]


# Paths, parameters, bodies


def test_unknown_paths_and_verbs(api: Api, queue: Api) -> None:
    assert api("GET", "/v2/datasets").error == (404, "page-not-found")
    answer = queue("PATCH", "/head")
    assert answer.error == (405, "method-not-allowed")
    assert answer.json["error"]["message"].endswith("HTTP methods: OPTIONS,GET")


def test_a_parameter_can_name_the_verb(queue: Api) -> None:
    queue.add("a")
    assert queue("GET", one("a"), params={"method": "DELETE"}).status == 204
    assert queue.counts() == (0, 0, 0)


@pytest.mark.parametrize(
    ("path", "parameters", "error"),
    [
        ("/head", {"limit": "many"}, "invalid-parameter"),
        ("/head", {"limit": -1}, "invalid-parameter"),
        ("/head", {"limit": "nan"}, "invalid-parameter"),
        ("/requests", {"filter": "handled"}, "param-not-one-of"),
        ("/requests", {"filter": "locked", "exclusiveStartId": "a"}, "invalid-parameter"),
        ("/requests", {"cursor": "?"}, "invalid-parameter"),
        ("/requests", {"cursor": "bnVsbA"}, "invalid-parameter"),
        ("/head/lock", {"method": "POST"}, "parameter-required"),
        ("/head/lock", {"method": "POST", "lockSecs": 0}, "invalid-parameter"),
        ("/head/lock", {"method": "POST", "lockSecs": "inf"}, "invalid-parameter"),
        ("/head/lock", {"method": "POST", "lockSecs": 1e12}, "invalid-parameter"),
    ],
)
def test_wrong_parameters(queue: Api, path: str, parameters: dict[str, Any], error: str) -> None:
    assert queue("GET", path, params=parameters).error == (400, error)


@pytest.mark.parametrize("name", ["-a", "a-", "a_b", "a~b", "ä", "n" * 64])
def test_wrong_names(api: Api, queue: Api, name: str) -> None:
    created = api("POST", "/v2/request-queues", params={"name": name})
    assert created.error == (400, "invalid-value")
    assert queue("PUT", "", {"name": name}).error == (400, "invalid-value")


def _brotli(body: bytes) -> bytes:
    brotli = pytest.importorskip("brotli")
    packed: bytes = brotli.compress(body)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": _brotli,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", PACK)
def test_bodies_may_be_compressed(queue: Api, encoding: str) -> None:
    def post(key: str, cut: int | None = None, size: int = 2000) -> Answer:
        body = json.dumps(request(key, userData={"text": "x" * size})).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": encoding}
        return queue("POST", "/requests", content=PACK[encoding](body)[:cut], headers=headers)

    assert post("a").status == 201
    assert len(queue("GET", one("a")).data["userData"]["text"]) == 2000
    assert post("b", cut=-5).error == (400, "invalid-request")
    assert post("c", size=MAX_BODY).error == (413, "request-too-large")
    assert queue.counts() == (1, 0, 1)


def test_a_large_body_is_taken_up_to_the_limit(queue: Api) -> None:
    empty = len(json.dumps(request("a", payload="")).encode())
    headers = {"Content-Type": "application/json"}
    for size, status in ((MAX_BODY, 201), (MAX_BODY + 1, 413)):
        body = json.dumps(request("a", payload="x" * (size - empty))).encode()
        assert len(body) == size
        answer = queue("POST", "/requests", content=body, headers=headers)
        assert answer.status == status
    assert answer.json["error"]["message"] == (
        "The POST payload is too large (limit: 9437184 bytes, actual length: 9437185 bytes)."
    )


def test_an_unknown_encoding_is_refused(queue: Api) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "bla"}
    answer = queue("POST", "/requests", content=b"{}", headers=headers)
    assert answer.error == (415, "unsupported-content-encoding")
    assert answer.json["error"]["message"] == 'Content-Encoding "bla" is not supported.'


# Who may call


def test_a_token_is_demanded(tmp_path: Path) -> None:
    with (
        serve(tmp_path, "--token", "secret") as server,
        Api(server.url, "/v2/request-queues") as api,
    ):
        assert api("GET").error == (401, "token-not-provided")
        assert api("GET", params={"token": "other"}).error == (401, "user-or-token-not-found")
        wrong = {"Authorization": "Bearer söcret".encode()}
        assert api("GET", headers=wrong).error == (401, "user-or-token-not-found")
        assert api("GET", params={"token": "secret"}).status == 200
        assert api("GET", headers={"Authorization": "Bearer secret"}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "rebound.example.com"},
    ],
)
def test_web_pages_may_not_call_a_server_without_a_token(
    queue: Api, headers: dict[str, str]
) -> None:
    answer = queue("GET", params={"method": "DELETE"}, headers=headers)
    assert answer.error == (403, "insufficient-permissions")
    assert queue("GET").status == 200
    assert queue("GET", headers={"Authorization": "Bearer anything"}).status == 200


# Faults


def test_failures_have_no_effect(server: Server, queue: Api) -> None:
    for faults, error in (
        ({"limited": 1}, (429, "rate-limit-exceeded")),
        ({"failed": 1}, (500, "internal-server-error")),
    ):
        server.faults(**faults)
        assert queue("POST", "/requests", request("a")).error == error
    for faults in ({"dropped": 1}, {"outage": 60}):
        server.faults(**faults)
        with pytest.raises(httpx.TransportError):
            queue("POST", "/requests", request("a"))
    server.faults()
    assert queue.counts() == (0, 0, 0)


def test_a_lost_answer_has_its_effect(server: Server, queue: Api) -> None:
    server.faults(lost=1, only=["POST requests"])
    with pytest.raises(httpx.TransportError):
        queue("POST", "/requests", request("a"))
    assert queue.counts() == (1, 0, 1)
    server.faults()
    assert queue("POST", "/requests", request("a")).data["wasAlreadyPresent"] is True


def test_unprocessed_requests_are_not_stored(server: Server, queue: Api) -> None:
    server.faults(unprocessed=0.5, seed=1)
    keys = [f"key-{n}" for n in range(25)]
    data = queue.add(*keys).data
    processed = [one["uniqueKey"] for one in data["processedRequests"]]
    unprocessed = [one["uniqueKey"] for one in data["unprocessedRequests"]]
    assert 3 < len(unprocessed) < 22
    assert sorted(processed + unprocessed) == sorted(keys)
    assert queue.head() == processed


def test_faults_are_reproducible(server: Server, queue: Api) -> None:
    def statuses() -> list[int]:
        server.faults(failed=0.3, limited=0.3, seed=7)
        return [queue("GET").status for _ in range(20)]

    first = statuses()
    assert set(first) == {200, 429, 500}
    assert statuses() == first


def test_latency(server: Server, queue: Api) -> None:
    server.faults(latency=0.3)
    started = time.monotonic()
    queue("GET")
    assert time.monotonic() - started >= 0.3


def test_the_head_lags(server: Server, queue: Api) -> None:
    queue.add("old", "done", "back")
    server.faults(head_lag=600)
    queue.add("new", forefront=1)
    queue("PUT", one("new"), request("new", retryCount=1), params={"forefront": 1})
    queue("PUT", one("done"), handled("done"))
    queue("PUT", one("back"), request("back"), params={"forefront": 1})
    queue("DELETE", one("old"))
    assert queue.head() == ["old", "done", "back"]
    pending = queue("GET", "/requests", params={"filter": "pending"}).data["items"]
    assert {item["uniqueKey"] for item in pending} == {"old", "done", "back"}
    assert queue.lock() == []
    assert queue("GET", one("done")).data["handledAt"]
    assert queue("GET", one("new")).status == 200
    assert queue.counts() == (3, 1, 2)
    server.faults(head_lag=0.3)
    queue.add("late")
    eventually(lambda: queue.head() == ["back", "new", "late"])
    assert queue.lock() == ["back", "new", "late"]


def test_the_counters_lag(server: Server, queue: Api) -> None:
    server.faults(counter_lag=600)
    queue.add("a", "b")
    queue("PUT", one("a"), handled("a"))
    assert queue.counts() == (0, 0, 0)
    assert queue.head() == ["b"]
    server.faults(counter_lag=0.3)
    queue.add("c")
    eventually(lambda: queue.counts() == (3, 1, 2))


def test_locked_requests_can_be_hidden_from_the_head(server: Server, queue: Api) -> None:
    queue.add("a", "b")
    queue.lock(limit=1)
    server.faults(hide_locked=True)
    assert queue.head() == ["b"]


def test_the_rates_of_the_platform(server: Server, queue: Api) -> None:
    server.faults(rates=True)

    async def statuses(calls: int, verb: str, path: str, body: Any = None) -> list[int]:
        async with httpx.AsyncClient(base_url=queue.url, timeout=30) as http:
            sent = [http.request(verb, queue.path + path, json=body) for _ in range(calls)]
            return [answer.status_code for answer in await asyncio.gather(*sent)]

    batches = run_async(statuses(300, "POST", "/requests/batch", [request("a")]))
    assert batches.count(429) > 0
    assert batches.count(201) >= 40
    singles = run_async(statuses(100, "GET", one("a")))
    assert singles.count(200) == 100


def test_calls_are_counted(server: Server, queue: Api) -> None:
    server.forget_calls()
    queue.add("a")
    queue.add("b")
    queue("GET", one("a"))
    queue("GET", one("nothing"))
    calls = server.calls
    assert calls.total == 4
    assert calls.operations == {"POST requests/batch": 2, "GET requests/{id}": 2}
    assert calls.outcomes == {"201": 2, "200": 1, "404": 1}


# The process


def test_queues_outlive_the_server_and_are_those_of_crawls(tmp_path: Path) -> None:
    path = "/v2/request-queues/~shared"
    with serve(tmp_path) as server, Api(server.url) as api, Api(server.url, path) as queue:
        api("POST", "/v2/request-queues", params={"name": "shared"})
        queue.add("a", "b")
        queue("GET", one("a"))

    async def crawl() -> None:
        backend = SqliteBackend(tmp_path, name="shared")
        await backend.open()
        claim = await backend.claim(10, set(), 2**24)
        assert [claimed.entry.unique_key for claimed in claim.entries] == ["a", "b"]
        entry = Entry(id=request_id("c"), unique_key="c", url="https://example.com/c")
        await backend.add([entry], forefront=True)
        await backend.close()

    run_async(crawl())
    with serve(tmp_path) as server, Api(server.url, path) as queue:
        assert queue.head() == ["c", "a", "b"]
        assert queue("GET").data["stats"]["writeCount"] == 3
        assert queue("GET").data["stats"]["readCount"] == 1


def test_without_the_switch_nobody_can_make_it_misbehave(tmp_path: Path) -> None:
    with start(tmp_path, "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(
            rf"Serving request queues of {re.escape(str(tmp_path))} on http://127\.0\.0\.1:\d+\n",
            line,
        )
        http = httpx.Client(base_url=line.split()[-1])
        assert http.put("/_faults", json={"failed": 1}).status_code == 404
        assert http.get("/_calls").status_code == 404
        http.close()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "status", "cure"),
    [
        (("--host", "0.0.0.0"), 2, "add --token, or leave --host out"),
        (("--port", "99999"), 1, "use another --host or --port"),
        (("--nonsense",), 2, "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_options_end_it_with_the_cure(
    tmp_path: Path, options: tuple[str, ...], status: int, cure: str
) -> None:
    with start(tmp_path, *options) as process:
        output, complaint = process.communicate(timeout=30)
    assert (process.returncode, output) == (status, "")
    assert cure in complaint
    assert "Traceback" not in complaint


def test_a_folder_that_cannot_be_used_ends_it(tmp_path: Path) -> None:
    (tmp_path / "request_queues.sqlite").write_text("no database at all, but long enough for one")
    with start(tmp_path, "--port", "0") as process:
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "APIFY_RQ_STORAGE_DIR" in complaint
    assert "Traceback" not in complaint


def test_help_shows_an_example() -> None:
    command = [sys.executable, "-W", "error", "-m", "scrapy", "rq", "serve", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Example: scrapy rq serve --port" in output


@pytest.mark.skipif(DESCRIPTION is None, reason=description.missing() or "")
def test_every_operation_of_the_description_was_answered() -> None:
    """Last, since every test above has its answers checked."""
    assert DESCRIPTION is not None
    assert DESCRIPTION.seen == DESCRIPTION.operations.keys()
