"""A middleware that makes our server misbehave, as real servers and networks do to a client.

``Faults`` lists what can go wrong. It also keeps the platform's rates, and counts the calls.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.database import FILE_NAME
from scrapy_apify_rq.limits import BATCH_RATE, CRUD_RATE, OTHER_RATE
from tests.support.api_calls import Handler, body_of, data_of, drop, error, packed
from tests.support.lag import Lag

_QUEUES = "/v2/request-queues"


@dataclass
class Faults:
    """What goes wrong. With the defaults nothing does. A share is a number from 0 to 1."""

    latency: float = 0
    """Seconds that each answer is delayed."""
    dropped: float = 0
    """Share of calls that have no effect and whose connection is cut."""
    limited: float = 0
    """Share of calls that have no effect and are answered with 429."""
    failed: float = 0
    """Share of calls that have no effect and are answered with 500."""
    lost: float = 0
    """Share of calls that take effect and whose connection is then cut."""
    unprocessed: float = 0
    """Share of the entries of a batch that are not stored and reported as unprocessed."""
    head_lag: float = 0
    """Seconds until the head and filtered lists show adds, updates and deletes."""
    counter_lag: float = 0
    """Seconds until the counters of the queue change."""
    rates: bool = False
    """Refuse calls beyond the platform's rates."""


class Misbehaviour:
    """Decides what goes wrong with the server of the queues in ``folder``, and counts its calls."""

    def __init__(self, folder: Path) -> None:
        self._lag = Lag(folder / FILE_NAME)
        self.forget()
        self.set(Faults())

    def set(self, faults: Faults) -> None:
        """Misbehave in these ways only. Another thread may call this."""
        self.faults = faults
        self._random = random.Random(1)
        self._buckets: dict[tuple[str, int], _Bucket] = {}

    def forget(self) -> None:
        self.calls: Counter[str] = Counter()
        """By operation: "POST requests/batch", "GET head", "PUT requests/{id}", ...; of other
        storages with the whole path."""
        self.outcomes: Counter[str] = Counter()
        """By status, or "dropped" or "lost"."""

    def middleware(self) -> Any:
        @web.middleware
        async def misbehave(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.path.startswith("/v2/"):
                return await handler(request)
            name = _operation(request)
            self.calls[name] += 1
            fate = self._fate()
            await asyncio.sleep(self.faults.latency)
            if fate == "dropped":
                answer: web.StreamResponse = drop(request)
            else:
                answer = await self._answer(name, fate, request, handler)
            is_cut = fate in ("dropped", "lost")
            self.outcomes[fate if is_cut else str(answer.status)] += 1
            return drop(request) if fate == "lost" else answer

        return misbehave

    def _fate(self) -> str:
        draw = self._random.random()
        for fate in ("dropped", "limited", "failed", "lost"):
            draw -= getattr(self.faults, fate)
            if draw < 0:
                return fate
        return "good"

    async def _answer(
        self, name: str, fate: str, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        if fate == "limited" or (self.faults.rates and self._exceeds_rate(name, request)):
            return error(429, "rate-limit-exceeded")
        if fate == "failed":
            return error(500, "internal-server-error")
        if name == "POST requests/batch" and self.faults.unprocessed:
            handler = self._processing_some(handler)
        if self.faults.head_lag or self.faults.counter_lag:
            return await self._lag.answer(name, self.faults, request, handler)
        return await handler(request)

    def _exceeds_rate(self, name: str, request: web.Request) -> bool:
        """Choice: the platform's algorithm is unknown, and whether operations of one rate share a
        bucket. Here they do.
        """
        rate = OTHER_RATE
        if name in ("POST requests/batch", "DELETE requests/batch", "POST head/lock"):
            rate = BATCH_RATE
        elif name == "POST requests" or "{id}" in name or name.endswith(("/items", "{key}")):
            rate = CRUD_RATE
        storage = request.match_info.get("queue") or request.match_info.get("storage", "")
        return not self._buckets.setdefault((storage, rate), _Bucket(rate)).take()

    def _processing_some(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            kept: list[Any] = []
            left: list[Any] = []
            for entry in json.loads(await body_of(request)):
                spared = self._random.random() >= self.faults.unprocessed
                (kept if spared else left).append(entry)
            data: dict[str, Any] = {"processedRequests": [], "unprocessedRequests": []}
            if kept:
                # There is no public way to give a handler another body.
                request._read_bytes = packed(request, json.dumps(kept).encode())
                answer = await handler(request)
                if answer.status != 201:
                    return answer
                data = data_of(answer)
            data["unprocessedRequests"] = [
                {name: entry[name] for name in ("uniqueKey", "url", "method") if name in entry}
                for entry in left
            ]
            return web.json_response({"data": data}, status=201)

        return handle


class _Bucket:
    """A token bucket with a second's worth of calls."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._filled_at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _operation(request: web.Request) -> str:
    resource = request.match_info.route.resource
    path = resource.canonical if resource else request.path
    name = path.removeprefix(_QUEUES).removeprefix("/{queue}").removeprefix("/")
    return f"{request.method} {name or ('queues' if path == _QUEUES else 'queue')}"
