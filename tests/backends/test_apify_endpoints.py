"""What the client tells the API about itself, and what it makes of an answer about the queue."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Api, Call, error
from tests.support.backends import Apify, Queues, handled, ids, numbered
from tests.support.queues import NAME, TOKEN


@pytest.mark.parametrize(
    ("status", "reason", "cure"),
    [
        (401, "apify_rq_unauthorized", "Set APIFY_TOKEN"),
        (403, "apify_rq_unauthorized", "APIFY_TOKEN may not use this queue"),
        (404, "apify_rq_gone", "APIFY_RQ_ID"),
        (405, "apify_rq_unavailable", "APIFY_API_BASE_URL"),
    ],
)
async def test_what_concerns_the_queue_is_final(
    api: Api, client: Apify, status: int, reason: str, cure: str
) -> None:
    api.before = lambda call: error(status, "a-type", "the message")
    for call in (
        lambda: client.fill("a"),
        client.take,
        lambda: client.put("a"),
        lambda: client.delete(ids("a")),
        client.open,
    ):
        with pytest.raises(BackendError, match=f"{status} a-type: the message") as caught:
            await call()
        assert caught.value.reason == reason
        assert cure in str(caught.value)
    assert client.stats["retries"] == 0


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
