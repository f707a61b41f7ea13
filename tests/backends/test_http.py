"""The HTTP client: its pace, its patience, answers that are none, and how it is closed."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.backends.apify import http
from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Api, Call, error
from tests.support.backends import Apify, Queues, handled, numbered
from tests.support.waiting import wait_until


async def test_calls_are_paced_by_their_class(api: Api, client: Apify) -> None:
    late = 0.0

    async def watch() -> None:
        """Sum up how late this loop runs, on a machine with other work."""
        nonlocal late
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            late += time.monotonic() - due

    begun = time.monotonic()
    watching = asyncio.create_task(watch())
    await asyncio.gather(
        client.put(*numbered(600)),
        *(client.fill(f"new{n}") for n in range(60)),
        *(client.info() for n in range(80)),
    )
    took = time.monotonic() - begun - late
    watching.cancel()
    calls = api.calls
    classes = {
        400: [call.at for call in calls if call.method == "PUT"],
        40: [call.at for call in calls if call.path == "/requests/batch"],
        60: [call.at for call in calls if call.is_("GET", "")],
    }
    assert [len(times) for times in classes.values()] == [600, 60, 80]
    for rate, times in classes.items():
        most = max(sum(at <= t < at + 1 for t in times) for at in times)
        # On their way calls may close up.
        assert most <= rate * 1.2, rate
    # And not much slower than they may.
    assert took < 5


async def test_retries_wait_longer_each_time_or_as_told(api: Api, client: Apify) -> None:
    """All at once, since waiting is what takes the time."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    answers: dict[str, list[Any]] = {
        # Without a lost connection: aiohttp itself repeats such a PUT once, at once.
        "backoff": [error(500), error(502), error(429)],
        "seconds": [error(429, **{"Retry-After": "2"})],
        "date": [error(503, **{"Retry-After": date})],
        "nonsense": [error(503, **{"Retry-After": "inf"})],
        "aborted": [error(400, "request-aborted-prematurely")],
        "timed-out": [error(408, "operation-timed-out")],
    }
    times: dict[str, list[float]] = {key: [] for key in answers}

    def before(call: Call) -> Any:
        key = call.json["uniqueKey"]
        times[key].append(call.at)
        return answers[key].pop(0) if answers[key] else None

    api.before = before
    await client.put(*times)
    assert client.stats["rate_limited"] == 2
    assert client.stats["retries"] == 8
    pauses = {key: [b - a for a, b in pairwise(t)] for key, t in times.items()}
    for pause, least in zip(pauses["backoff"], (0.5, 1, 2), strict=True):
        assert least <= pause < 2 * least + 0.5
    assert 2 <= pauses["seconds"][0] < 2.6
    assert 1.9 <= pauses["date"][0] < 3.6  # the date has whole seconds
    for key in ("nonsense", "aborted", "timed-out"):
        assert 0.5 <= pauses[key][0] < 1.5
    assert len({round(pauses[key][0], 3) for key in pauses}) > 3  # jitter


async def test_a_long_retry_after_does_not_outlast_our_patience(api: Api, server: Queues) -> None:
    async with server.open(patience=0.5) as client:
        api.before = lambda call: error(429, **{"Retry-After": "3600"})
        begun = time.monotonic()
        with pytest.raises(BackendError, match="429"):
            await client.take(1)
        assert 0.5 <= time.monotonic() - begun < 3
        assert client.stats["calls/head_get"] == 2


@pytest.mark.usefixtures("hurried")
async def test_one_failing_operation_ends_our_patience_while_others_work(
    api: Api, server: Queues
) -> None:
    api.before = lambda call: error(500) if call.method == "PUT" else None
    async with server.open(patience=0.4) as client:

        async def others() -> None:
            while True:
                await client.take(1)
                await asyncio.sleep(0.02)

        working = asyncio.create_task(others())
        with pytest.raises(BackendError, match="request_put: 500 some-type: why") as caught:
            await client.put("a", "b", "c")
        assert caught.value.reason == "apify_rq_unavailable"
        assert working.cancel()


async def test_when_one_fails_no_other_goes_on(
    api: Api, client: Apify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.2)
    entries = numbered(100)
    api.before = lambda call: error(403 if call.path.endswith(entries[0].id) else 503)
    with pytest.raises(BackendError):
        await client.put(*entries)
    made = client.stats["calls/request_put"]
    await asyncio.sleep(0.5)  # the first pause of those that wait is over
    assert client.stats["calls/request_put"] == made


@pytest.mark.usefixtures("hurried")
async def test_an_outage_is_reported_once(
    api: Api, client: Apify, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls = count()
    api.before = lambda call: "drop" if next(calls) < 10 * 50 else None
    await client.put(*numbered(50))
    messages = [record.message for record in caplog.records]
    assert len([m for m in messages if "APIFY_RQ_UNAVAILABLE_TIMEOUT" in m]) <= 2
    assert "The Apify API works again (request_put)" in messages[-1]


@pytest.mark.usefixtures("hurried")
async def test_nobody_there_is_an_outage() -> None:
    queues = Queues("server", Path(), "http://127.0.0.1:1")
    with pytest.raises(BackendError, match="Cannot connect to host") as caught:
        async with queues.open(patience=0.2):
            pass
    assert caught.value.reason == "apify_rq_unavailable"


OK = b"HTTP/1.1 200 OK\r\n"
QUEUE = b'{"data":{"id":"q","name":null,"totalRequestCount":0}}'


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "answer",
    [
        OK + b'Content-Length: 100\r\n\r\n{"data":',
        OK + b'Transfer-Encoding: chunked\r\n\r\n50\r\n{"data":',
        b"",
        b"nonsense\r\n\r\n",
        OK + b"Content-Length: 6\r\n\r\n<html>",
        OK + b"Content-Length: 2\r\n\r\n[]",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nwrong",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
    ],
)
async def test_an_answer_that_is_none_is_asked_for_again(answer: bytes) -> None:
    answers = [answer, answer, OK + b"Content-Length: %d\r\n\r\n%s" % (len(QUEUE), QUEUE)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Queues("server", Path(), url).open(id="q"):
            assert answers == []


async def test_large_bodies_are_compressed(api: Api, client: Apify) -> None:
    await client.fill(*numbered(25))
    await client.fill("one")
    many, one = api.of("POST", "/requests/batch")
    assert many.headers["Content-Encoding"] == "gzip"
    assert int(many.headers["Content-Length"]) < len(many.body) / 2
    assert "Content-Encoding" not in one.headers


# The end


@pytest.fixture
def arrived(api: Api) -> Iterator[threading.Event]:
    """Set once the API has had an update, all of which it puts off."""
    arrived = threading.Event()

    def before(call: Call) -> Any:
        if call.method != "PUT":
            return None
        arrived.set()
        return error(503)

    api.before = before
    yield arrived
    gc.collect()  # what was left open would warn now, and warnings are errors


async def test_close_in_the_middle_of_calls(arrived: threading.Event, client: Apify) -> None:
    calls = asyncio.create_task(client.put(*numbered(50)))
    await wait_until(arrived.is_set)
    await client.close()
    with pytest.raises(BackendError, match="closed"):
        await calls
    with pytest.raises(BackendError, match="closed"):
        await client.claim(1, (), 1)
    await client.close()


async def test_a_cancelled_call_leaves_nothing_behind(
    arrived: threading.Event, api: Api, client: Apify
) -> None:
    calls = asyncio.create_task(client.put(*numbered(50)))
    await wait_until(arrived.is_set)
    calls.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls
    # The server may still get calls that were sent before.
    api.before = lambda call: error(503) if b"handledAt" not in call.body else None
    await client.put(handled("00000"))
    api.before = lambda call: None
    assert [entry async for entry in client.list()] == [handled("00000")]
