"""The requests that are ready to be handed out, in their order.

Each download slot has a line of its own, and the slot with the fewest active requests comes first,
whatever the priorities of others (``slots``). Within a line, retries come first (unless
APIFY_RQ_RETRY_FOREFRONT is off), then the greatest priority, then first in, first out; visits that
are ``newest_first`` come last in, first out, and before their equals that are not. As in Scrapy,
start requests that are ``newest_first`` come behind all their equals.

A retry joins its line when its back-off is over (``waiting``).
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from typing import Final

from scrapy_apify_rq.frontier.slots import OneLine, Slots, Turns
from scrapy_apify_rq.frontier.visit import Visit
from scrapy_apify_rq.frontier.waiting import Waiting

# More than there are visits.
_BEHIND: Final = 2**48
_ANY_NUMBER: Final = 2**31
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

    def next(self) -> list[_Place]:
        """The list whose last one is next."""
        line, other = self.stored, self.memory
        return other if other and (not line or other[-1] > line[-1]) else line


class Window:
    """Holds what the backend has stored, within limits, and what exists in memory only, without.

    ``limit`` counts visits and ``memory`` bytes. The owner evicts with ``evict``. Retries that wait
    are never evicted: their entries are pending, and would be claimed before their time. They take
    up to half of the limits from the others. When they fill a half, their slots get nothing new,
    and when they fill the limits, nobody does.
    """

    def __init__(
        self, *, limit: int, memory: int, slots: Slots | None = None, retries_first: bool = True
    ) -> None:
        self.limit = limit
        self.memory = memory
        self.stored: dict[str, Visit] = {}
        """By id, the visits whose entries the backend has, too."""
        self.in_line = 0
        """How many of these can be handed out now."""
        self.size = 0
        """Their bytes."""
        self.ran_dry = False
        """Since the owner last set this to False, a line has become empty and others have not."""
        self.is_stuck = False
        """All slots that have something here were held back when the last one was asked for."""
        self._is_crowded = False
        """The last visit went to a slot that was busy."""
        self.by_host = slots is not None and slots.are_hosts
        self._waiting = Waiting()
        self._slots = slots or OneLine()
        self._turns = Turns(self._slots)
        self._retries_first = retries_first
        self._lines: dict[str, _Line] = {}
        """By download slot; none is empty."""
        self._in_memory = 0
        self._pushed = 0

    def __len__(self) -> int:
        return len(self.stored) + self._in_memory

    @property
    def ready(self) -> int:
        """How many can be handed out now."""
        return len(self) - len(self._waiting)

    @property
    def next_due_at(self) -> float | None:
        """When a retry that waits can be handed out."""
        return self._waiting.next_at

    def room(self) -> tuple[int, int]:
        """How many more stored visits, and bytes of them, fit in the lines."""
        waiting = self._waiting
        return (
            self.limit - min(len(waiting), self.limit // 2) - self.in_line,
            self.memory - min(waiting.size, self.memory // 2) - self.size,
        )

    def push(self, visit: Visit) -> None:
        if visit.entry is None:
            self._in_memory += 1
        else:
            self.stored[visit.entry.id] = visit
        if visit.not_before and visit.not_before > time.monotonic():
            self._key(visit)
            self._waiting.add(visit)
        else:
            self._line_up(visit)

    def _line_up(self, visit: Visit) -> None:
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
        else:
            insort(line.stored, place)
            line.size += visit.size
            self.in_line += 1
            self.size += visit.size

    def _rank(self, visit: Visit) -> tuple[bool, int]:
        return visit.is_retry and self._retries_first, visit.priority

    def _key(self, visit: Visit) -> str:
        if visit.slot is None:
            visit.slot = self._slots.key(visit)
        return visit.slot

    def pop(self, *, is_all: bool = True) -> Visit | None:
        """The visit to hand out next, which leaves the window.

        Unless the window has all that is pending (``is_all``), no slot gets more than it can
        download: that would take the place of requests for other slots, which may come soon.
        """
        if self._waiting:
            for visit in self._waiting.due(time.monotonic()):
                self._line_up(visit)
        key = self._turns.next(self._who_is_held(is_all=is_all))
        self.is_stuck = key is None and bool(self._lines)
        if key is None:
            return None
        self._is_crowded = self._slots.is_busy(key)
        visit = self._lines[key].next().pop()[3]
        self._forget(visit)
        self._leave_if_empty(key)
        return visit

    def _who_is_held(self, *, is_all: bool) -> Callable[[str], bool] | None:
        """Which slots get no turn; None if that holds for none."""
        waiting = self._waiting
        share = max(len(waiting) / self.limit, waiting.size / self.memory)
        if share <= 1 / 2:
            return None if is_all else self._slots.is_full

        def is_held(key: str) -> bool:
            if not is_all and self._slots.is_full(key):
                return True
            is_retry = self._lines[key].next()[-1][3].is_retry
            return not is_retry and (share > 1 or key in waiting.slots)

        return is_held

    def evict(self, *, last_size: int = 0) -> list[str]:
        """Drop the least urgent stored visits of the longest lines until the limits are kept;
        return their ids.

        One entry always fits: the last one pushed, of ``last_size``, may exceed ``memory``.
        """
        evicted: list[str] = []
        while True:
            entries, size = self.room()
            if entries >= 0 and (size + last_size >= 0 or self.in_line <= 1):
                return evicted
            key = self._longest(by_size=entries >= 0)
            visit = self._lines[key].stored.pop(0)[3]
            evicted.append(self._forget(visit))
            self._leave_if_empty(key)

    @property
    def busy_slots(self) -> int:
        """How many slots have something here, if all of them are busy."""
        return len(self._lines) if self.is_stuck or self._is_crowded else 0

    def longest(self) -> int:
        """How many stored visits the longest line has."""
        return max((len(line.stored) for line in self._lines.values()), default=0)

    def share(self, *, for_others: bool) -> int | None:
        """How many entries of a host may wait after a claim; None if hosts do not take turns.

        ``for_others``: the longest line gets nothing, so that slots which have nothing left do.
        """
        if not self.by_host:
            return None
        return max(self.longest() // 2, 1) if for_others else _ANY_NUMBER

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
        if self.room()[0] > 0:
            return self.in_line > 0
        # Of as many slots as visits fit here, those that came first stay.
        return self.longest() > 1

    def drop_leased(self) -> list[str]:
        """Drop all visits that we hold leases on; return their ids."""
        # A retry with a lease waits in the outbox, see there.
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
        self.in_line -= 1
        self.size -= visit.size
        return visit.entry.id

    def _leave_if_empty(self, key: str) -> None:
        line = self._lines[key]
        if not (line.stored or line.memory):
            del self._lines[key]
            self._turns.leave(key)
            self.ran_dry = bool(self._lines)
