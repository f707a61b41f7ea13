"""The API server, driven by Apify's own clients for Python and JavaScript: every operation."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.api_calls import Call, error
from tests.support.official_clients import (
    COMPRESSION,
    Client,
    ClientError,
    Node,
    Target,
    javascript_client,
    python_client,
)
from tests.support.optional import needs
from tests.support.queues import TOKEN, ServedQueue
from tests.support.raw_calls import Caller, handled, request

pytestmark = needs("apify_client")

MINUTE = timedelta(seconds=60)
Users = tuple[Target, Target]


@pytest.fixture
def users(client: Client, api: Caller) -> Users:
    """Two users of a new queue."""
    id = api("POST").data["id"]
    return client.queue(id, "client-one"), client.queue(id, "client-two")


COUNTS = ("totalRequestCount", "handledRequestCount", "pendingRequestCount")


async def counts(queue: Target) -> list[int]:
    info = await queue.get()
    return [info[name] for name in COUNTS]


def requests(*keys: object) -> list[dict[str, Any]]:
    return [request(str(key)) for key in keys]


def keys(page: Any) -> list[str]:
    items = page["items"] if isinstance(page, dict) else page
    return [item["uniqueKey"] for item in items]


async def head(queue: Target, **options: Any) -> list[str]:
    return keys(await queue.list_head(**options))


async def lock(queue: Target, limit: int) -> list[str]:
    return keys(await queue.list_and_lock_head(limit=limit, lock_duration=MINUTE))


def registration(key: str, present: bool, was_handled: bool) -> dict[str, Any]:
    registered = {"wasAlreadyPresent": present, "wasAlreadyHandled": was_handled}
    return {"requestId": request_id(key), **registered}


async def test_queues(client: Client) -> None:
    queues = client.queues()
    created = await queues.get_or_create(name="made")
    id = created["id"]
    assert re.match(r"\d{4}-\d\d-\d\dT", created["createdAt"])
    queue = client.queue(id)
    assert (await queues.get_or_create(name="made"))["id"] == id
    changed = await queue.update(name="renamed", title="T", general_access="RESTRICTED")
    assert (changed["name"], changed["generalAccess"]) == ("renamed", "RESTRICTED")
    for path in (id, "me/renamed"):
        assert (await client.queue(path).get()).items() >= {"id": id, "name": "renamed"}.items()
    unnamed = await queues.get_or_create()
    named = (await queues.list(limit=10, desc=True))["items"]
    assert [item["name"] for item in named] == ["renamed"]
    every = [item["id"] for item in await queues.iterate(unnamed=True, limit=5)]
    assert sorted(every) == sorted([id, unnamed["id"]])
    await queue.delete()
    assert not await queue.get()
    with pytest.raises(ClientError) as failure:
        await queue.list_head()
    assert failure.value.args == (404, "record-not-found")


async def test_what_was_never_there(client: Client, users: Users) -> None:
    assert not await client.queue("abcdefghijklmnopq").get()
    queue, _ = users
    assert not await queue.get_request("abcdefghijklmno")
    await queue.delete_request("abcdefghijklmno")
    assert await head(queue) == []


async def test_one_request(users: Users) -> None:
    queue, _ = users
    key = "complex|ключ"
    sent = request(
        key,
        method="POST",
        payload='{"a": "ž"}',
        headers={"X-A": "1"},
        userData={"deep": {"list": [1, None, {"x": 1.5}]}, "__crawlee": {"state": 4}},
        retryCount=2,
        noRetry=True,
        errorMessages=["one", "two"],
        loadedUrl="https://example.com/loaded",
    )
    id = request_id(key)
    assert await queue.add_request(sent) == registration(key, False, False)
    stored = await queue.get_request(id)
    assert stored.items() >= {"id": id, **sent}.items()
    await queue.add_request(request("b"))
    again = {**sent, "userData": {"n": 2}}
    assert await queue.add_request(again, forefront=True) == registration(key, True, False)
    assert await queue.get_request(id) == stored
    assert await head(queue) == [key, "b"]
    done = {**stored, "handledAt": "2026-01-02T03:04:05.678Z"}
    for body, was_handled, expected in (
        (done, False, [2, 1, 1]),
        (done, True, [2, 1, 1]),
        ({**stored, "retryCount": 3}, True, [2, 0, 2]),
    ):
        assert await queue.update_request(body) == registration(key, True, was_handled)
        assert await counts(queue) == expected
        if body is done:
            assert (await queue.get_request(id))["handledAt"].startswith("2026-01-02T03:04:05.678")
            assert await queue.add_request(sent) == registration(key, True, True)
            assert await head(queue) == ["b"]
    assert await queue.get_request(id) == {**stored, "retryCount": 3}
    await queue.delete_request(id)
    assert not await queue.get_request(id)


async def test_update_replaces_the_whole_request(users: Users) -> None:
    queue, _ = users
    sent = request("a", userData={"n": 1}, errorMessages=["x"], id=request_id("a"))
    assert await queue.update_request(sent) == registration("a", False, False)
    assert (await queue.get_request(sent["id"])).items() >= sent.items()
    await queue.update_request({**handled("a"), "id": sent["id"]})
    stored = await queue.get_request(sent["id"])
    assert (stored["userData"], stored["errorMessages"]) == ({}, [])


async def test_what_is_added_as_handled_is_handled(users: Users) -> None:
    queue, _ = users
    assert await queue.add_request(handled("a")) == registration("a", False, False)
    added = (await queue.batch_add_requests([handled("b")]))["processedRequests"]
    assert added == [{"uniqueKey": "b", **registration("b", False, False)}]
    assert await counts(queue) == [2, 2, 0]
    assert await head(queue) == []


async def test_batches(users: Users, kind: str, served: ServedQueue) -> None:
    queue, _ = users
    await queue.add_request(request("0"))
    sixty = requests(*range(60))
    expected = sorted(keys(sixty))
    result = await queue.batch_add_requests(sixty)
    by_key = {one["uniqueKey"]: one for one in result["processedRequests"]}
    assert by_key == {
        key: {"uniqueKey": key, **registration(key, key == "0", False)} for key in expected
    }
    assert result["unprocessedRequests"] == []
    batches = served.api.of("POST", "/requests/batch")
    encodings = Counter(call.headers.get("Content-Encoding") for call in batches)
    assert encodings == {COMPRESSION[kind]: 2, None: 1}  # ten requests are below 1 KiB
    assert sorted(await head(queue)) == expected
    assert sorted(keys(await queue.list_requests(filter=["pending"]))) == expected
    assert sorted(keys(await queue.iterate_requests(chunk_size=25))) == expected
    pages = [await queue.list_requests(limit=25)]
    while cursor := pages[-1].get("nextCursor"):
        pages.append(await queue.list_requests(limit=25, cursor=cursor))
    assert [(len(page["items"]), page["limit"]) for page in pages] == [(25, 25), (25, 25), (10, 25)]
    assert sorted(key for page in pages for key in keys(page)) == expected
    named = [{"uniqueKey": "0"}, {"id": request_id("1")}, {"uniqueKey": "2"}]
    assert len((await queue.batch_delete_requests(named))["processedRequests"]) == 3
    assert await counts(queue) == [57, 0, 57]


async def test_order(users: Users) -> None:
    queue, _ = users
    await queue.batch_add_requests(requests("a", "b"))
    await queue.batch_add_requests(requests("c", "d"), forefront=True)
    await queue.add_request(request("e"), forefront=True)
    assert await head(queue) == ["e", "d", "c", "a", "b"]
    await queue.update_request({**request("c"), "id": request_id("c")})
    await queue.update_request({**request("b"), "id": request_id("b")}, forefront=True)
    assert await head(queue) == ["b", "e", "d", "a", "c"]
    assert await head(queue, limit=2) == ["b", "e"]


async def test_locks(users: Users) -> None:
    queue, other = users
    await queue.batch_add_requests(requests(*"abcde"))
    await queue.update_request({**handled("e"), "id": request_id("e")})
    await other.get()  # is not told who asks
    assert not (await queue.list_head())["hadMultipleClients"]
    locked = await queue.list_and_lock_head(limit=3, lock_duration=MINUTE)
    assert keys(locked) == ["a", "b", "c"]
    assert (locked["lockSecs"], locked["queueHasLockedRequests"]) == (60, True)
    first, second, third = locked["items"]
    prolonged = await queue.prolong_request_lock(first["id"], lock_duration=2 * MINUTE)
    assert prolonged["lockExpiresAt"] > first["lockExpiresAt"]
    with pytest.raises(ClientError) as failure:
        await other.prolong_request_lock(first["id"], lock_duration=MINUTE)
    assert failure.value.args == (400, "request-handled-or-locked")
    for states, expected in {
        ("pending",): ["d"],
        ("locked",): ["a", "b", "c"],
        ("pending", "locked"): ["a", "b", "c", "d"],
    }.items():
        assert sorted(keys(await queue.list_requests(filter=list(states)))) == expected
    assert sorted(keys(await queue.list_requests())) == ["a", "b", "c", "d", "e"]
    await queue.delete_request_lock(third["id"], forefront=True)
    await queue.delete_request_lock(second["id"])
    assert await lock(other, limit=2) == ["c", "b"]
    await queue.update_request({**request("b"), "id": second["id"]}, forefront=True)
    assert await lock(queue, limit=1) == ["b"]
    assert (await queue.unlock_requests())["unlockedCount"] == 2
    assert await lock(queue, limit=9) == ["b", "a", "d"]
    assert (await queue.list_head())["hadMultipleClients"]


async def test_head_holds_part_of_each_request(users: Users) -> None:
    queue, _ = users
    key = "k" * 200
    sent = request(key, userData={"kept": True}, retryCount=3)
    id = (await queue.add_request(sent))["requestId"]
    found = await queue.list_head()
    (item,) = found["items"]
    assert {name: value for name, value in item.items() if value is not None} == {
        "id": id,
        "uniqueKey": "k" * 114 + "...[truncated]",
        "url": sent["url"][:114] + "...[truncated]",
        "method": "GET",
        "retryCount": 3,
    }
    assert found["limit"] == 100
    assert found["queueModifiedAt"].startswith("20")
    stored = await queue.get_request(id)
    assert stored.items() >= sent.items()
    await queue.update_request({**stored, "handledAt": handled("a")["handledAt"]})
    assert await head(queue) == []


async def test_queues_are_apart(client: Client, users: Users, api: Caller) -> None:
    queue, other = users[0], client.queue(api("POST").data["id"])
    await queue.add_request(request("a"))
    assert await other.add_request(request("a")) == registration("a", False, False)
    await other.delete_request(request_id("a"))
    assert await queue.get_request(request_id("a"))


async def test_faults_are_survived(users: Users, served: ServedQueue) -> None:
    queue, _ = users

    def before(call: Call) -> web.Response | str | None:
        fates = {1: "drop", 2: error(429), 3: error(500)}
        return fates.get(len(served.api.calls) % 5)

    served.api.before = before
    served.api.after = lambda call, data: "drop" if len(served.api.calls) % 5 == 4 else data
    for one in requests(*range(4)):
        await queue.add_request(one)
    served.api.before = lambda call: None
    served.api.after = lambda call, data: data
    assert await counts(queue) == [4, 0, 4]


async def test_wrong_token(served: ServedQueue, node: Node) -> None:
    url = served.api.url
    for client in (
        python_client("ApifyClient", url, "wrong"),
        javascript_client(node, url, "wrong"),
    ):
        with pytest.raises(ClientError) as failure:
            await client.queues().list()
        assert failure.value.args == (401, "user-or-token-not-found")


async def test_many_workers_share_a_queue(served: ServedQueue, api: Caller) -> None:
    client = python_client("ApifyClientAsync", served.api.url, TOKEN)
    id = api("POST").data["id"]
    sixty = requests(*range(60))
    await client.queue(id).batch_add_requests(sixty, max_parallel=3)

    async def work(number: int) -> list[str]:
        own = client.queue(id, f"worker-{number}")
        done: list[str] = []
        while found := await lock(own, limit=7):
            for key in found:
                await own.update_request({**handled(key), "id": request_id(key)})
            done += found
        return done

    done = await asyncio.gather(*map(work, range(4)))
    assert sorted(key for part in done for key in part) == sorted(keys(sixty))
    assert await counts(client.queue(id)) == [60, 60, 0]
