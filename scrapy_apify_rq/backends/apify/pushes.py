"""Pushes to a dataset: one at a time, each with all items that wait by then.

So a push is made for the items of many pages, and a retry of one holds up those behind it, which
the next one then takes along.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from scrapy_apify_rq.backends.apify.wire import PAYLOAD_LIMIT
from scrapy_apify_rq.backends.cutting import cut

# Seconds between the beginnings of two pushes: items of some pages come together meanwhile, and
# their acks are not held up by more.
_INTERVAL: Final = 0.1


class _Batch:
    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.has_sender = False
        self.is_sent = False
        self.error: Exception | None = None
        self.changed = asyncio.Event()
        """One of the three has."""


class Pushes:
    """``send`` makes one call."""

    def __init__(self, send: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        self._send = send
        self._next = _Batch()
        self._turn = asyncio.Lock()
        self._free_at = 0.0

    async def push(self, items: Sequence[bytes]) -> None:
        """Return once the dataset has taken the items."""
        batch = self._next
        batch.items += items
        while batch.has_sender:
            await batch.changed.wait()
            if batch.is_sent:
                return
            if batch.error is not None:
                raise batch.error
        # The first one sends for all, or another one if that is cancelled.
        batch.has_sender = True
        batch.changed.clear()
        try:
            await self._send_all(batch)
        finally:
            batch.has_sender = False
            batch.changed.set()

    async def _send_all(self, batch: _Batch) -> None:
        async with self._turn:
            await asyncio.sleep(self._free_at - time.monotonic())
            if batch is self._next:
                self._next = _Batch()
            self._free_at = time.monotonic() + _INTERVAL
            try:
                for part in cut(batch.items, PAYLOAD_LIMIT, separator=1):
                    await self._send(part)
            except Exception as error:
                batch.error = error
                raise
            batch.is_sent = True
