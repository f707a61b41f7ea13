"""Where a queue lives, as the frontier sees it.

A backend stores entries and knows nothing of Scrapy. All state that belongs to a running crawl
(what was handed out, what is still unsent) is the frontier's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Literal, NamedTuple, Protocol

from scrapy_apify_rq.models import Entry

State = Literal["pending", "handled", "failed", "locked"]


class Added(NamedTuple):
    """What became of one entry in ``add``; both flags tell of the time before."""

    id: str
    was_already_present: bool
    was_already_handled: bool
    refused: str | None = None
    """Why the queue will never take this entry, for example its size."""


class Claimed(NamedTuple):
    entry: Entry
    lease: float | None
    """Unix time at which the lease ends; None in single access, where there are no leases."""


class Claim(NamedTuple):
    entries: list[Claimed]
    more: bool
    """More entries are pending than this answer holds."""


class Info(NamedTuple):
    id: str
    name: str | None
    total: int
    handled: int
    pending: int


class Backend(Protocol):
    """One queue. Every method but ``open`` needs an open backend.

    Failures that a retry may cure are retried inside; a ``BackendError`` is final.
    """

    batch: int
    """The most entries that ``add`` and ``update`` take in one call."""
    parallel: int
    """How many calls of ``add``, and as many of ``update``, may be under way at one time."""
    linger: float
    """Seconds for which an add may wait for company, since calls are what costs; 0 = none."""
    lag: float
    """Seconds for which ``claim`` may show our own confirmed writes as not made; 0 = never."""
    consistency_delay: float
    """Seconds between two questions before the answer "nothing pending" is believed."""

    @property
    def location(self) -> str:
        """Where the queue is, for people: a file's path or a link. Never holds a token."""

    @property
    def rate_reached(self) -> str | None:
        """The rate that updates are waiting for, for people; None while they wait for none."""

    async def open(self) -> None:
        """Get or create the queue. Raises ConfigError if the settings point at nothing usable."""

    async def close(self) -> None:
        """Release what ``open`` took. May be called twice, and after a failed ``open``."""

    async def info(self) -> Info:
        """Counts, possibly ``lag`` seconds old."""

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        """Store new entries durably, in this order, at the end or each at the very front.

        Entries whose id is there already are left as they are. The answers are in the order of
        the entries, all of them; when it returns, a crash of this process loses none.
        """

    async def claim(self, limit: int, known: Collection[str]) -> Claim:
        """Up to ``limit`` complete pending entries in the queue's order, those with the ids in
        ``known`` aside.

        In shared access each is leased to us, and entries leased to others are left out.
        """

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> None:
        """Replace whole entries. With ``handled_at`` an entry leaves the queue; without, it is
        pending again, at the end or at the very front. Its lease ends either way.
        """

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        """Start our leases on these entries anew; ids whose lease is ours no more are left out."""

    async def unlock(self) -> None:
        """End all leases that our client key holds."""

    async def purge(self) -> None:
        """Delete all entries of the queue, handled ones included."""

    async def get(self, id: str) -> Entry | None: ...

    def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        """All entries, or those in one state; no promise about their order."""

    async def delete(self, ids: Collection[str]) -> None:
        """Delete these entries; unknown ids are ignored."""
