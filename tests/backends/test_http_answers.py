"""The HTTP client alone: what it makes of each answer and of each error, in virtual time."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from scrapy_apify_rq.backends.api_models import Model
from scrapy_apify_rq.backends.apify import http
from scrapy_apify_rq.backends.apify.answers import reading
from scrapy_apify_rq.backends.apify.http import AnswerTooLong, Client, Refused
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import CRUD_RATE, OTHER_RATE


class Form(Model):
    id: str


QUEUE = reading(Form)
URL = "https://api.example.com"
TOKEN = "apify_api_secret"
GOOD = {"data": {"id": "q"}}
DATA = Form(id="q")


def page(status: int, text: str = "<html>sorry</html>", **headers: str) -> httpx2.Response:
    """An answer that something between us and the API gives."""
    return httpx2.Response(status, text=text, headers=headers)


def refusal(status: int, kind: str = "some-type", **headers: str) -> httpx2.Response:
    body = {"error": {"type": kind, "message": f"not with {TOKEN}"}}
    return httpx2.Response(status, json=body, headers=headers)


def good(**headers: str) -> httpx2.Response:
    return httpx2.Response(200, json=GOOD, headers=headers)


def packed(content: bytes) -> httpx2.Response:
    """An answer as it comes from the network."""
    stream = httpx2.ByteStream(content)
    return httpx2.Response(200, stream=stream, headers={"Content-Encoding": "gzip"})


class Api:
    """Gives the answers of a script, its last one for ever, and notes the calls."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.calls: list[tuple[float, httpx2.Request]] = []
        self.stats: Counter[str] = Counter()

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.calls.append((asyncio.get_running_loop().time(), request))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        made: httpx2.Response = answer() if callable(answer) else answer
        return made

    @property
    def times(self) -> list[float]:
        return [at - self.calls[0][0] for at, _ in self.calls]

    @asynccontextmanager
    async def client(self, patience: float = 60) -> Any:
        def inc(name: str) -> None:
            self.stats[name.removeprefix("apify_rq/api/")] += 1

        transport = httpx2.MockTransport(self.answer)
        client = Client(URL, TOKEN, patience=patience, inc_stat=inc, transport=transport)
        client.open()
        yield client
        await client.close()

    async def call(self, *, body: bytes | None = None, patience: float = 60) -> http.Answer[Form]:
        async with self.client(patience) as client:
            answer: http.Answer = await client.call(
                "a", "PUT", "x", read=QUEUE, rate=CRUD_RATE, body=body
            )
            return answer


pytestmark = pytest.mark.virtual_time

NOT_THE_APIS = [
    page(200),
    page(200, ""),
    page(200, "[]"),
    page(200, "null"),
    page(200, '{"data": null}'),
    page(200, '{"data": {"id": 7}}'),
    page(200, '{"data": {"id": "q"}'),
    page(200, "[" * 3000),
    page(204, ""),
    page(201, '{"id": "q"}'),
    page(302, Location="/login"),
    page(403),
    page(404),
    page(502),
    page(403, '{"error": "forbidden"}'),
    packed(b"no gzip"),
    packed(gzip.compress(json.dumps(GOOD).encode())[:-12]),
]


@pytest.mark.parametrize("answer", NOT_THE_APIS, ids=[*map(str, range(len(NOT_THE_APIS)))])
async def test_an_answer_that_is_not_the_apis_is_asked_for_again(answer: httpx2.Response) -> None:
    def again() -> httpx2.Response:
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=answer.stream)

    api = Api(again, again, good)
    assert await api.call() == (DATA, True)
    assert api.stats == {"calls/a": 3, "retries": 2}


async def test_what_the_api_refuses_is_not_asked_for_again() -> None:
    for status in (400, 401, 403, 404, 409, 413, 422):
        api = Api(lambda status=status: refusal(status))
        with pytest.raises(Refused, match=f"{status} some-type: not with <token>$") as caught:
            await api.call()
        assert caught.value.status == status
        assert len(api.calls) == 1


@pytest.mark.parametrize(
    ("error", "maybe_done"),
    [
        (httpx2.ConnectError("refused"), False),
        (httpx2.ConnectTimeout("too long"), False),
        (httpx2.ProxyError("403 of the proxy"), False),
        (httpx2.WriteError("reset"), True),
        (httpx2.ReadTimeout("too long"), True),
        (httpx2.RemoteProtocolError("Server disconnected"), True),
        (httpx2.LocalProtocolError("Too little data"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
    ],
    ids=repr,
)
async def test_what_is_not_known_to_be_unsent_may_be_done(
    error: Exception, maybe_done: bool
) -> None:
    assert await Api(error, good).call() == (DATA, maybe_done)


async def test_retries_wait_longer_each_time_or_as_told() -> None:
    def dated() -> httpx2.Response:
        date = datetime.fromtimestamp(http.time.time() + 3, UTC)
        return refusal(503, **{"Retry-After": format_datetime(date, usegmt=True)})

    pauses: list[float] = []
    for answer, least, most in (
        (refusal(503, **{"Retry-After": "2"}), 2, 2.01),
        (dated, 2, 3.01),
        (refusal(503, **{"Retry-After": "inf"}), 0.5, 1),
        (refusal(400, "request-aborted-prematurely"), 0.5, 1),
        (refusal(408, "operation-timed-out"), 0.5, 1),
    ):
        api = Api(answer, good)
        await api.call()
        pauses.append(pause := api.times[1])
        assert least <= pause <= most + 0.1, answer
    assert len({*pauses}) == len(pauses)  # jitter
    api = Api(*[refusal(500)] * 8, good)
    await api.call(patience=600)
    steps = [after - before for before, after in pairwise(api.times)]
    for step, least in zip(steps, (0.5, 1, 2, 4, 8, 16, 30, 30), strict=True):
        assert least <= step <= 2 * least + 0.1


async def test_a_long_retry_after_does_not_outlast_our_patience() -> None:
    api = Api(lambda: refusal(429, **{"Retry-After": "3600"}))
    with pytest.raises(BackendError, match="429"):
        await api.call(patience=5)
    assert api.times == pytest.approx([0, 5], abs=0.1)


async def test_the_message_names_the_setting_and_not_the_token() -> None:
    for problem in (httpx2.ReadError(f"reset after Bearer {TOKEN}"), page(500, TOKEN)):
        with pytest.raises(BackendError, match="APIFY_RQ_UNAVAILABLE_TIMEOUT is 5") as caught:
            await Api(problem).call(patience=5)
        assert TOKEN not in str(caught.value)
        assert caught.value.reason == "apify_rq_unavailable"


async def test_a_packed_answer_is_unpacked_no_further_than_it_may() -> None:
    text = json.dumps({"data": {"id": "x" * 100_000}}).encode()
    answer = await Api(packed(gzip.compress(text))).call()
    assert answer.data.id == "x" * 100_000
    bomb = gzip.compress(bytes(200_000_000), 1)
    tracemalloc.start()
    try:
        with pytest.raises(AnswerTooLong):
            await Api(packed(bomb)).call()
        assert tracemalloc.get_traced_memory()[1] < 120_000_000
    finally:
        tracemalloc.stop()


async def test_told_to_wait_the_whole_class_of_calls_waits() -> None:
    api = Api(lambda: refusal(429, **{"Retry-After": "5"}), good)

    async with api.client() as client:

        async def call(rate: int) -> float:
            await client.call("a", "GET", "x", read=QUEUE, rate=rate)
            return asyncio.get_running_loop().time()

        begun = asyncio.get_running_loop().time()
        first = asyncio.create_task(call(CRUD_RATE))
        await asyncio.sleep(0.1)
        others = await asyncio.gather(*(call(CRUD_RATE) for _ in range(10)), call(OTHER_RATE))
        assert await first - begun >= 5
        assert all(end - begun >= 5 for end in others[:-1])
        assert others[-1] - begun < 0.2
    assert api.stats["rate_limited"] == 1


async def test_who_is_refused_again_and_again_calls_less_often() -> None:
    """The API takes 50 calls a second; other workers take the rest."""
    taken: list[float] = []

    def limited() -> httpx2.Response:
        now = asyncio.get_running_loop().time()
        if sum(now - at < 1 for at in taken) >= 50:
            return refusal(429)
        taken.append(now)
        return good()

    api = Api(limited)
    async with api.client() as client:

        async def calls() -> None:
            for _ in range(15):
                await client.call("a", "PUT", "x", read=QUEUE, rate=CRUD_RATE)

        await asyncio.gather(*(calls() for _ in range(100)))
    late = [at for at in api.times if at > 10]
    assert api.stats["rate_limited"] < 0.5 * len(taken)
    assert len(late) / (max(late) - 10) < 100
    # And what it is allowed is used.
    assert len(taken) / (taken[-1] - taken[0]) > 30


async def test_bodies_are_compressed_where_it_pays() -> None:
    for size, is_packed in ((1000, False), (2000, True), (64 * 1024, True), (8_000_000, False)):
        api = Api(good)
        await api.call(body=b"x" * size)
        [(_, request)] = api.calls
        assert (request.headers.get("Content-Encoding") == "gzip") == is_packed, size
        body = gzip.decompress(request.content) if is_packed else request.content
        assert len(body) == size


async def test_no_cookie_is_kept_and_no_call_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    api = Api(lambda: good(**{"Set-Cookie": "a=1"}))
    async with api.client() as client:
        for _ in range(2):
            await client.call("a", "GET", "x", read=QUEUE, rate=OTHER_RATE, query={"name": "a b&c"})
    for _, request in api.calls:
        assert "Cookie" not in request.headers
        assert str(request.url) == f"{URL}/v2/x?name=a+b%26c"
    assert caplog.text == ""
