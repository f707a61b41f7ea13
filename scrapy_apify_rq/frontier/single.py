"""Single access: this process is the only consumer of the queue, so nothing is leased."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Final, Literal

from scrapy_apify_rq.backends.base import Backend, Claim
from scrapy_apify_rq.frontier.idle import Question
from scrapy_apify_rq.frontier.notices import OthersSeen
from scrapy_apify_rq.frontier.supply import Amount, Local
from scrapy_apify_rq.frontier.visit import Visit, entry_of

# The window is low at this share of its limits. Refill late: the head lists our own window again
# before new entries.
_LOW_SHARE: Final = 4
# Seconds between two claims that bring nothing while the window is low: at least, and at most.
_SHORT_PAUSE: Final = 0.05
_LONG_PAUSE: Final = 1.0
# When only some slot has run dry, at least so many seconds pass between two claims, more after each
# one that was in vain, and a full window makes room for this share of its limit.
_DRY_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0
_DRY_SHARE: Final = 8
# How many entries to look up before the crawl ends.
_DOUBTS: Final = 16


class Single:
    """Pending entries that are not in this process form the backlog. Claims bring them, in the
    queue's order.

    A claim may lag: it may miss a new entry, or still show one that was acked since.
    """

    def __init__(self, backend: Backend, local: Local) -> None:
        self._backend = backend
        self._local = local
        self._window = local.window
        self._has_backlog = True
        """There may be one."""
        self._hidden: OrderedDict[str, float] = OrderedDict()
        """By id and in order, when entries became part of it, as long as a claim may miss them."""
        self._longest_lag = max(backend.lag, backend.consistency_delay)
        self._doubtful: list[str] = []
        """Ids of the last claim that may be of before our ack."""
        self._settled: OrderedDict[str, float] = OrderedDict()
        """By id and in order, when acks and requeues were confirmed, as long as a claim may still
        show their entries as they were before.
        """
        self._asked_at = -math.inf
        """When the last claim began."""
        self._is_asking = False
        self._again_at = 0.0
        self._has_noted_others = False
        self._in_vain = 0
        """How many claims in turn have brought nothing."""

    @property
    def again_at(self) -> float:
        if self._is_nearly_empty():
            return self._again_at
        pause = max(self._pause, _DRY_PAUSE) * 2.0 ** min(self._in_vain, 10)
        return max(self._again_at, self._asked_at + min(pause, _LONGEST_PAUSE))

    @property
    def _pause(self) -> float:
        return min(max(self._backend.lag / 4, _SHORT_PAUSE), _LONG_PAUSE)

    @property
    def hidden_until(self) -> float:
        if not self._hidden:
            return -math.inf
        return self._hidden[next(reversed(self._hidden))] + self._longest_lag

    def open(self, *, has_pending: bool) -> None:
        self._has_backlog = has_pending

    def work(self) -> list[Coroutine[Any, Any, None]]:
        return []

    def stop(self) -> None:
        pass

    # What became of our writes.

    def stored(self, visit: Visit) -> None:
        """The backlog is older, so it comes first, unless the window needs the new entry now."""
        if visit.forefront or not self._has_backlog or self._window.is_wanted(visit):
            self._push(visit)
        else:
            self._grow_backlog(entry_of(visit).id)

    def found(self, id: str, *, was_handled: bool) -> None:
        if not (was_handled or self._local.holds(id) or id in self._settled):
            self._grow_backlog(id)

    def requeued(self, visit: Visit, *, refused: bool) -> bool:
        # If it is refused, nobody else will try it again.
        self.acked(entry_of(visit).id)
        self._push(visit)
        return True

    def acked(self, id: str) -> None:
        self._note(id, self._settled, self._backend.lag)

    def _push(self, visit: Visit) -> None:
        self._window.push(visit)
        for id in self._window.evict(last_size=visit.size):
            self._settled.pop(id, None)  # its entry is pending, as an older claim shows it, too
            self._grow_backlog(id)

    def _grow_backlog(self, id: str) -> None:
        self._has_backlog = True
        self._note(id, self._hidden, self._longest_lag)

    def _note(self, id: str, times: OrderedDict[str, float], lag: float) -> None:
        times[id] = now = time.monotonic()
        times.move_to_end(id)
        _drop_older(times, (self._asked_at if self._is_asking else now) - lag)

    # Claims.

    def is_low(self) -> bool:
        window = self._window
        needs_others = window.ran_dry or window.is_stuck
        return self._has_backlog and (needs_others or self._is_nearly_empty())

    @property
    def has_all(self) -> bool:
        return not self._has_backlog

    def _is_nearly_empty(self) -> bool:
        window = self._window
        return (
            window.in_line <= window.limit // _LOW_SHARE
            and window.size <= window.memory // _LOW_SHARE
        )

    def starve(self) -> None:
        pass

    def begin_claim(self, asked_at: float) -> Amount:
        self._asked_at = asked_at
        self._is_asking = True
        window = self._window
        entries, size = window.room()
        if self._is_nearly_empty():
            window.ran_dry = window.is_stuck = False  # there is room for all
        else:
            entries = max(entries, window.limit // _DRY_SHARE)
        share = self._local.share(for_others=window.ran_dry or window.is_stuck)
        window.ran_dry = False
        return Amount(max(entries, 1), max(size, 1), share)

    def receive(self, claim: Claim) -> int:
        self._is_asking = False
        _drop_older(self._settled, self._asked_at - self._backend.lag)
        new = [entry for entry, _ in claim.entries if not self._local.holds(entry.id)]
        entries = [entry for entry in new if entry.id not in self._settled]
        self._doubtful = [entry.id for entry in new if entry.id in self._settled]
        for entry in entries:
            self._hidden.pop(entry.id, None)
            self._local.seen.add(entry.id.encode())
            self._push(Visit.of(entry))
        self._in_vain = 0 if entries else self._in_vain + 1
        self._plan(claim, has_news=bool(entries))
        return len(entries)

    def _plan(self, claim: Claim, *, has_news: bool) -> None:
        _drop_older(self._hidden, self._asked_at - self._longest_lag)
        self._has_backlog = claim.more or bool(self._hidden)
        if has_news and claim.more:
            self._again_at = 0.0
        else:
            self._again_at = self._asked_at + self._pause

    def lost(self, visit: Visit, while_: Literal["waiting", "in flight", "retried"]) -> None:
        raise AssertionError(f"{entry_of(visit).id} has a lease in single access")

    def note_others(self) -> None:
        if not self._has_noted_others:
            self._has_noted_others = True
            self._local.listener.notice(OthersSeen(self._backend.location))

    async def others_are_working(self, question: Question) -> bool:
        """Others may have put back what we have acked lately. A GET does not lag, so it tells."""
        found = [await self._backend.get(id) for id in self._doubtful[:_DOUBTS]]
        pending = [entry for entry in found if entry is not None and not entry.is_handled]
        for entry in pending:
            self._settled.pop(entry.id, None)
            self._push(Visit.of(entry))
            self._local.listener.wake()
        return bool(pending)

    async def release_window(self) -> None:
        pass

    async def release(self) -> None:
        pass


def _drop_older(times: OrderedDict[str, float], than: float) -> None:
    while times and times[next(iter(times))] < than:
        times.popitem(last=False)
