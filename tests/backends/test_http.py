"""The HTTP client: its pace, its patience, answers that are none, and how it is closed."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import threading
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from scrapy_apify_rq.backends.apify import blocking, http
from scrapy_apify_rq.backends.apify.pace import Pace
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import CRUD_RATE
from tests.support.api_calls import Api, Call, error
from tests.support.backends import Apify, Queues, handled, numbered
from tests.support.certificates import self_signed
from tests.support.queues import TOKEN
from tests.support.waiting import wait_until
from tests.support.website import Site


async def test_calls_are_paced_by_their_class(
    client: Apify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When they start is what counts: on their way they may close up."""
    late = 0.0
    started: dict[Pace, list[float]] = defaultdict(list)
    wait = Pace.wait

    async def noted(pace: Pace) -> None:
        await wait(pace)
        started[pace].append(time.monotonic())

    monkeypatch.setattr(Pace, "wait", noted)

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
        client.put(*numbered(500)),
        *(client.fill(f"new{n}") for n in range(50)),
        *(client.info() for n in range(75)),
    )
    took = time.monotonic() - begun - late
    watching.cancel()
    assert sorted(map(len, started.values())) == [50, 75, 500]
    for times in started.values():
        rate = {50: 40, 75: 60, 500: 400}[len(times)]
        most = max(sum(at <= t < at + 1 for t in times) for at in times)
        assert most <= rate * 1.1, rate
    # And not much slower than they may.
    assert took < 5


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
async def test_the_token_follows_no_redirect(api: Api, client: Apify, site: Site) -> None:
    there = {"Location": f"{site.url}/elsewhere"}
    answers = [web.Response(status=307, headers=there)]
    api.before = lambda call: answers.pop() if answers else None
    made = len(api.calls)
    await client.put("a")
    assert len(api.calls) == made + 2
    assert not site.hits


async def test_a_record_may_be_behind_a_link(api: Api, server: Queues, site: Site) -> None:
    """The API answers with one that is signed. The token does not go there."""
    site.serve({"/signed?key=%2B": [500, "text"]})
    link = {"Location": f"{site.url}/signed?key=%2B"}
    async with server.open() as client:
        await client.save_records({"name": b"{}"})
    api.before = lambda call: (
        web.Response(status=302, headers=link) if "/records/" in call.path else None
    )
    async with server.open() as client:
        assert await client.load_records("") == {"name": b"text"}
    url = f"{api.url}/v2/key-value-stores/x/records/INPUT"
    assert blocking.get(url, what="The run's input", token=TOKEN) == b"text"
    assert len(site.hits) == 3
    assert "authorization" not in {name.lower() for hit in site.hits for name, _ in hit.headers}


@pytest.mark.usefixtures("hurried")
async def test_an_outage_is_reported_once(
    api: Api, client: Apify, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls = count()
    api.before = lambda call: "drop" if next(calls) < 6 * 50 else None
    await client.put(*numbered(50))
    messages = [record.message for record in caplog.records]
    assert len([m for m in messages if "APIFY_RQ_UNAVAILABLE_TIMEOUT" in m]) <= 2
    assert "The Apify API works again (request_put)" in messages[-1]


@pytest.mark.usefixtures("hurried")
async def test_nobody_there_is_an_outage() -> None:
    queues = Queues("server", Path(), "http://127.0.0.1:1")
    with pytest.raises(BackendError, match=r"cannot connect to 127\.0\.0\.1") as caught:
        async with queues.open(patience=0.2):
            pass
    assert caught.value.reason == "apify_rq_unavailable"


OK = b"HTTP/1.1 200 OK\r\n"
COUNTS = b'"totalRequestCount":0,"handledRequestCount":0,"pendingRequestCount":0'
QUEUE = b'{"data":{"id":"q","name":null,%s}}' % COUNTS


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "answer",
    [
        OK + b'Content-Length: 100\r\n\r\n{"data":',
        OK + b'Transfer-Encoding: chunked\r\n\r\n50\r\n{"data":',
        b"",
        b"nonsense\r\n\r\n",
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


# The network


@asynccontextmanager
async def answering(answer: Callable[[int, bytes], bytes]) -> AsyncIterator[str]:
    """The address of a server that gets the number of a connection and each of its requests.

    Without an answer it closes the connection.
    """
    numbers = count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while given := answer(number, await reader.readuntil(b"\r\n\r\n")):
                writer.write(given)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


GOOD = OK + b"Content-Length: %d\r\n\r\n%s" % (len(QUEUE), QUEUE)


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[http.Client]:
    client = http.Client(url, TOKEN, patience=30, inc_stat=lambda name: None)
    client.open()
    yield client
    await client.close()


@pytest.mark.usefixtures("hurried")
async def test_nothing_is_sent_again_without_our_knowledge() -> None:
    """A server may close a connection that it had kept, when the next call is on its way."""
    sent: list[bytes] = []

    def answer(connection: int, request: bytes) -> bytes:
        sent.append(request.split()[0])
        return b"" if sent.count(b"PUT") == 1 else GOOD

    async with answering(answer) as address, client_of(f"http://{address}") as client:
        await client.call("get", "GET", "x", read=bytes, rate=CRUD_RATE)
        repeated = await client.call("put", "PUT", "x", read=bytes, rate=CRUD_RATE, body=b"{}")
    assert repeated.maybe_repeated
    assert sent == [b"GET", b"PUT", b"PUT"]


async def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never for this machine itself."""
    seen: list[bytes] = []

    def answer(connection: int, request: bytes) -> bytes:
        seen.append(request.split()[1])
        return GOOD

    async with answering(answer) as address:
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        monkeypatch.setenv("NO_PROXY", "direct.invalid")
        for host in ("elsewhere.invalid", address):
            async with client_of(f"http://{host}") as client:
                await client.call("get", "GET", "x", read=bytes, rate=CRUD_RATE)
        monkeypatch.setattr(http, "_HOPELESS_PATIENCE", 0.1)
        async with client_of("http://direct.invalid") as client:
            with pytest.raises(BackendError, match=r"cannot connect to direct\.invalid"):
                await client.call("get", "GET", "x", read=bytes, rate=CRUD_RATE)
    assert seen == [b"http://elsewhere.invalid/v2/x", b"/v2/x"]


async def test_no_error_shows_the_password_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses, without a scheme as well, and those that are none."""
    url = "https://elsewhere.invalid"

    def refuse(connection: int, request: bytes) -> bytes:
        assert b"Proxy-Authorization: Basic " + b64encode(b"user:SECRET") in request
        return b"HTTP/1.1 403 No way\r\nContent-Length: 0\r\n\r\n"

    async with answering(refuse) as address:
        for scheme in ("http://", ""):
            monkeypatch.setenv("HTTPS_PROXY", f"{scheme}user:SECRET@{address}")
            async with client_of(url) as client:
                client.patience = 0.01
                with pytest.raises(BackendError, match="403 No way") as raised:
                    await client.call("get", "GET", "x", read=bytes, rate=CRUD_RATE)
            assert "SECRET" not in str(raised.value)
    for proxy in ("socks5://user:SECRET@h", "http://user:SECRET@h:99999", "//user:SECRET@[h"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        client = http.Client(url, TOKEN, patience=30, inc_stat=lambda name: None)
        for use in (client.open, lambda: blocking.get(url, what="it")):
            with pytest.raises(BackendError, match="no HTTP proxy: set https_proxy to") as raised:
                use()
            assert "SECRET" not in str(raised.value)


async def test_a_wrong_certificate_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_HOPELESS_PATIENCE", 0.1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        async with client_of(f"https://127.0.0.1:{port}") as client:
            with pytest.raises(BackendError, match=r"CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE"):
                await client.call("get", "GET", "x", read=bytes, rate=CRUD_RATE)


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
