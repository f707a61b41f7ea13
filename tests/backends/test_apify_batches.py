"""Adds and deletes over the API: how they are batched, what it refuses, leaves out or loses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest
from aiohttp import web

from scrapy_apify_rq.backends.apify.batches import delete_all
from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.http import Client
from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Api, Call, error
from tests.support.backends import Apify, Queues, entry, handled, ids, keys_of, numbered

pytestmark = pytest.mark.usefixtures("hurried")
MIB = 1024 * 1024


def news(answers: Sequence[Added]) -> list[bool]:
    return [not (answer.was_already_present or answer.refused) for answer in answers]


def sent(api: Api) -> list[list[str]]:
    """The keys of each batch."""
    batches = api.of("POST", "/requests/batch")
    return [[item["uniqueKey"] for item in batch.json] for batch in batches]


async def test_a_batch_has_9_mib_at_most_as_sent(api: Api, client: Apify) -> None:
    # In bytes, of which these texts have twice as many as characters.
    entries = numbered(4, payload="é" * (3 * MIB // 2))
    # Two that fill a batch to the last kilobytes.
    full = numbered(2, 4, payload="x" * (9 * MIB // 2 - 1000))
    assert all(news(await client.fill(*entries, *full)))
    batches = api.of("POST", "/requests/batch")
    assert [len(batch.json) for batch in batches] == [2, 2, 2]
    assert 9 * MIB - 4000 < max(len(batch.body) for batch in batches) <= 9 * MIB
    assert client.stats["retries"] == 0


async def test_what_need_not_be_sent_is_not(api: Api, client: Apify) -> None:
    huge = entry("huge", payload="é" * (9 * MIB // 2))
    answers = await client.fill("a", huge, "b", entry("a", url="https://example.com/second"))
    assert news(answers) == [True, False, True, False]
    assert answers[1].id == huge.id
    assert "bytes are more than the API takes" in str(answers[1].refused)
    assert sent(api) == [["a", "b"]]
    assert await client.get(*ids("a")) == entry("a")


async def test_an_entry_that_the_api_refuses_does_not_take_its_batch_down(
    api: Api, server: Queues, client: Apify
) -> None:
    entries = numbered(25)
    entries[7].method = entries[20].method = "STRANGE"
    answers = await client.fill(*entries)
    assert [n for n, new in enumerate(news(answers)) if not new] == [7, 20]
    assert "the API refuses it: 400 invalid-value" in str(answers[7].refused)
    good = [one for n, one in enumerate(entries) if n not in (7, 20)]
    async with server.open(lock_secs=60) as other:
        assert await other.entries() == good
    assert len(sent(api)) <= 19
    api.complaints.clear()  # of the strange methods

    api.before = lambda call: error(413) if b"big" in call.body else None
    answers = await client.fill("x", "y", "big", "z")
    assert news(answers) == [True, True, False, True]
    assert "413" in str(answers[2].refused)


async def test_what_is_unprocessed_or_missing_is_sent_again(api: Api, client: Apify) -> None:
    rounds = iter([{"1", "4", "5"}, {"4"}])

    def after(call: Call, data: Any) -> Any:
        if call.is_("POST", "/requests/batch"):
            # Accepted and stored, but missing from the answer, as the platform does now and then.
            missing, items = next(rounds, set()), data["processedRequests"]
            data["processedRequests"] = [i for i in items if i["uniqueKey"] not in missing]
        return data

    api.after = after
    answers = await client.fill(*"0123456789", forefront=True)
    assert sent(api) == [list("0123456789"), ["1", "4", "5"], ["4"]]
    # They were there when sent again, but only since we had stored them.
    assert all(news(answers))
    assert [answer.id for answer in answers] == ids(*"0123456789")
    calls = api.of("POST", "/requests/batch")
    assert {call.query["forefront"] for call in calls} == {"true"}
    assert client.stats["unprocessed"] == 2


async def test_what_is_never_processed_ends_our_patience(api: Api, server: Queues) -> None:
    api.after = lambda call, data: (
        {"processedRequests": [], "unprocessedRequests": []} if call.body else data
    )
    async with server.open(patience=0.3) as client:
        with pytest.raises(BackendError, match="APIFY_RQ_UNAVAILABLE_TIMEOUT") as caught:
            await client.fill("a", "b")
    assert caught.value.reason == "apify_rq_unavailable"


@pytest.mark.parametrize("loss", ["dropped", "failed", "garbled"])
async def test_what_a_lost_call_stored_is_new(
    api: Api, server: Queues, client: Apify, loss: str
) -> None:
    """And what was there before, even as a very similar entry, is not."""
    there = [entry("there", user_data={"x": 1}), handled("done")]
    async with server.open() as other:
        await other.fill(*there)
    lost: list[Call] = []

    def after(call: Call, data: Any) -> Any:
        if not call.is_("POST", "/requests/batch") or lost:
            return data
        lost.append(call)
        if loss == "dropped":
            return "drop"
        return web.Response(status=500) if loss == "failed" else web.Response(text="<html>")

    api.after = after
    api.calls.clear()
    answers = await client.fill("a", entry("there", user_data={"x": 2}), "done", "b")
    assert news(answers) == [True, False, False, True]
    assert [answer.was_already_handled for answer in answers] == [False, False, True, False]
    assert client.stats["retries"] == 1
    # Only what may be ours is looked at.
    paths = [call.path for call in api.calls]
    assert paths[:2] == ["/requests/batch"] * 2
    assert sorted(paths[2:]) == sorted(f"/requests/{id}" for id in ids("a", "there", "b"))
    assert await client.get(there[0].id) == there[0]


async def test_what_is_not_deleted_is_sent_again(api: Api, client: Apify) -> None:
    asked: list[int] = []

    def after(call: Call, data: Any) -> Any:
        if call.is_("DELETE", "/requests/batch"):
            asked.append(len(call.json))
            by_key = [{"uniqueKey": key} for key in keys_of(numbered(5))]
            left = [*by_key, *data["processedRequests"][5:10]]
            data["unprocessedRequests"] = left if asked == [25] else []
        return data

    await client.fill(*numbered(40))
    api.after = after
    await client.delete(ids(*keys_of(numbered(40))))
    assert sorted(asked) == [10, 15, 25]
    assert await client.look() == ("", 0, 0, 0)


@pytest.mark.virtual_time
async def test_deletes_overlap_with_each_other_and_with_the_list() -> None:
    """4,000 entries take the 4 seconds of 160 batches at their rate, not the 33 of all answers."""
    deleted: list[str] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0.2)
        deleted.extend(item["id"] for item in json.loads(request.content))
        data = {"processedRequests": [], "unprocessedRequests": []}
        return httpx2.Response(200, json={"data": data})

    async def listed(pages: int, error: Exception | None = None) -> AsyncIterator[str]:
        for page in range(pages):
            await asyncio.sleep(0.2)
            for n in range(1000):
                yield f"{page}-{n}"
        if error is not None:
            raise error

    def inc_stat(name: str) -> None: ...

    transport = httpx2.MockTransport(answer)
    client = Client("https://x", None, patience=5, inc_stat=inc_stat, transport=transport)
    client.open()
    api = Endpoints(client, "key", id="q", name=None)
    tasks, begun = asyncio.all_tasks(), asyncio.get_running_loop().time()
    await delete_all(api, listed(4))
    assert asyncio.get_running_loop().time() - begun == pytest.approx(4.4, abs=0.3)
    assert sorted(deleted) == sorted([id async for id in listed(4)])
    with pytest.raises(BackendError, match="the list"):
        await delete_all(api, listed(1, BackendError("the list")))
    assert asyncio.all_tasks() <= tasks
    await client.close()
