"""The requests that are ready to be handed out, in their order.

Each download slot has a line of its own, and the slot with the fewest active requests comes first,
whatever the priorities of others (``slots``). Within a line, retries come first (unless
APIFY_RQ_RETRY_FOREFRONT is off), then the greatest priority, then first in, first out; visits that
are ``newest_first`` come last in, first out, and before their equals that are not. As in Scrapy,
start requests that are ``newest_first`` come behind all their equals.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

from scrapy_apify_rq.frontier.slots import OneLine, Slots, Turns
from scrapy_apify_rq.frontier.visit import Visit

# More than there are visits.
_BEHIND: Final = 2**48
# The rank and the visit; no two have the same third number, so visits are never compared.
_Place = tuple[bool, int, int, Visit]


class _Line:
    """What waits for one download slot. Both lists are sorted; the visit to hand out next is the
    last of one of them.
    """

    __slots__ = ("memory", "size", "stored")

    def __init__(self) -> None:
        self.stored: list[_Place] = []
        self.memory: list[_Place] = []
        self.size = 0
        """Bytes of the stored ones."""

    def pop(self) -> Visit:
        line, other = self.stored, self.memory
        if other and (not line or other[-1] > line[-1]):
            line = other
        return line.pop()[3]


class Window:
    """Holds what the backend has stored, within limits, and what exists in memory only, without.

    ``limit`` counts visits and ``memory`` bytes. The owner evicts with ``evict``.
    """

    def __init__(
        self, *, limit: int, memory: int, slots: Slots | None = None, retries_first: bool = True
    ) -> None:
        self.limit = limit
        self.memory = memory
        self.stored: dict[str, Visit] = {}
        """By id, the visits whose entries the backend has, too."""
        self.size = 0
        """Their bytes."""
        self._slots = slots or OneLine()
        self._turns = Turns(self._slots)
        self._retries_first = retries_first
        self._lines: dict[str, _Line] = {}
        """By download slot; none is empty."""
        self._in_memory = 0
        self._pushed = 0

    def __len__(self) -> int:
        return len(self.stored) + self._in_memory

    def push(self, visit: Visit) -> None:
        self._pushed += 1
        order = self._pushed if visit.newest_first else -self._pushed
        if visit.is_start and visit.newest_first:
            order -= _BEHIND
        place = (*self._rank(visit), order, visit)
        key = self._key(visit)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            self._turns.join(key)
        if visit.entry is None:
            insort(line.memory, place)
            self._in_memory += 1
        else:
            insort(line.stored, place)
            line.size += visit.size
            self.stored[visit.entry.id] = visit
            self.size += visit.size

    def _rank(self, visit: Visit) -> tuple[bool, int]:
        return visit.is_retry and self._retries_first, visit.priority

    def _key(self, visit: Visit) -> str:
        if visit.slot is None:
            visit.slot = self._slots.key(visit)
        return visit.slot

    def pop(self) -> Visit | None:
        """The visit to hand out next, which leaves the window."""
        key = self._turns.next()
        if key is None:
            return None
        visit = self._lines[key].pop()
        self._forget(visit)
        self._leave_if_empty(key)
        return visit

    def evict(self, *, last_size: int = 0) -> list[str]:
        """Drop the least urgent stored visits of the longest lines until the limits are kept;
        return their ids.

        One entry always fits: the last one pushed, of ``last_size``, may exceed ``memory``.
        """
        evicted: list[str] = []
        most = self.memory + last_size
        while (too_many := len(self.stored) > self.limit) or (
            self.size > most and len(self.stored) > 1
        ):
            key = self._longest(by_size=not too_many)
            visit = self._lines[key].stored.pop(0)[3]
            evicted.append(self._forget(visit))
            self._leave_if_empty(key)
        return evicted

    def _longest(self, *, by_size: bool) -> str:
        """The slot with the most stored visits, or with the most bytes of them."""
        lines = self._lines
        if by_size:
            return max(lines, key=lambda key: lines[key].size)
        return max(lines, key=lambda key: len(lines[key].stored))

    def is_wanted(self, visit: Visit) -> bool:
        """The visit should be handed out before some that wait here and that the backend has, too:
        it is more urgent than the last of its line, or its line is empty while others are not.
        """
        line = self._lines.get(self._key(visit))
        if line is not None and line.stored:
            return self._rank(visit) > line.stored[0][:2]
        if len(self.stored) < self.limit:
            return len(self.stored) > 0
        # Of as many slots as visits fit here, those that came first stay.
        return len(self._lines[self._longest(by_size=False)].stored) > 1

    def drop_leased(self) -> list[str]:
        """Drop all visits that we hold leases on; return their ids."""
        leased = [visit for visit in self.stored.values() if visit.lease]
        for line in self._lines.values():
            line.stored = [place for place in line.stored if not place[3].lease]
        ids = [self._forget(visit) for visit in leased]
        for key in list(self._lines):
            self._leave_if_empty(key)
        return ids

    def _forget(self, visit: Visit) -> str:
        """Account for a visit that has left its line; return its id."""
        if visit.entry is None:
            self._in_memory -= 1
            return ""
        del self.stored[visit.entry.id]
        self._lines[self._key(visit)].size -= visit.size
        self.size -= visit.size
        return visit.entry.id

    def _leave_if_empty(self, key: str) -> None:
        line = self._lines[key]
        if not (line.stored or line.memory):
            del self._lines[key]
            self._turns.leave(key)
