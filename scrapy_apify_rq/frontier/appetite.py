"""How many entries a worker of a shared queue keeps ready to be crawled."""

from __future__ import annotations

import time
from typing import Final

_FIRST: Final = 4
# Entries that have waited for so many seconds were more than the worker needs.
_LONG: Final = 5.0
# While all hosts that have entries here are busy, so many may wait for each of several: where a
# claim brings the head of the queue, and where it brings something of each host.
_AT_THE_HEAD: Final = 16
_OF_EACH_HOST: Final = 2


class Appetite:
    """Grows while the worker uses up all that it claims and wants more; shrinks while entries wait.

    No other worker can crawl what this one has claimed, and its leases must be prolonged. So a slow
    spider should hold few entries, and a fast one as many as it uses up during one claim.

    A worker whose hosts are all busy claims more, the more hosts it has found: with a delay, say,
    it needs many of them. Where links are grouped by host and a claim brings the head of the queue,
    the entries of other hosts come behind many of one that is busy. With a single host it does not
    claim more: there may be no others, and other workers need entries, too.
    """

    def __init__(self, most: int, *, chooses_hosts: bool) -> None:
        self._most = most
        self._for_a_busy_host = _OF_EACH_HOST if chooses_hosts else _AT_THE_HEAD
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
        return min(self._for_a_busy_host * busy_hosts, self._most) if busy_hosts > 1 else 0

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
