"""Rings at the earliest of the times that were asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Alarm:
    """``ring`` is called by the event loop. Times are those of the monotonic clock."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._is_off = False

    def set(self, when: float) -> None:
        """Ring at this time, unless it rings before."""
        if self._is_off:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + when - time.monotonic()
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._rings)

    def _rings(self) -> None:
        self._timer = None
        self._ring()

    def turn_off(self) -> None:
        """Never ring again."""
        self._is_off = True
        if self._timer is not None:
            self._timer.cancel()
