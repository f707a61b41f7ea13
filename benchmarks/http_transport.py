"""The CPU time of a PUT with several HTTP clients, on loopback.

The server runs in another process and does as little work as possible. Only the CPU time of the
client's process counts. The result is why backends/apify/transport.py puts aiohttp below httpx2.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import logging
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
import httpx
import httpx2

from benchmarks import report
from scrapy_apify_rq.backends.apify.http import Client
from scrapy_apify_rq.backends.apify.pace import Pace
from scrapy_apify_rq.backends.apify.transport import AiohttpTransport
from scrapy_apify_rq.limits import CRUD_RATE

_ANSWER = (
    b'{"data":{"requestId":"0123456789abcde","wasAlreadyPresent":true,"wasAlreadyHandled":false}}'
)
_BODY = (
    b'{"uniqueKey":"0123456789","url":"https://example.com/a/page","userData":{"label":"parse"}}'
)

_HEADERS = {"Authorization": "Bearer token", "Content-Type": "application/json"}

Put = Callable[[str], Awaitable[bytes]]


class _Connection(asyncio.Protocol):
    """Answers each call once its head and body have arrived."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self._received) < end + 4 + length:
                return
            self._received = self._received[end + 4 + length :]
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(_ANSWER), _ANSWER)
            )


def _serve(port_to: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
        port_to.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


KINDS = ("aiohttp", "httpx2 over aiohttp", "httpx2", "httpx", "the backend's client")
Sender = tuple[AbstractAsyncContextManager[Any], Put]


def _sender(kind: str, url: str, connections: int) -> Sender:
    """Return what to close in the end, and a function that makes a PUT."""
    if kind == "aiohttp":
        return _aiohttp(connections)
    if kind == "the backend's client":
        return _backend(url)
    return _httpx(kind, url, connections)


def _aiohttp(connections: int) -> Sender:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), headers=_HEADERS
    )

    async def put(url: str) -> bytes:
        async with session.put(url, data=_BODY) as answer:
            return await answer.read()

    return session, put


def _httpx(kind: str, url: str, connections: int) -> Sender:
    library: Any = httpx if kind == "httpx" else httpx2
    limits = library.Limits(max_connections=connections, max_keepalive_connections=connections)
    if kind == "httpx2 over aiohttp":
        client = httpx2.AsyncClient(transport=AiohttpTransport(url, connections), timeout=30)
    else:
        client = library.AsyncClient(limits=limits, timeout=30)

    async def put(url: str) -> bytes:
        request = library.Request("PUT", url, headers=_HEADERS, content=_BODY)
        return bytes((await client.send(request)).content)

    return client, put


def _backend(url: str) -> Sender:
    """With all that it does besides: the pace, the stats, limits of time and length."""
    base, _, path = url.partition("/v2/")
    client = Client(base, "token", patience=10, inc_stat=lambda name: None)
    client._paces["", CRUD_RATE] = Pace(1_000_000)  # it must not wait
    client.open()

    async def put(url: str) -> bytes:
        answer = await client.call("put", "PUT", path, rate=CRUD_RATE, body=_BODY, read=bytes)
        return answer.data

    return aclosing(_Closing(client)), put


class _Closing:
    def __init__(self, client: Client) -> None:
        self.aclose = client.close


async def _measure(kind: str, url: str, connections: int, calls: int) -> float:
    """CPU milliseconds for each PUT."""
    closing, put = _sender(kind, url, connections)
    async with closing:

        async def work(calls: int) -> None:
            for _ in range(calls):
                json.loads(await put(url))

        async def all_connections(calls: int) -> None:
            await asyncio.gather(*(work(calls // connections) for _ in range(connections)))

        await all_connections(connections * 4)
        start = time.process_time()
        await all_connections(calls)
        return (time.process_time() - start) / (calls // connections * connections) * 1000


def _link(n: int) -> dict[str, object]:
    """A new entry whose key looks like a fingerprint."""
    scrapy = {"v": 1, "callback": "parse_product", "meta": {"depth": n % 5}}
    return {
        "uniqueKey": hashlib.sha1(str(n).encode()).hexdigest(),
        "url": f"https://example.com/products/{n}?page={n % 7}",
        "method": "GET",
        "userData": {"label": "parse_product", "scrapy": scrapy},
        "retryCount": 0,
    }


def _print_compression() -> None:
    """Show what gzip at level 1 costs and saves for typical request bodies."""
    print("gzip level 1: bytes, compressed to, CPU ms")
    for entries in (1, 8, 25):
        body = json.dumps([_link(n) for n in range(entries)], separators=(",", ":")).encode()
        start = time.process_time()
        for _ in range(200):
            packed = gzip.compress(body, 1)
        cost = (time.process_time() - start) / 200 * 1000
        print(f"  {entries:2} entries: {len(body):6,} -> {len(packed):6,}  {cost:.3f}")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--calls", type=int, default=3000, help="PUTs per measurement")
    found.add_argument(
        "--connections", type=int, nargs="+", default=[4, 16, 64], help="concurrent connections"
    )
    report.add_options(found, plot=False)
    return found


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.calls, options.connections = 16, [4]
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    port, port_to = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(port_to,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.recv()}/v2/request-queues/q/requests/0123456789abcde"
    costs = {
        kind: [
            asyncio.run(_measure(kind, url, connections, options.calls))
            for connections in options.connections
        ]
        for kind in KINDS
    }
    server.kill()
    rows = [(kind, *(f"{cost:.2f}" for cost in found)) for kind, found in costs.items()]
    header = ("client", *(f"{count} connections" for count in options.connections))
    report.print_table("CPU ms of the client per PUT", header, rows, markdown=options.markdown)
    _print_compression()
    report.write_json(options.json, {"costs": costs})


if __name__ == "__main__":
    main()
