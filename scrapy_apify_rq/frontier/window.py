"""The requests that are ready, in the order in which they are handed out."""

from __future__ import annotations

from bisect import insort

from scrapy_apify_rq.frontier.visit import Visit, entry_of


class Window:
    """Hands out by urgency, and among those of one urgency as they came, or the last first."""

    def __init__(self) -> None:
        self._visits: list[Visit] = []
        """Sorted; the next one to hand out is the last."""
        self.stored: dict[str, Visit] = {}
        """By id, those that the backend has, too; the others exist in memory only."""
        self._orders = 0

    def __len__(self) -> int:
        return len(self._visits)

    def push(self, visit: Visit, *, forefront: bool) -> None:
        self._orders += 1
        visit.order = self._orders if forefront else -self._orders
        insort(self._visits, visit, key=_rank)
        if visit.entry is not None:
            self.stored[visit.entry.id] = visit

    def pop(self) -> Visit | None:
        if not self._visits:
            return None
        visit = self._visits.pop()
        if visit.entry is not None:
            del self.stored[visit.entry.id]
        return visit

    def drop_last(self) -> str:
        """Forget the least urgent of those that the backend has, too; its id."""
        index = next(i for i, visit in enumerate(self._visits) if visit.entry is not None)
        id = entry_of(self._visits.pop(index)).id
        del self.stored[id]
        return id

    def drop_leased(self) -> list[str]:
        """Forget all that are leased to us; their ids."""
        ids = [id for id, visit in self.stored.items() if visit.lease]
        self._visits = [visit for visit in self._visits if not visit.lease]
        for id in ids:
            del self.stored[id]
        return ids


def _rank(visit: Visit) -> tuple[bool, int, int]:
    return (*visit.urgency, visit.order)
