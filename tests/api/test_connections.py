"""What clients do to connections, what is logged of them, and what must not stop the others."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.server import bodies
from scrapy_apify_rq.server.application import application
from scrapy_apify_rq.server.connections import Connections
from tests.support.queues import NAME, Queue
from tests.support.raw_calls import request
from tests.support.waiting import wait_until

HEAD = b"POST /v2/request-queues/~test-queue/requests HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
BODY = json.dumps(request("a")).encode()


@asynccontextmanager
async def running(folder: Path, patience: float = 60) -> AsyncIterator[str]:
    """The server with nothing between it and the wire, and a queue; yields its address."""
    connections = Connections(patience)
    app = application(folder, middlewares=[connections.middleware()])
    runner = web.AppRunner(app, access_log=None, lingering_time=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert runner.server is not None
    watch = asyncio.create_task(connections.watch(runner.server))
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2/request-queues"
    try:
        async with httpx.AsyncClient(verify=False) as http:
            await http.post(url, params={"name": NAME})
        yield url
    finally:
        watch.cancel()
        await runner.cleanup()


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)


async def test_client_that_leaves_in_the_middle_of_a_body_is_no_bug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(tmp_path) as url:
        _, writer = await connect(url)
        writer.write(HEAD + JSON % 100 + b'{"uniqueKey"')
        await asyncio.sleep(0.05)  # so that its headers arrive first
        writer.close()
        await wait_until(lambda: "/requests: 400" in caplog.text, "the end of the call")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + JSON % len(BODY) + BODY])
async def test_silent_connections_are_closed(tmp_path: Path, sent: bytes) -> None:
    """Before the headers, in the middle of them, and after a call."""
    async with running(tmp_path, patience=0.2) as url, asyncio.timeout(20):
        reader, writer = await connect(url)
        writer.write(sent)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        assert answer.startswith(b"HTTP/1.1 201 " if sent.endswith(BODY) else b"")
        writer.close()


async def test_calls_may_take_longer(tmp_path: Path) -> None:
    async with running(tmp_path, patience=0.2) as url, asyncio.timeout(20):
        reader, writer = await connect(url)
        writer.write(HEAD + JSON % len(BODY))
        await asyncio.sleep(0.6)
        writer.write(BODY)
        assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
        writer.close()


async def test_body_has_to_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_BODY_PATIENCE", 0.1)
    async with running(tmp_path) as url, asyncio.timeout(20):
        reader, writer = await connect(url)
        writer.write(HEAD + JSON % 100)
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_each_client_is_logged_once_and_no_token_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "scrapy_apify_rq")
    agent = {"User-Agent": "x"}
    async with running(tmp_path) as url, httpx.AsyncClient(headers=agent, verify=False) as http:
        for key in ("one", "one", "two%0A"):
            await http.get(f"{url}/~{NAME}/head?token=secret&clientKey={key}")
    server = "scrapy_apify_rq.server"
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(server)]
    shown = f"GET /v2/request-queues/~{NAME}/head: 200"
    new = f"New client of the queue {NAME}: 'x' at 127.0.0.1, with the key "
    assert lines[1:] == [f"{new}'one'", shown, shown, f"{new}'two\\n'", shown]
    assert "secret" not in caplog.text


async def test_others_get_their_turn_while_large_entries_are_shown(tmp_path: Path) -> None:
    names = [str(n) for n in range(20)]
    large = {"text": "x" * 300_000}
    await Queue(tmp_path).add(
        *(Entry(id=request_id(name), unique_key=name, url="u", user_data=large) for name in names)
    )
    store = Store(tmp_path, 1, time.time)
    await store.open()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    record = await store.find(name=NAME)
    assert record is not None
    head = [id async for id, _ in store.queue(record.key, "").head(100)]
    task.cancel()
    await store.close()
    assert head == [request_id(name) for name in names]
    assert turns == len(names)
