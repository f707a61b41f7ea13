"""How many entries a worker of a shared queue keeps ready to be crawled."""

from __future__ import annotations

import time
from typing import Final

_FIRST: Final = 4
# Entries that have waited for so many seconds were more than the worker needs.
_LONG: Final = 5.0


class Appetite:
    """Grows while the worker uses up all that it claims and wants more; shrinks while entries wait.

    No other worker can crawl what this one has claimed, and its leases must be prolonged. So a slow
    spider should hold few entries, and a fast one as many as it uses up during one claim.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = min(_FIRST, most)
        self._is_starving = False
        self._was_rich = False
        self._fed_at = time.monotonic()

    def is_low(self, waiting: int, *, is_stuck: bool = False) -> bool:
        """``is_stuck``: what waits is for hosts that are busy."""
        # It takes no more than otherwise, only earlier: other workers may have those hosts free.
        return waiting < self._size if is_stuck else waiting <= self._size // 2

    def starve(self) -> None:
        """The worker has nothing left to crawl and could take more."""
        self._is_starving = True

    def claim(self, waiting: int) -> int:
        """How many to claim now."""
        if self._is_starving and self._was_rich:
            self._size = min(self._size * 2, self._most)
            self._was_rich = False  # a rich claim lets it grow once
        elif not self._is_starving and time.monotonic() > self._fed_at + _LONG:
            self._size = max(self._size // 2, 1)
        return max(self._size - waiting, 1)

    def feed(self, *, is_rich: bool) -> None:
        """A claim has brought something; a rich one brought all that was asked for."""
        self._is_starving = False
        self._was_rich = is_rich
        self._fed_at = time.monotonic()
