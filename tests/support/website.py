"""A small web site on a real socket, for crawls to fetch and misbehave on demand."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.support.waiting import PATIENCE, wait_until


class Hit(NamedTuple):
    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...]


@dataclass
class Page:
    """One answer. ``drop`` closes the connection without one."""

    body: str | bytes = "<html><body>nothing here</body></html>"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    drop: bool = False


def links(*paths: str) -> str:
    """The HTML of a page that links to these paths."""
    return "<html><body>" + "".join(f'<a href="{path}">x</a>' for path in paths) + "</body></html>"


Script = Page | str | int | Callable[[Hit], Page]
"""A page, an HTML text, a status, or a function of the hit."""
Answer = Script | Sequence[Script]


def _play(script: Script, hit: Hit) -> Page:
    if isinstance(script, int):
        return Page(status=script)
    if isinstance(script, str):
        return Page(script)
    return script if isinstance(script, Page) else script(hit)


class Held:
    """A page that is answered when the test says so.

    ``begun`` is set once the site has been asked, and ``go`` lets it answer.
    """

    def __init__(self, script: Script = 200) -> None:
        self._script = script
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, hit: Hit) -> Page:
        self.begun.set()
        if not self.go.wait(PATIENCE):
            return Page("the test did not let it go", 500)
        return _play(self._script, hit)


async def begun(*pages: Held, patience: float = PATIENCE) -> None:
    """Wait until the site has been asked for each of these."""
    await wait_until(lambda: all(page.begun.is_set() for page in pages), "a request", patience)


def let_go(*pages: Held) -> None:
    for page in pages:
        page.go.set()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # beyond it, a connection takes a second
    daemon_threads = True
    is_open = True

    def serve(self) -> None:
        while self.is_open:
            self.handle_request()

    def verify_request(self, *_: object) -> bool:
        return self.is_open

    def stop(self) -> None:
        """At once. ``serve_forever()`` would see it at its next look, on average after 10 ms."""
        self.is_open = False
        socket.create_connection(self.server_address[:2]).close()


class Site:
    """Serves ``pages`` by path (query included) until the ``with`` block ends.

    An answer is a script, or a list of scripts that is used up from its start, its last one for
    ever. Other paths answer 404, or what ``default`` says. ``hits`` holds every request in order.
    """

    def __init__(self, pages: Mapping[str, Answer], default: Answer = 404) -> None:
        self._pages = dict(pages)
        self._default = default
        self._served: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.hits: list[Hit] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve(self, pages: Mapping[str, Answer]) -> None:
        """Serve these, too, from now on: pages that name the site's own address, for example."""
        with self._lock:
            self._pages.update(pages)

    def forget(self) -> None:
        """Start afresh: without hits, and with all lists of scripts from their start."""
        with self._lock:
            self._served.clear()
            self.hits.clear()

    @property
    def paths(self) -> list[str]:
        """The paths fetched, in order, robots.txt aside."""
        with self._lock:
            return [hit.path for hit in self.hits if hit.path != "/robots.txt"]

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._thread.join()
        self._server.server_close()

    def _answer(self, hit: Hit) -> Page:
        with self._lock:
            self.hits.append(hit)
            answer = self._pages.get(hit.path, self._default)
            if isinstance(answer, Sequence) and not isinstance(answer, str):
                served = min(self._served[hit.path], len(answer) - 1)
                self._served[hit.path] += 1
                answer = answer[served]
        return _play(answer, hit)

    def _handler(site) -> type[BaseHTTPRequestHandler]:  # the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer takes 40 ms

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:  # the crawler was killed
                    self.close_connection = True

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                page = site._answer(Hit(self.command, self.path, body, tuple(self.headers.items())))
                time.sleep(page.delay)
                if page.drop:
                    self.close_connection = True
                    return
                content = page.body.encode() if isinstance(page.body, str) else page.body
                self.send_response(page.status)
                for name, value in {"Content-Type": "text/html", **page.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = do_PURGE = respond

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name)
                pass

        return Handler
