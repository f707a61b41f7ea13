"""Closes connections on which nothing happens: aiohttp waits an hour for a call, or its headers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

# Clients close idle connections sooner, or else would send a call on one that is being closed.
_PATIENCE: Final = 75.0


class Connections:
    """Knows which connections wait for a call, or for the rest of one's headers, and how long."""

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._busy: set[web.RequestHandler] = set()
        self._idle_since: dict[web.RequestHandler, float] = {}

    def middleware(self) -> Any:
        """Has to see each call that arrives."""

        @web.middleware
        async def note(request: web.Request, handler: Any) -> web.StreamResponse:
            connection = request.protocol
            self._idle_since.pop(connection, None)
            self._busy.add(connection)  # calls of one connection come one after the other
            try:
                answer: web.StreamResponse = await handler(request)
            finally:
                self._busy.discard(connection)
            return answer

        return note

    async def watch(self, server: web.Server) -> None:
        """Close the server's idle connections, forever."""
        while True:
            now = asyncio.get_running_loop().time()
            idle = (one for one in server.connections if one not in self._busy)
            self._idle_since = {one: self._idle_since.get(one, now) for one in idle}
            for connection, since in self._idle_since.items():
                if now - since > self._patience and connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(self._patience / 10)
