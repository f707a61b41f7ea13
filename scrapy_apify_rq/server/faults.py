"""Faults on request: what real servers and networks sometimes do to a client.

Tests of clients use them; ``Faults`` lists what can go wrong. The platform's rates are here too,
since the server enforces them only when a test asks for it.
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
    """What goes wrong. With the defaults nothing does. A share is a number from 0 to 1."""

    latency: float = 0
    """Seconds that each answer is delayed."""
    dropped: float = 0
    """Share of calls that have no effect and whose connection is cut."""
    limited: float = 0
    """Share of calls that have no effect and are answered with 429."""
    failed: float = 0
    """Share of calls that have no effect and are answered with 500."""
    lost: float = 0
    """Share of calls that take effect and whose connection is then cut."""
    unprocessed: float = 0
    """Share of the entries of a batch that are not stored and reported as unprocessed."""
    only: list[str] = field(default_factory=list)
    """The operations that have these faults, such as "POST requests/batch". Empty = all."""
    outage_until: float = 0
    """Unix time until which every connection is cut."""
    head_lag: float = 0
    """Seconds until the head and filtered lists show adds, updates and deletes."""
    counter_lag: float = 0
    """Seconds until the counters of the queue change."""
    hide_locked: bool = False
    """GET head leaves locked entries out."""
    rates: bool = False
    """Refuse calls beyond the platform's rates."""
    seed: int | None = None
    """Makes the faults reproducible."""


class Counts(NamedTuple):
    total: int
    handled: int


class _Change(NamedTuple):
    when: float
    queue: int
    before: Mapping[str, Row | None]
    counts: Counts


class Misbehaviour:
    """Decides what goes wrong, and counts the calls by operation."""

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
        """Replace all faults. Raises ValueError if the JSON does not describe faults."""
        self.set(TypeAdapter(Faults).validate_json(body, strict=False))

    def _applies_to(self, operation: str) -> bool:
        return not self.faults.only or operation in self.faults.only

    def latency(self, operation: str) -> float:
        return self.faults.latency if self._applies_to(operation) else 0

    def fate(self, operation: str) -> Fate:
        faults = self.faults
        if time.time() < faults.outage_until:
            return "dropped"
        if not self._applies_to(operation):
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
        """Return False if this entry of a batch is to be left unprocessed."""
        return not (self._applies_to(operation) and self._random.random() < self.faults.unprocessed)

    def exceeds_rate(self, queue: int | None, rate: int) -> bool:
        if not self.faults.rates:
            return False
        return not self._buckets.setdefault((queue, rate), _Bucket(rate)).take()

    # The lag: recent changes, and what was there before them.

    @property
    def lags(self) -> bool:
        return self.faults.head_lag > 0 or self.faults.counter_lag > 0

    def note(self, queue: int, before: Mapping[str, Row | None], counts: Counts) -> None:
        """Remember these entries and the counters. Called just before a change."""
        now = time.monotonic()
        oldest = now - max(self.faults.head_lag, self.faults.counter_lag)
        while self._changes and self._changes[0].when < oldest:
            self._changes.popleft()
        self._changes.append(_Change(now, queue, before, counts))

    def _lately(self, queue: int, lag: float) -> Iterable[_Change]:
        since = time.monotonic() - lag
        return (change for change in self._changes if change.queue == queue and change.when > since)

    def hidden(self, queue: int) -> dict[str, Row | None]:
        """The entries changed within the lag, as they were before. None if they did not exist."""
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
    """A token bucket with a second's worth of calls.

    Choice: the platform's algorithm is unknown, and whether operations of one rate share a bucket.
    Here they do.
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
