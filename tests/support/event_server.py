"""The Apify platform as an Actor run sees it: a websocket server for events, told what to send."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from scrapy_apify_rq.actor import events
from tests.support.waiting import PATIENCE, wait_until

SECRET = "secretOfTheEvents"


def end_run_after(seconds: float, patch: pytest.MonkeyPatch) -> None:
    """The time of the Actor run is up so many seconds after its crawl was opened."""
    ends_at = datetime.now(UTC)
    patch.setenv("ACTOR_TIMEOUT_AT", ends_at.isoformat().replace("+00:00", "Z"))
    opened_at = ends_at - timedelta(seconds=seconds)
    patch.setattr(events, "datetime", SimpleNamespace(now=lambda zone: opened_at))


class Platform:
    """Serves events at ``url`` until the ``async with`` block ends.

    What a method does is done to the latest connection; ``connections`` counts all of them,
    ``refused`` those that were answered with an error, as the first ``refuse`` of them are. One
    that does not answer a close does nothing at all then.
    """

    def __init__(self, *, refuse: int = 0, answers_close: bool = True) -> None:
        self.connections = 0
        self.refused = 0
        self._refuse = refuse
        self._answers_close = answers_close

    async def __aenter__(self) -> Platform:
        app = web.Application()
        app.router.add_get("/events", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"ws://127.0.0.1:{self._runner.addresses[0][1]}/events?key={SECRET}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.refused < self._refuse:
            self.refused += 1
            return web.Response(status=503)
        self._request, self._socket = request, web.WebSocketResponse(autoclose=self._answers_close)
        await self._socket.prepare(request)
        self.connections += 1
        async for _ in self._socket:
            pass
        if not self._answers_close:
            await asyncio.sleep(60)
        return self._socket

    async def connected(self, number: int = 1, patience: float = PATIENCE) -> None:
        """Wait until there have been so many connections."""
        await wait_until(lambda: self.connections >= number, f"connection {number}", patience)

    async def send(self, name: str, **data: Any) -> None:
        await self.send_raw(json.dumps({"name": name, "data": data}))

    async def send_raw(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._socket.send_str(message)
        else:
            await self._socket.send_bytes(message)

    def drop(self) -> None:
        """Cut the connection without a word."""
        assert self._request.transport is not None
        self._request.transport.abort()

    async def close(self, code: int) -> None:
        await self._socket.close(code=code)
