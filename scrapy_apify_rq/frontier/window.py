"""The requests that are ready to be handed out, in their order.

Retries come first (unless APIFY_RQ_RETRY_FOREFRONT is off), then the greatest priority, then first
in, first out; visits that are ``newest_first`` come last in, first out, and before their equals
that are not. As in Scrapy, start requests that are ``newest_first`` come behind all their equals.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

from scrapy_apify_rq.frontier.visit import Visit

# More than there are visits.
_BEHIND: Final = 2**48
# The rank and the visit; no two have the same third number, so visits are never compared.
_Place = tuple[bool, int, int, Visit]


class Window:
    """Holds what the backend has stored, within limits, and what exists in memory only, without.

    ``limit`` counts visits and ``memory`` bytes. The owner evicts with ``evict``.
    """

    def __init__(self, *, limit: int, memory: int, retries_first: bool = True) -> None:
        self.limit = limit
        self.memory = memory
        self.stored: dict[str, Visit] = {}
        """By id, the visits whose entries the backend has, too."""
        self.size = 0
        """Their bytes."""
        self._retries_first = retries_first
        # Sorted; the visit to hand out next is the last of one of the two.
        self._stored_line: list[_Place] = []
        self._memory_line: list[_Place] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._stored_line) + len(self._memory_line)

    def push(self, visit: Visit) -> None:
        self._pushed += 1
        order = self._pushed if visit.newest_first else -self._pushed
        if visit.is_start and visit.newest_first:
            order -= _BEHIND
        is_first = visit.is_retry and self._retries_first
        if visit.entry is None:
            insort(self._memory_line, (is_first, visit.priority, order, visit))
        else:
            insort(self._stored_line, (is_first, visit.priority, order, visit))
            self.stored[visit.entry.id] = visit
            self.size += visit.size

    def pop(self) -> Visit | None:
        """The most urgent visit, which leaves the window."""
        line, other = self._stored_line, self._memory_line
        if other and (not line or other[-1] > line[-1]):
            line = other
        if not line:
            return None
        visit = line.pop()[3]
        self._forget(visit)
        return visit

    def evict(self, *, last_size: int = 0) -> list[str]:
        """Drop the least urgent stored visits until the limits are kept; return their ids.

        One entry always fits: the last one pushed, of ``last_size``, may exceed ``memory``.
        """
        evicted: list[str] = []
        most = self.memory + last_size
        while len(self.stored) > self.limit or (self.size > most and len(self.stored) > 1):
            visit = self._stored_line.pop(0)[3]
            evicted.append(self._forget(visit))
        return evicted

    def outranks_last(self, visit: Visit) -> bool:
        """The visit is more urgent than the least urgent one that the backend has, too."""
        if not self._stored_line:
            return False
        rank = (visit.is_retry and self._retries_first, visit.priority)
        return rank > self._stored_line[0][:2]

    def drop_leased(self) -> list[str]:
        """Drop all visits that we hold leases on; return their ids."""
        leased = [visit for visit in self.stored.values() if visit.lease]
        self._stored_line = [place for place in self._stored_line if not place[3].lease]
        return [self._forget(visit) for visit in leased]

    def _forget(self, visit: Visit) -> str:
        if visit.entry is None:
            return ""
        del self.stored[visit.entry.id]
        self.size -= visit.size
        return visit.entry.id
