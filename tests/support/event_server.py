"""The Apify platform as an Actor run sees it: a websocket server for events, told what to send."""

from __future__ import annotations

import json
import threading
from typing import Any

from aiohttp import web

from tests.support.loop_thread import PATIENCE, LoopThread

SECRET = "secretOfTheEvents"


class Platform:
    """Serves events at ``url`` until the ``with`` block ends.

    What a method does is done to the latest connection; ``connections`` counts all of them,
    ``refused`` those that were answered with an error, as the first ``refuse`` of them are.
    """

    def __init__(self, *, refuse: int = 0) -> None:
        self.connections = 0
        self.refused = 0
        self._refuse = refuse
        self._connected = threading.Condition()
        self._socket: web.WebSocketResponse | None = None
        self._request: web.Request | None = None

    def __enter__(self) -> Platform:
        self._loop = LoopThread()
        self.url = self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        with self._loop:
            self._loop.run(self._runner.cleanup())

    def wait_for_connection(self, number: int = 1) -> None:
        with self._connected:
            assert self._connected.wait_for(lambda: self.connections >= number, PATIENCE)

    def send(self, name: str, **data: Any) -> None:
        self.send_text(json.dumps({"name": name, "data": data}))

    def send_text(self, text: str) -> None:
        assert self._socket is not None
        self._loop.run(self._socket.send_str(text))

    def send_bytes(self, data: bytes) -> None:
        assert self._socket is not None
        self._loop.run(self._socket.send_bytes(data))

    def drop(self) -> None:
        """Cut the connection without a word."""
        self._loop.run(self._drop())

    async def _drop(self) -> None:
        assert self._request is not None
        assert self._request.transport is not None
        self._request.transport.abort()

    def close(self, code: int) -> None:
        assert self._socket is not None
        self._loop.run(self._socket.close(code=code))

    async def _start(self) -> str:
        app = web.Application()
        app.router.add_get("/events", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"ws://127.0.0.1:{self._runner.addresses[0][1]}/events?key={SECRET}"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.refused < self._refuse:
            self.refused += 1
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with self._connected:
            self.connections += 1
            self._socket, self._request = socket, request
            self._connected.notify_all()
        async for _ in socket:
            pass
        return socket
