"""Servers that hold every call of ours and every answer against the API's description.

Run as a program, it is such a ``scrapy rq serve``. What breaks the description is written to
standard error, where ``tests.server.serve`` wants to see nothing.
Calls of other clients are not held to it: they may be wrong on purpose, and show it by their
User-Agent.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web
from scrapy import cmdline

from scrapy_apify_rq.server import application as server
from tests.support.api_description import Description, missing

OURS = "scrapy-apify-rq/"
# So that a test that breaks everything cannot fill the pipe that nobody reads before the end.
_MOST_COMPLAINTS = 20

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _to_standard_error(complaint: str) -> None:
    print(complaint, file=sys.stderr, flush=True)


def checked(
    app: web.Application, report: Callable[[str], object] = _to_standard_error
) -> web.Application:
    """The same ``app``, which is checked from now on if the description is at hand."""
    if missing() is None:
        app.middlewares.append(_Check(report).middleware())
    return app


_description = cache(Description)


class _Check:
    def __init__(self, report: Callable[[str], object]) -> None:
        self._description = _description()
        self._report = report
        self._complaints = 0

    def middleware(self) -> Any:
        @web.middleware
        async def checked(request: web.Request, handler: _Handler) -> web.StreamResponse:
            if not request.path.startswith("/v2/"):
                return await handler(request)
            if request.headers.get(hdrs.USER_AGENT, "").startswith(OURS):
                body = await request.read()
                self._complain_about("the call", request, lambda: self._check_call(request, body))
            answer = await handler(request)
            self._complain_about("the answer", request, lambda: self._check(request, answer))
            return answer

        return checked

    def _check_call(self, request: web.Request, body: bytes) -> None:
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
        assert encoding in ("identity", "gzip"), f"Content-Encoding {encoding}"
        self._description.check_call(
            request.method,
            request.path,
            list(request.query.items()),
            request.content_type,
            gzip.decompress(body) if encoding == "gzip" else body,
        )

    def _check(self, request: web.Request, answer: web.StreamResponse) -> None:
        if request.transport is None or request.transport.is_closing():
            return  # an answer that was to be lost
        assert isinstance(answer, web.Response)
        verb = request.method
        if verb == "GET":
            verb = request.query.get("method", verb)
        text = answer.text
        body = json.loads(text) if text else None
        self._description.check(verb, request.path, answer.status, body)

    def _complain_about(self, what: str, request: web.Request, check: Callable[[], object]) -> None:
        try:
            check()
        except Exception as error:
            self._complaints += 1
            if self._complaints <= _MOST_COMPLAINTS:
                message = f"{request.method} {request.rel_url.human_repr()}: {what}: {error}"
                self._report(message[:2000])


if __name__ == "__main__":
    application = server.application
    server.application = lambda *args, **options: checked(application(*args, **options))
    sys.argv[0] = str(Path(sys.argv[0]).with_name("scrapy"))
    cmdline.execute(["scrapy", "rq", "serve", *sys.argv[1:]])
