"""Misbehaviour on demand: what real servers and networks do to a client now and then.

For tests of clients against ``server``; see ``Faults`` for all that can go wrong. Calls beyond the
platform's rates are counted here, too, since the server refuses them only where a test asks for it.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from scrapy_apify_rq.backends.sqlite.store import Row

Fate = Literal["good", "dropped", "limited", "failed", "lost"]


@dataclass
class Faults:
    """What goes wrong; the defaults are a server in good health. Shares are from 0 to 1."""

    latency: float = 0
    """Seconds by which each answer is late."""
    dropped: float = 0
    """Share of calls whose connection is cut before they have an effect."""
    limited: float = 0
    """Share of calls answered with 429, without effect."""
    failed: float = 0
    """Share of calls answered with 500, without effect."""
    lost: float = 0
    """Share of calls that have their effect, but whose connection is cut instead of an answer."""
    unprocessed: float = 0
    """Share of the entries of a batch that are not stored, and named as unprocessed."""
    only: list[str] = field(default_factory=list)
    """The operations that all this befalls, such as "POST requests/batch"; empty = all."""
    outage_until: float = 0
    """Unix time until which every connection is cut."""
    head_lag: float = 0
    """Seconds by which the head and filtered lists show adds, updates and deletes late."""
    counter_lag: float = 0
    """Seconds by which the counters of the queue are late."""
    hide_locked: bool = False
    """GET head leaves locked entries out."""
    rates: bool = False
    """Refuse calls beyond the platform's rates."""
    seed: int | None = None
    """Makes the choice of calls reproducible."""


class Counts(NamedTuple):
    total: int
    handled: int


class _Change(NamedTuple):
    when: float
    queue: int
    before: Mapping[str, Row | None]
    counts: Counts


class Misbehaviour:
    """Decides what goes wrong, and counts the calls. Calls go by their operation's name."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.set(faults or Faults())

    def set(self, faults: Faults) -> None:
        self.faults = faults
        self._random = random.Random(faults.seed)
        self._changes: deque[_Change] = deque()
        self._buckets: dict[tuple[int | None, int], _Bucket] = {}

    def set_json(self, body: bytes) -> None:
        """Replace all faults; raises ValueError for what is no set of faults."""
        self.set(TypeAdapter(Faults).validate_json(body, strict=False))

    def _befalls(self, operation: str) -> bool:
        return not self.faults.only or operation in self.faults.only

    def latency(self, operation: str) -> float:
        return self.faults.latency if self._befalls(operation) else 0

    def fate(self, operation: str) -> Fate:
        faults = self.faults
        if time.time() < faults.outage_until:
            return "dropped"
        if not self._befalls(operation):
            return "good"
        draw = self._random.random()
        shares: list[tuple[Fate, float]] = [
            ("dropped", faults.dropped),
            ("limited", faults.limited),
            ("failed", faults.failed),
            ("lost", faults.lost),
        ]
        for fate, share in shares:
            if draw < share:
                return fate
            draw -= share
        return "good"

    def spares(self, operation: str) -> bool:
        """Whether one entry of a batch is processed."""
        return not (self._befalls(operation) and self._random.random() < self.faults.unprocessed)

    def exceeds_rate(self, queue: int | None, rate: int) -> bool:
        if not self.faults.rates:
            return False
        return not self._buckets.setdefault((queue, rate), _Bucket(rate)).take()

    # The lag: what was changed lately, and how it was before.

    @property
    def lags(self) -> bool:
        return self.faults.head_lag > 0 or self.faults.counter_lag > 0

    def note(self, queue: int, before: Mapping[str, Row | None], counts: Counts) -> None:
        """Remember how these entries and the counters are, just before a change."""
        now = time.monotonic()
        oldest = now - max(self.faults.head_lag, self.faults.counter_lag)
        while self._changes and self._changes[0].when < oldest:
            self._changes.popleft()
        self._changes.append(_Change(now, queue, before, counts))

    def _lately(self, queue: int, lag: float) -> Iterable[_Change]:
        since = time.monotonic() - lag
        return (change for change in self._changes if change.queue == queue and change.when > since)

    def hidden(self, queue: int) -> dict[str, Row | None]:
        """The entries changed within the lag as they were before it, None where they were not."""
        before: dict[str, Row | None] = {}
        for change in self._lately(queue, self.faults.head_lag):
            before = {**change.before, **before}
        return before

    def counts(self, queue: int, now: Counts) -> Counts:
        changes = self._lately(queue, self.faults.counter_lag)
        return next((change.counts for change in changes), now)

    def forget(self) -> None:
        self.calls.clear()
        self.outcomes.clear()

    def report(self) -> dict[str, Any]:
        return {
            "total": self.calls.total(),
            "operations": dict(self.calls),
            "outcomes": dict(self.outcomes),
        }


class _Bucket:
    """A second's worth of calls, filled up at the rate.

    Choice: the platform's algorithm is unknown, as is whether operations of one rate share it;
    here they do.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._filled_at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
