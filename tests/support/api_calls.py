"""Our own API server inside the test's process, so that a test can put its hand into each call."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import hdrs, web

from scrapy_apify_rq.limits import MAX_BODY
from tests.support.api_description import OURS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Call:
    method: str
    path: str
    """Behind the queue's id: "", "/head", "/requests/batch", ...; all of it where there is none."""
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    """As sent, but not compressed."""
    url: str
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def is_(self, method: str, path: str) -> bool:
        return (self.method, self.path) == (method, path)


class Api:
    """The server's ``url``, its ``calls`` so far, and what a test has it do."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.complaints: list[str] = []
        """What broke the API's description; a test that does so on purpose clears them."""
        self.before: Callable[[Call], web.StreamResponse | str | None] = lambda call: None
        """What to answer instead; "drop" cuts the connection, None lets the call pass."""
        self.after: Callable[[Call, Any], Any] = lambda call, data: data
        """The data to answer, or a whole answer; "drop" cuts the connection. The effect is made.

        Items and records are no data: it gets None then, and what it returns is not answered.
        """

    def of(self, method: str, path: str = "") -> list[Call]:
        return [call for call in self.calls if call.is_(method, path)]

    def middleware(self) -> Any:
        @web.middleware
        async def interfere(request: web.Request, handler: Any) -> web.StreamResponse:
            if not request.path.startswith("/v2/"):
                return await handler(request)  # type: ignore[no-any-return]
            call = await _read(request)
            self.calls.append(call)
            answer = self.before(call)
            if answer == "drop":
                return drop(request)
            if isinstance(answer, web.StreamResponse):
                return answer
            given = await handler(request)
            if given.status < 300 and getattr(given, "body", None):
                has_data = not call.path.endswith("/items") and "/records/" not in call.path
                data = self.after(call, json.loads(given.body)["data"] if has_data else None)
                if data == "drop":
                    return drop(request)
                if isinstance(data, web.StreamResponse):
                    return data
                if has_data:
                    given.text = json.dumps({"data": data})
            return given  # type: ignore[no-any-return]

        return interfere


async def _read(request: web.Request) -> Call:
    # What others send may be wrong on purpose.
    body = b""
    if request.headers.get(hdrs.USER_AGENT, "").startswith(OURS):
        body = await body_of(request)
    elif (request.content_length or 0) <= MAX_BODY:
        body = await request.read()
    parts = request.path.removeprefix("/v2/request-queues/").split("/", 1)
    path = request.path
    if request.path.startswith("/v2/request-queues/"):
        path = f"/{parts[1]}" if len(parts) > 1 else ""
    return Call(
        request.method,
        path,
        dict(request.query),
        dict(request.headers),
        body,
        f"{request.scheme}://{request.host}{request.path_qs}",
    )


async def body_of(request: web.Request) -> bytes:
    body = await request.read()
    return gzip.decompress(body) if _is_gzip(request) else body


def packed(request: web.Request, body: bytes) -> bytes:
    """Compress the body as that of the request is."""
    return gzip.compress(body) if _is_gzip(request) else body


def _is_gzip(request: web.Request) -> bool:
    return request.headers.get(hdrs.CONTENT_ENCODING) == "gzip"


def data_of(answer: web.StreamResponse) -> Any:
    assert isinstance(answer, web.Response)
    return json.loads(answer.text or "")["data"]


def drop(request: web.Request) -> web.Response:
    """Cut the connection. The returned answer goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def error(status: int, kind: str = "some-type", message: str = "why", **headers: str) -> Any:
    body = {"error": {"type": kind, "message": message}}
    return web.json_response(body, status=status, headers=headers)
