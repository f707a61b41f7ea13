"""What the client tells the API about itself, and what it makes of an answer about the queue."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from typing import Any

import pytest
from aiohttp import web

from scrapy_apify_rq.backends.apify import http, reader
from scrapy_apify_rq.backends.base import Operations
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.server.parameters import write_cursor
from tests.support.api_calls import Api, Call, error
from tests.support.backends import Apify, Queues, entry, handled, ids, keys_of, numbered
from tests.support.queues import NAME, TOKEN


@pytest.mark.parametrize(
    ("status", "kind", "reason", "cure"),
    [
        (401, "a-type", "apify_rq_unauthorized", "Set APIFY_TOKEN"),
        (402, "a-type", "apify_rq_charge_limit", "raise the limit"),
        (403, "platform-feature-disabled", "apify_rq_charge_limit", "raise the limit"),
        (403, "a-type", "apify_rq_unauthorized", "APIFY_TOKEN may not use this queue"),
        (404, "a-type", "apify_rq_gone", "APIFY_RQ_ID"),
        (405, "a-type", "apify_rq_unavailable", "APIFY_API_BASE_URL"),
    ],
)
async def test_what_concerns_the_queue_is_final(
    api: Api, client: Apify, status: int, kind: str, reason: str, cure: str
) -> None:
    api.before = lambda call: error(status, kind, "the message")
    for call in (
        lambda: client.fill("a"),
        client.take,
        lambda: client.put("a"),
        lambda: client.delete(ids("a")),
        client.open,
    ):
        with pytest.raises(BackendError, match=f"{status} {kind}: the message") as caught:
            await call()
        assert caught.value.reason == reason
        assert cure in str(caught.value)
    assert client.stats["retries"] == 0


# The last is the first: enough where nothing is needed of an answer.
SHAPES = ['{"data": {"items": 5, "id": 5}}', '{"data": []}', '{"data": null}', "[]", "null", ""]


@pytest.mark.usefixtures("hurried")
async def test_an_answer_of_another_shape_is_asked_for_again(
    api: Api, server: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each endpoint gives each of them once. None is taken for an answer, or for a bug of ours."""
    monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(http, "_LONGEST_BACKOFF", 0.001)
    left: defaultdict[tuple[str, str], list[str]] = defaultdict(lambda: [*SHAPES])

    def before(call: Call) -> Any:
        shapes = left[call.method, re.sub("/requests/[A-Za-z0-9]{15}", "/requests/id", call.path)]
        return web.Response(text=shapes.pop()) if shapes else None

    api.before = before
    async with server.open(about="title") as client, server.open(lock_secs=60) as worker:
        await client.fill("a", "b")
        await worker.fill("c")
        assert keys_of(await client.entries()) == list("abc")
        assert keys_of(await worker.entries()) == list("abc")
        assert await client.get(ids("b")[0]) == entry("b")
        assert await client.lock_of(ids("b")[0]) is not None
        assert await client.listed() == {*"abc"}
        assert len(await worker.prolong(ids("a"))) == 1
        await worker.unlock(ids("a"))
        await worker.unlock()
        await client.ack("a")
        await client.delete(ids("b"))
        assert (await client.info())[2:5] == (2, 1, 1)
        assert [known.name for known in await client.queues()] == [NAME]
        await client.purge()
    assert len(left) == 16
    assert not any(left.values())


@pytest.mark.usefixtures("hurried")
async def test_what_nobody_needs_of_an_answer_may_be_odd_or_missing(
    api: Api, client: Apify
) -> None:
    await client.fill("a")

    def after(call: Call, data: Any) -> Any:
        match call.method, call.path:
            case "GET", "":
                counts = (f"{kind}RequestCount" for kind in ("total", "handled", "pending"))
                names = ("id", "consoleUrl", *counts)
                data = {name: data[name] for name in names}
                return {**data, "modifiedAt": "soon", "title": [], "stats": {"readCount": "many"}}
            case "GET", "/head":  # which cuts keys and URLs in the middle of a character
                items = [{"id": item["id"], "url": "https://\ud83d"} for item in data["items"]]
                return {"items": items}
        return data

    api.after = after
    assert (await client.info())[2:] == (1, 0, 1, None, Operations(0, 0))
    claim = await client.take()
    assert keys_of(one.entry for one in claim.entries) == ["a"]
    assert not claim.alone  # where nothing is said, there may be others
    assert client.stats["retries"] == 0
    api.complaints.clear()


@pytest.mark.parametrize("kind", ["empty", "again"])
async def test_a_list_without_an_end_is_an_error(
    api: Api, client: Apify, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_MOST_EMPTY", 5)
    await client.fill("a")

    def after(call: Call, data: Any) -> Any:
        if not call.is_("GET", "/requests"):
            return data
        cursor = write_cursor(f"0{len(api.calls)}" if kind == "empty" else "0")
        return {**data, "items": [] if kind == "empty" else data["items"], "nextCursor": cursor}

    api.after = after
    with pytest.raises(BackendError, match="has no end"):
        await client.listed()


@pytest.mark.usefixtures("hurried")
async def test_purge_survives_a_lost_answer(api: Api, client: Apify) -> None:
    answers = ["drop", error(404, "record-not-found")]
    api.before = lambda call: answers.pop(0) if call.is_("DELETE", "") else None
    await client.purge()
    assert answers == []


async def test_a_queue_named_by_its_id_keeps_it(server: Queues, client: Apify) -> None:
    await client.fill(*numbered(30))
    id = (await client.info()).id
    async with server.open(id=id) as same:
        await same.purge()
        assert (await same.info())[:5] == (id, NAME, 0, 0, 0)
        answers = await same.fill(*numbered(25))
        assert not any(answer.was_already_present for answer in answers)


@pytest.mark.usefixtures("hurried")
async def test_every_call_says_who_we_are_and_never_the_token(
    api: Api, server: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("aiohttp", "aiohttp.client", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    problems = iter(["drop", error(500, message=f"Bearer {TOKEN}"), error(429)])
    api.before = lambda call: next(problems, None) if call.method == "PUT" else None
    async with server.open(client_key="our-key") as client:
        await client.fill(*numbered(60))
        async with server.open(client_key="our-key") as same:
            await same.take()
            await same.take()
        await client.put(handled("00000"), forefront=True)
        assert len(await client.listed("pending")) == 59
        await client.delete(ids("00001"))
        assert await client.info()
        assert (await client.take()).alone
        texts = [repr(client), repr(vars(client)), client.location]
        api.before = lambda call: error(401, message=f"bad token {TOKEN}")
        with pytest.raises(BackendError) as caught:
            await client.info()
    texts += [str(caught.value), repr(caught.value), *client.stats, caplog.text]
    texts += [call.url for call in api.calls]
    assert not [text for text in texts if TOKEN in text]
    for call in api.calls:
        assert call.headers["User-Agent"].startswith("scrapy-apify-rq/")
        assert call.headers["Authorization"] == f"Bearer {TOKEN}"
        assert call.query.get("clientKey") == (None if takes_no_key(call) else "our-key")


def takes_no_key(call: Call) -> Any:
    of_one = call.method == "GET" and call.path.startswith("/requests/")
    return of_one or not call.path or call.path.startswith("/v2/")
