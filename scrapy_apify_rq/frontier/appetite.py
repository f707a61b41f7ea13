"""How many entries a worker of a shared queue keeps ready to be crawled."""

from __future__ import annotations

import time
from typing import Final

_FIRST: Final = 4
# Entries that have waited for so many seconds were more than the worker needs.
_LONG: Final = 5.0
# While all hosts that have entries here are busy, so many may wait for each of several.
_FOR_A_BUSY_HOST: Final = 16


class Appetite:
    """Grows while the worker uses up all that it claims and wants more; shrinks while entries wait.

    No other worker can crawl what this one has claimed, and its leases must be prolonged. So a slow
    spider should hold few entries, and a fast one as many as it uses up during one claim.

    Where links are grouped by host, the entries of other hosts come behind many of one that is
    busy. So a worker whose hosts are all busy claims more, the more hosts it has found. With a
    single one it does not: there may be no others, and other workers need entries, too.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = min(_FIRST, most)
        self._is_starving = False
        self._was_rich = False
        self._fed_at = time.monotonic()

    def is_low(self, waiting: int, *, busy_hosts: int = 0, is_stuck: bool = False) -> bool:
        """``busy_hosts``: how many hosts have what waits, if all of them are busy; ``is_stuck``:
        so busy that nothing can be handed out.
        """
        enough = self._size if is_stuck else self._size // 2 + 1
        return waiting < max(enough, self._most_for(busy_hosts))

    def _most_for(self, busy_hosts: int) -> int:
        return min(_FOR_A_BUSY_HOST * busy_hosts, self._most) if busy_hosts > 1 else 0

    def starve(self) -> None:
        """The worker has nothing left to crawl and could take more."""
        self._is_starving = True

    def claim(self, waiting: int, *, busy_hosts: int = 0) -> int:
        """How many to claim now."""
        if self._is_starving and self._was_rich:
            self._size = min(self._size * 2, self._most)
            self._was_rich = False  # a rich claim lets it grow once
        elif not self._is_starving and time.monotonic() > self._fed_at + _LONG:
            self._size = max(self._size // 2, 1)
        return max(max(self._size, self._most_for(busy_hosts)) - waiting, 1)

    def feed(self, *, is_rich: bool) -> None:
        """A claim has brought something; a rich one brought all that was asked for."""
        self._is_starving = False
        self._was_rich = is_rich
        self._fed_at = time.monotonic()
