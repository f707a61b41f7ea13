"""Serve the shop on loopback: in a thread (``with ShopServer() as shop``), or as a program.

``python -m shop_example.site --port 0`` prints its URL on one line and runs until it is killed.
``GET /_hits`` returns the requests that it has received. ``GET /_hits?at_least=100`` waits until
there are that many. Uses only the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import threading
from collections import Counter
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from shop_example.catalog import Catalog, Page

FAILURES_OF_A_FLAKY_PAGE = 2

# The client has left, the client does not speak HTTP, or the shop stops.
_END_OF_CONNECTION = (
    *(EOFError, ConnectionError),
    *(ValueError, asyncio.LimitOverrunError),
    asyncio.CancelledError,
)


class Hit(NamedTuple):
    """A request that the shop has received. ``path`` is unchanged and includes the query."""

    method: str
    path: str
    body: str


class _Request(NamedTuple):
    hit: Hit
    keep_alive: bool


class ShopServer:
    """Serves the shop in a thread, where one event loop handles all connections.

    ``hits`` has all requests in the order of their arrival. Only the server's thread appends to it,
    so other threads can read it at any time.
    """

    def __init__(self, *, port: int = 0, products: int = 200, delay: float = 0.0) -> None:
        self.catalog = Catalog(products)
        self.hits: list[Hit] = []
        self.url = ""
        self._port = port
        self._delay = delay
        self._failures: Counter[str] = Counter()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to serve. Raises OSError if the port is in use."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = threading.Event()
        # A daemon thread, so that the shop does not keep a failed crawl's process alive.
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)), name="shop", daemon=True
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Close every connection; the hits remain."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> ShopServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._news = asyncio.Condition()
        server = await asyncio.start_server(self._connection, sock=listener)
        ready.set()
        await self._stopping.wait()
        # Do not call wait_closed(): it would wait for clients that keep their connection open.
        # asyncio.run() cancels the tasks that serve them.
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*_END_OF_CONNECTION), contextlib.closing(writer):
            keep_alive = True
            while keep_alive:
                request = await _read_request(reader)
                keep_alive = request.keep_alive
                page = await self._answer(request.hit)
                writer.write(_encode(page, keep_alive=keep_alive))
                await writer.drain()

    async def _answer(self, hit: Hit) -> Page:
        url = urlsplit(hit.path)
        path = unquote(url.path)
        if path == "/_hits":
            return await self._report(int(dict(parse_qsl(url.query)).get("at_least", 0)))
        self.hits.append(hit)
        async with self._news:
            self._news.notify_all()
        if self._delay:
            await asyncio.sleep(self._delay)
        if path in self.catalog.flaky and self._failures[path] < FAILURES_OF_A_FLAKY_PAGE:
            self._failures[path] += 1
            return Page("Try again", status=503)
        fields = hit.body if hit.method == "POST" else url.query
        return self.catalog.page(path, dict(parse_qsl(fields)))

    async def _report(self, at_least: int) -> Page:
        async with self._news:
            await self._news.wait_for(lambda: len(self.hits) >= at_least)
        return Page(json.dumps(self.hits), content_type="application/json")


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.lower().split(":", 1) for line in lines)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    keep_alive = headers.get("connection", "").strip() != "close"
    return _Request(Hit(method, path, body.decode()), keep_alive)


def _encode(page: Page, *, keep_alive: bool) -> bytes:
    body = page.body.encode()
    head = [
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}",
        f"Content-Type: {page.content_type}; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    if page.location:
        head.append(f"Location: {page.location}")
    return "\r\n".join([*head, "", ""]).encode() + body


def main() -> None:
    """Serve the shop until the program is killed."""
    parser = argparse.ArgumentParser(description="The shop that the example crawls.")
    parser.add_argument("--port", type=int, default=8765, help="0 selects a free port")
    parser.add_argument("--products", type=int, default=200, help="how many products to list")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each response")
    options = parser.parse_args()
    with (
        contextlib.suppress(KeyboardInterrupt),
        ShopServer(port=options.port, products=options.products, delay=options.delay) as shop,
    ):
        print(shop.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
