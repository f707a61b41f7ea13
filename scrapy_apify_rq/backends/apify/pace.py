"""How fast the calls of one class may start: the platform's rate, and less while it says 429."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

# Of the rate, we use this share, and a burst that makes up for late timers: 99 % together.
_SHARE: Final = 0.95
_BURST: Final = 0.04
# A 429 halves the pace, down to this share of it, and the pace recovers within so many seconds.
_LEAST: Final = 1 / 64
_RECOVERY: Final = 20.0
# Answers to calls that had started when the pace was halved do not halve it again.
_ONE_CUT: Final = 0.5


class Pace:
    """Lets at most ``rate`` calls start per second, in the order in which they came.

    The platform counts the calls of all processes that use a queue. Each of them slows down when
    it is told to, so together they find what the platform allows.
    """

    def __init__(self, rate: float) -> None:
        self._most = self._pace = _SHARE * rate
        self._next = 0.0
        self._cut_at = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether calls wait for their turn."""
        return bool(self._queue)

    async def wait(self) -> None:
        if not self._queue and self._may_start(time.monotonic()):
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        if len(self._queue) == 1:
            self._set_timer()
        await turn

    def slow_down(self, delay: float) -> None:
        """A call was answered with 429: start none for so many seconds, and fewer afterwards."""
        now = time.monotonic()
        if now - self._cut_at > _ONE_CUT:
            self._pace = max(self._pace_at(now) / 2, self._most * _LEAST)
            self._cut_at = now
        self._next = max(self._next, now + delay)

    def _pace_at(self, now: float) -> float:
        return min(self._pace + self._most * (now - self._cut_at) / _RECOVERY, self._most)

    def _may_start(self, now: float) -> bool:
        if self._next > now:
            return False
        # Counted from now, not from when it was due: after the loop was blocked for a while, the
        # calls that waited must not start all at once.
        self._next = max(self._next, now - _BURST) + 1 / self._pace_at(now)
        return True

    def _set_timer(self) -> None:
        delay = self._next - time.monotonic()
        asyncio.get_running_loop().call_later(delay, self._start_due)

    def _start_due(self) -> None:
        """Start all calls that are due, since a busy loop runs this late."""
        now = time.monotonic()
        while self._queue and (self._queue[0].done() or self._may_start(now)):
            turn = self._queue.popleft()
            if not turn.done():  # done: the call was cancelled
                turn.set_result(None)
        if self._queue:
            self._set_timer()
