"""Where a queue lives, as the frontier sees it.

A backend stores entries and knows nothing of Scrapy. All state that belongs to a running crawl
(what was handed out, what is still unsent) is the frontier's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from scrapy_apify_rq.entries.models import Entry

State = Literal["pending", "handled", "failed", "locked"]


class Added(NamedTuple):
    """What became of one entry in ``add``; both flags tell of the time before."""

    id: str
    was_already_present: bool
    was_already_handled: bool
    refused: str | None = None
    """Why the queue will never take this entry, for example its size."""


class Updated(NamedTuple):
    """What became of one entry in ``update``."""

    was_handled: bool
    """It was handled before, as far as can be told."""
    refused: bool = False
    """The queue does not take it as it is now: there it is as it was, and no claim shows it."""


class Claimed(NamedTuple):
    entry: Entry
    lease: float | None
    """Unix time at which the lease ends; None in single access, where there are no leases."""


class Claim(NamedTuple):
    entries: list[Claimed]
    more: bool
    """More entries are pending than this answer holds."""
    leased: bool = False
    """Pending entries are leased, to others or to us."""
    others: bool = False
    """Another client has begun to use the queue since we opened it."""
    alone: bool = False
    """No other client has used the queue, as far as the backend can tell."""


class Operations(NamedTuple):
    """What the platform bills, since the queue was made."""

    reads: int
    writes: int


class Info(NamedTuple):
    id: str
    name: str | None
    total: int
    handled: int
    pending: int
    modified_at: datetime | None = None
    """When the queue was last changed."""
    operations: Operations | None = None
    """None where nothing is billed."""

    @property
    def title(self) -> str:
        """What people know the queue by."""
        return self.name or self.id


class Lock(NamedTuple):
    client_key: str | None
    expires_at: datetime


class Backend(Protocol):
    """One queue. It has to be open, but for ``open``, ``find``, ``names`` and ``close``.

    Failures that a retry may cure are retried inside; a ``BackendError`` is final.
    """

    batch: int
    """The most entries that ``add`` takes in one call."""
    parallel: int
    """How many calls of ``add`` may be under way at one time."""
    update_batch: int
    """With how many entries to call ``update``: as many as it writes at once; it takes more."""
    update_parallel: int
    """How many such calls may be under way at one time."""
    linger: float
    """Seconds for which an add may wait for company, since calls are what costs; 0 = none."""
    lag: float
    """Seconds for which ``claim`` may show our own confirmed writes as not made; 0 = never."""
    consistency_delay: float
    """Seconds between two questions before the answer "nothing pending" is believed."""
    counts_reads: bool
    """Each entry that ``list`` and ``count`` look at is a read, which the platform bills."""
    patience: float
    """Seconds for which a failing call is tried again before it raises."""
    lock_secs: int | None
    """Seconds that a lease lasts; None in single access."""

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

    async def claim(self, limit: int, known: Collection[str], size: int) -> Claim:
        """Up to ``limit`` complete pending entries in the queue's order, those with the ids in
        ``known`` aside; at most about ``size`` bytes, but always one if there is one.

        In shared access each is leased to us, and leased entries are left out. What we know may
        come all the same, if it has no lease: ours has ended, or its add is not answered yet.
        An empty ``known`` says that we hold no lease, so that leftovers in our name may be ended.
        """

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        """Replace whole entries. With ``handled_at`` an entry leaves the queue; without, it is
        pending again, at the end or at the very front. Its lease ends either way.

        The answers are in the order of the entries.
        """

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        """Start our leases on these entries anew; ids whose lease is ours no more are left out."""

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        """End our leases on these entries, or all that our client key holds."""

    # For the tools.

    async def find(self) -> bool:
        """Open the queue if there is one; False, with nothing made, if there is none."""

    async def names(self) -> Sequence[str]:
        """Names of queues that there are besides, the newest first: up to 50. For one that
        ``find`` did not find."""

    async def purge(self) -> None:
        """Delete all entries of the queue, handled ones included."""

    async def get(self, id: str) -> Entry | None: ...

    def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        """All entries, or those in one state; no promise about their order."""

    async def count(self, state: State) -> int: ...

    async def lock_of(self, id: str) -> Lock | None:
        """Who holds a lock on this entry now."""

    async def delete(self, ids: Collection[str]) -> None:
        """Delete these entries; unknown ids are ignored."""
