"""``scrapy rq serve``: a process, since a signal ends it, and its words go to a terminal."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import self_signed
from tests.support.command_line import rq, rq_ok
from tests.support.queues import NAME, TOKEN, Queue
from tests.support.raw_calls import request
from tests.support.scrapy_project import ROOT, ForkedProcess, Process
from tests.support.waiting import wait_until


def serve(folder: Path, *options: str) -> Process:
    return start(folder, "serve", *options)


def start(folder: Path, *words: str, **environ: str) -> Process:
    """The certificates of a machine are read when modules are imported, and so in no fork."""
    if "SSL_CERT_FILE" not in environ:
        return ForkedProcess(["rq", *words], folder, {**os.environ, **environ})
    command = [sys.executable, "-W", "error", "-m", "scrapy", "rq", *words]
    return Process(command, folder, {**os.environ, "PYTHONPATH": str(ROOT), **environ})


async def address(process: Process, storage: Path) -> str:
    await wait_until(lambda: process.output.endswith("token\n"), "its first lines")
    line = (
        rf"Serving request queues of {re.escape(str(storage))} on (https?://127\.0\.0\.1:\d+)\n"
        r"To look at them in a browser: \1/, with the token\n"
    )
    found = re.fullmatch(line, process.output)
    assert found
    return found[1]


async def test_serves_several_clients_until_a_signal(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    options = ("--port", "0", "--storage-dir", str(storage), "--token", TOKEN)
    async with serve(tmp_path, *options) as process:
        base = await address(process, storage)
        url = f"{base}/v2/request-queues"
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            queue = (await http.post(url)).json()["data"]["id"]
            calls = (http.post(f"{url}/{queue}/requests", json=request(key)) for key in "abcdefgh")
            assert [call.status_code for call in await asyncio.gather(*calls)] == [201] * 8
            # Nobody can make it misbehave.
            for verb, path in (("PUT", "/_faults"), ("DELETE", "/_calls"), ("GET", "/_calls")):
                assert (await http.request(verb, base + path)).status_code == 404
        async with httpx.AsyncClient() as http:
            assert (await http.get(url)).status_code == 401
        # Words that are not HTTP cost a line, which does not quote them.
        for line in ("nonsense", "GET /?token={0} HTTP/1.1 x", "GET http://[?token={0} HTTP/1.1"):
            head = f"{line}\r\nAuthorization: Bearer {{0}}\0\r\n\r\n".format(TOKEN)
            reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
            writer.write(head.encode())
            assert b" 400 " in await reader.readline()
            writer.close()
        process.send(signal.SIGINT)
        ended = await process.end()
    assert (ended.status, ended.output.count("\n")) == (0, 2)
    bad = r"(.*INFO: Error handling .*: (BadStatusLine|BadHttpM|InvalidURL).*\n){3}"
    assert re.fullmatch(rf".*INFO: New client of the queue .* without a key\n{bad}", ended.log)
    assert TOKEN not in ended.log


async def test_serves_our_client_over_tls_with_the_token_of_a_file(tmp_path: Path) -> None:
    certificate, key = map(str, self_signed(tmp_path))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    storage = tmp_path / "storage"
    options = ("--port", "0", "--storage-dir", str(storage), "--token-file", "token")
    tls = ("--certfile", certificate, "--keyfile", key)
    async with serve(tmp_path, *options, *tls) as process:
        url = await address(process, storage)
        assert url.startswith("https:")
        environ = {"SSL_CERT_FILE": certificate, "APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": url}
        words = ("add", "https://example.com/", "-s", f"APIFY_RQ_NAME={NAME}")
        async with start(tmp_path, *words, **environ) as adding:
            added = await adding.end()
        assert added.status == 0, added.log
        # Words that are not TLS cost a line.
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        process.send(signal.SIGTERM)
        ended = await process.end()
    assert ended.status == 0
    assert (await Queue(storage).entries())[0].url == "https://example.com/"
    assert "with the key" in ended.log
    assert "Traceback" not in ended.log


async def test_wrong_options_are_refused_with_the_cure(tmp_path: Path, queue: Queue) -> None:
    """Before there is a server, and so without a process."""
    (tmp_path / "empty").touch()
    empty = str(tmp_path / "empty")
    for options, cure in (
        (("--host", "0.0.0.0"), "add --token-file, or set APIFY_RQ_SERVER_TOKEN"),
        (("--host", "0.0.0.0", "--token-file", empty), "the file is empty"),
        (("--keyfile", empty), "--keyfile needs --certfile"),
        (("--certfile", empty), "files in the format PEM"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
    ):
        done = await rq(queue, "serve", *options)
        assert (done.code, done.out) == (2, ""), options
        assert cure in done.err


async def test_open_starts_the_browser_at_the_page(tmp_path: Path) -> None:
    browser = "import pathlib, sys; pathlib.Path('opened').write_text(sys.argv[1])"
    (tmp_path / "browser.py").write_text(browser)
    opened = tmp_path / "opened"
    environ = {"BROWSER": f"{sys.executable} browser.py %s"}
    async with start(tmp_path, "open", "--storage-dir", str(tmp_path), **environ) as process:
        await wait_until(lambda: opened.exists() and opened.read_text(), "the browser")
        page, _, token = opened.read_text().partition("#token=")
        assert f"To look at them in a browser: {page}#token={token}\n" in process.output
        async with httpx.AsyncClient(base_url=page) as http:
            assert "<title>Request queues</title>" in (await http.get("/")).text
            path, sent = "/v2/request-queues", {"Sec-Fetch-Site": "same-origin"}
            assert (await http.get(path, headers=sent)).status_code == 403
            sent["Authorization"] = f"Bearer {token}"
            assert (await http.get(path, headers=sent)).status_code == 200
            assert (await http.get(path)).status_code == 200
        process.send(signal.SIGINT)
        assert (await process.end()).status == 0


async def test_what_is_wrong_ends_it_with_the_cure(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it waits for a signal, and so without a process."""
    monkeypatch.setattr(logging.getLogger("aiohttp.server"), "filters", [])
    (tmp_path / "request_queues.sqlite").write_text("no database at all, but long enough for one")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        no_port = ("--port", str(taken.getsockname()[1])), "use another --host or --port"
        no_database = ("--port", "0", "--storage-dir", str(tmp_path)), "APIFY_RQ_STORAGE_DIR"
        no_host = ("--host", "a..b", "--token", "x"), "use another --host or --port"
        for options, cure in (no_port, no_database, no_host):
            done = await rq(queue, "serve", *options)
            assert (done.code, done.out) == (1, ""), options
            assert cure in done.err
            assert "Traceback" not in done.err


async def test_help_shows_an_example(queue: Queue) -> None:
    assert "Example: scrapy rq serve --port" in (await rq_ok(queue, "serve", "--help")).out
