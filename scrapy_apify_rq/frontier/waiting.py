"""Retries that wait for their time, so that a short outage does not use up all of their tries."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from scrapy_apify_rq.frontier.visit import Visit


class Waiting:
    """Visits by the time at which they are due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Visit]] = []
        self._added = 0
        self.size = 0
        """Bytes of them, those that live in memory only aside."""
        self.slots: Counter[str | None] = Counter()
        """How many there are of each download slot."""

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When the first one is due."""
        return self._heap[0][0] if self._heap else None

    def add(self, visit: Visit) -> None:
        self._added += 1  # so that visits are never compared
        heapq.heappush(self._heap, (visit.not_before, self._added, visit))
        self.slots[visit.slot] += 1
        self.size += visit.size if visit.entry is not None else 0

    def due(self, now: float) -> Iterator[Visit]:
        """Take out those whose time has come."""
        while self._heap and self._heap[0][0] <= now:
            visit = heapq.heappop(self._heap)[2]
            self.slots[visit.slot] -= 1
            if not self.slots[visit.slot]:
                del self.slots[visit.slot]
            self.size -= visit.size if visit.entry is not None else 0
            yield visit
