"""A site of many small pages that takes very little CPU time.

It prints its address on one line and runs until it is killed. Paths:

    /p/N       page N of --pages, with --links links to others; all can be reached from /p/0
    /t/N       the same as a tree: each page is linked only once
    /to/PATH   a page with one link, to /PATH
    /many/N    a page with N links, to /leaf/0, /leaf/1, ...
    /leaf/N    a page without links
    /hosts/H/N a page with links to N pages on each of the first H hosts, host by host
    /mixed/H/N the same links, one of each host in turn
    /_hits     JSON: how often each path was fetched, and the times of the hits
    /_site     changes the site and forgets the hits; takes a query such as ?pages=200&delay=0.1.
               With slow=N, host N takes 20 times as long
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable
from urllib.parse import parse_qsl

_SLOW = 20


class Site:
    def __init__(self, pages: int, links: int, delay: float, hosts: int = 1) -> None:
        self._hosts = hosts
        self._port = 0
        self._reset(pages, links, delay, -1)

    def _reset(self, pages: int, links: int, delay: float, slow: int) -> None:
        self._pages = pages
        self._links = links
        self._delay = delay
        self._slow = _address(slow) if slow >= 0 else ""
        self._hits: Counter[str] = Counter()
        self._times: list[float] = []

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in range(self._hosts):
            server = await loop.create_server(
                lambda: _Connection(self), _address(number), self._port, backlog=256
            )
            self._port = server.sockets[0].getsockname()[1]
        print(f"http://{_address(0)}:{self._port}", flush=True)
        await server.serve_forever()

    def delay(self, host: str) -> float:
        return self._delay * (_SLOW if host == self._slow else 1)

    def control(self, path: str, query: str) -> str:
        if path == "/_site":
            values = dict(parse_qsl(query))
            self._reset(
                int(values.get("pages", self._pages)),
                int(values.get("links", self._links)),
                float(values.get("delay", self._delay)),
                int(values.get("slow", -1)),
            )
        return json.dumps({"hits": self._hits, "times": self._times})

    def page(self, path: str) -> str:
        self._hits[path] += 1
        self._times.append(time.time())
        kind, _, rest = path[1:].partition("/")
        targets: Iterable[str] = ()
        if kind in ("p", "t"):
            first = int(rest) * self._links + 1
            numbers = range(first, first + self._links)
            if kind == "t":
                targets = [f"/t/{n}" for n in numbers if n < self._pages]
            else:
                targets = [f"/p/{n % self._pages}" for n in numbers]
        elif kind == "to":
            targets = [f"/{rest}"]
        elif kind == "many":
            targets = [f"/leaf/{n}" for n in range(int(rest))]
        elif kind in ("hosts", "mixed"):
            hosts, each = map(int, rest.split("/"))
            origins = [f"http://{_address(number)}:{self._port}" for number in range(hosts)]
            if kind == "hosts":
                targets = [f"{origin}/leaf/{n}" for origin in origins for n in range(each)]
            else:
                targets = [f"{origin}/leaf/{n}" for n in range(each) for origin in origins]
        links = "".join(f'<li><a href="{target}">link</a>' for target in targets)
        return f"<html><title>{path}</title><ul>{links}</ul></html>"


def _address(number: int) -> str:
    """Of a host: Linux answers to all loopback addresses, macOS to the first one only."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


class _Connection(asyncio.Protocol):
    """HTTP/1.1 for clients that send only GET requests without a body, one at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(b"\r\n\r\n"):
            return
        path, _, query = self._received.split(b" ", 2)[1].decode().partition("?")
        self._received = b""
        if path.startswith("/_"):
            self._answer("application/json", self._site.control(path, query))
        elif delay := self._site.delay(self._transport.get_extra_info("sockname")[0]):
            asyncio.get_running_loop().call_later(delay, self._answer_page, path)
        else:
            self._answer_page(path)

    def _answer_page(self, path: str) -> None:
        self._answer("text/html", self._site.page(path))

    def _answer(self, kind: str, text: str) -> None:
        body = text.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--links", type=int, default=10)
    parser.add_argument("--delay", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--hosts", type=int, default=1, help="loopback addresses")
    options = parser.parse_args()
    asyncio.run(Site(options.pages, options.links, options.delay, options.hosts).serve())


if __name__ == "__main__":
    main()
