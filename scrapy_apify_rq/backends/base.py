"""What a place for queues can do, as the frontier sees it.

A backend stores entries and knows nothing about Scrapy. The state of a running crawl (what is in
flight, what is unsent) belongs to the frontier.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from scrapy_apify_rq.entries.models import Entry

State = Literal["pending", "handled", "failed", "locked"]
Purpose = Literal["crawl", "store", "read"]
"""What a queue is opened for: to crawl it; to store for others, such that even a power cut loses
nothing that was stored; or to read it, which changes nothing.
"""


class Added(NamedTuple):
    """The answer of ``add`` for one entry. Both flags describe the queue before the call."""

    id: str
    was_already_present: bool
    was_already_handled: bool
    refused: str | None = None
    """Why the queue will never take this entry, for example its size."""


class Updated(NamedTuple):
    """The answer of ``update`` for one entry."""

    was_handled: bool
    """Whether it was handled before, as far as the backend can tell."""
    refused: bool = False
    """The queue did not take the update. The old entry stays in it but is not claimed again."""


class Claimed(NamedTuple):
    entry: Entry
    lease: float | None
    """Unix time at which the lease ends. None in single access, which has no leases."""


class Claim(NamedTuple):
    entries: list[Claimed]
    more: bool
    """More entries are pending than this answer holds."""
    leased: bool = False
    """Some pending entries are leased, to others or to us."""
    others: bool = False
    """Another client has started to use the queue since we opened it."""
    left: int = 0
    """How many pending entries are left to others, in shared access."""
    alone: bool = False
    """No other client has ever used the queue, as far as the backend can tell."""


class Operations(NamedTuple):
    """What the platform has billed for the queue since it was created."""

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
        """The queue's name for people."""
        return self.name or self.id


class Known(NamedTuple):
    """A queue among others."""

    name: str
    about: str | None
    """Whose queue it is, for people, or what else somebody has put into its title."""
    total: int
    pending: int


class EntryItems(NamedTuple):
    """The items of a request, for ``update``."""

    texts: Sequence[str]
    """Each is a JSON object."""
    spill: str | None = None
    """Names those that ``ItemStore.save`` has had already."""

    @property
    def size(self) -> int:
        return sum(map(len, self.texts))


class LooseItems(NamedTuple):
    """Items for ``ItemStore.save``."""

    texts: Sequence[str]
    key: str
    """Without an entry: they are saved once under this key. With one: its spill."""
    entry: str | None = None
    """Id of the entry with whose update they become valid."""
    retry_count: int = 0
    """Of the entry, when they were scraped."""


class SavedItem(NamedTuple):
    number: int
    """Greater for what was saved later. Items saved together have the same."""
    entry: str | None
    """Id of the entry that it is from."""
    key: str
    """Names it among all items of the queue."""
    json: str


class Lock(NamedTuple):
    client_key: str | None
    expires_at: datetime


class ItemStore(Protocol):
    """The items of the crawls of one queue. It is open while its backend is.

    What ``update`` and ``save`` have confirmed survives the process. A crawl in shared access has
    the items that were saved under its own client key, any other has all.
    """

    async def save(self, batches: Sequence[LooseItems]) -> None:
        """Save items that do not come with an update. A key that is there already is left alone."""

    def read(self, after: int = 0, *, own: bool = False) -> AsyncIterator[SavedItem]:
        """Yield the items in the order of their numbers, from the first that is greater than
        ``after``; or only those of this crawl's ``own`` client.
        """

    async def count(self) -> int:
        """How many there are. Over the API, with those that ``read`` leaves out."""

    async def last(self) -> int:
        """Return the greatest number, 0 if there is none."""

    async def keys(self, after: int) -> set[str]:
        """Return the keys of items without an entry that have greater numbers."""

    async def discard_spilled(self) -> None:
        """Delete what an earlier process has saved for updates that cannot come any more. In single
        access that is all that waits for one; nobody else may use the queue.
        """

    async def notes(self) -> Mapping[str, str]:
        """Return the texts that this client has noted, by name, until the queue is purged."""

    async def note(self, texts: Mapping[str, str], *, anew: bool = False) -> None:
        """Store texts by name, in the place of those of the same name; of all, if ``anew``."""

    async def notes_of_others(self, names: Collection[str]) -> Sequence[Mapping[str, str]]:
        """Return which of these notes each other client has, and each other queue in this place."""


class Backend(Protocol):
    """One queue. Call ``open`` first, except for ``find``, ``queues`` and ``close``.

    The backend retries what a retry may cure. A ``BackendError`` is final.
    """

    batch: int
    """The most entries that one call of ``add`` takes."""
    parallel: int
    """How many calls of ``add`` may run at the same time."""
    update_batch: int
    """How many entries to pass to one call of ``update``. It takes more, but gains nothing."""
    update_parallel: int
    """How many calls of ``update`` may run at the same time."""
    linger: float
    """Seconds for which an add may wait to share a call with others. 0 where calls are cheap."""
    lag: float
    """Seconds for which ``claim`` may still show the queue without our latest writes."""
    consistency_delay: float
    """Seconds between two answers "nothing pending" before they are believed."""
    chooses_hosts: bool
    """``claim`` follows a ``share`` in shared access, too."""
    counts_reads: bool
    """The platform bills each entry that ``list`` and ``count`` look at."""
    lock_secs: int | None
    """Seconds that a lease lasts. None in single access."""

    @property
    def keeps_records(self) -> bool:
        """``save_records`` stores something, as far as is known before ``load_records``."""

    @property
    def items(self) -> ItemStore | None:
        """None where items cannot be saved."""

    @property
    def patience(self) -> float:
        """Seconds for which a failing call is tried again before it raises."""

    @property
    def location(self) -> str:
        """Where the queue is, for people: the path of a file or a link. Holds no token."""

    @property
    def rate_reached(self) -> str | None:
        """The rate that updates are waiting for, for people. None if they do not wait."""

    def refusal(self, entry: Entry, size: int) -> str | None:
        """Say why ``add`` would refuse this entry. None if it will not, or has to find out.

        ``size`` is no less than ``entry.size``, which takes time to count.
        """

    async def open(self) -> None:
        """Get or create the queue. Raises ConfigError if the settings lead to nothing usable."""

    async def occupy(self, *, alone: bool) -> None:
        """Keep other crawls out until ``close``, or those that want the queue alone.

        Raises ConfigError if one is there already, where the backend can tell.
        """

    async def check(self) -> None:
        """Raise BackendError if the queue was deleted or, while we occupy it, emptied by somebody
        else, where that can be found out without a call over the network.
        """

    async def close(self) -> None:
        """Release what ``open`` took, in bounded time. May be called twice, or without ``open``."""

    async def info(self) -> Info:
        """Return the counts, which may be ``lag`` seconds old."""

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        """Store new entries durably and in this order: at the end, or each at the very front.

        An entry whose id exists already is left as it is. There is one answer for each entry, in
        the same order. Once ``add`` has returned, a crash of this process loses none of them.
        """

    async def claim(
        self, limit: int, known: Collection[str], size: int, share: int | None = None
    ) -> Claim:
        """Return up to ``limit`` complete pending entries in the queue's order, except those whose
        ids are in ``known``.

        With a ``share`` they are chosen so that all hosts (``entries.hosts``) get equally many, up
        to ``share`` of each, as far as the backend knows its entries; known ones count. In shared
        access, only a backend that ``chooses_hosts`` does so.

        Together they have about ``size`` bytes of JSON at most. If there is an entry, the answer
        holds at least one, whatever its size.

        In shared access each returned entry is leased to us, and entries that are leased are left
        out. There a known entry can be returned if it has no lease: because ours has ended, or
        because its add is not answered yet. With an empty ``known`` we hold no leases, so the
        backend may end those that an earlier run left in our name.
        """

    def leave(self, id: str) -> None:
        """Leave a claimed entry pending, for others: this process does not want it again.

        ``claim`` returns it no more. Our lease on it ends at the next claim with an empty
        ``known``, at ``unlock``, or by itself.
        """

    async def update(
        self,
        entries: Sequence[Entry],
        *,
        forefront: bool,
        items: Mapping[str, EntryItems] | None = None,
    ) -> list[Updated]:
        """Replace whole entries. With ``handled_at`` an entry leaves the queue. Without it, the
        entry is pending again, at the end or at the very front. Its lease ends in both cases.

        ``items``, by id, are saved no later than their entries, except for an entry that was
        handled before: its items have been saved by whoever handled it.

        There is one answer for each entry, in the same order.
        """

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        """Restart our leases on these entries. Ids whose lease we have lost are left out."""

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        """End our leases on these entries, or all leases of our client key."""

    # What a crawl keeps beside its entries.

    async def load_records(self, prefix: str) -> dict[str, bytes]:
        """Return what ``save_records`` has stored under names that begin so."""

    async def save_records(self, texts: Mapping[str, bytes | None]) -> Collection[str]:
        """Store each text under its name; None deletes what was there. In the embedded file all of
        them are stored or none.

        Return the names of texts that are too long to be stored; what was there stays. Nothing is
        stored by a backend that does not keep records.
        """

    # For the tools.

    async def find(self) -> bool:
        """Open the queue if it exists. Return False, and create nothing, if it does not."""

    async def queues(self) -> Sequence[Known]:
        """Return up to 1000 queues that have names, the newest first. Call ``find`` before."""

    async def purge(self) -> None:
        """Delete all entries of the queue, including handled ones, all records and saved items."""

    async def get(self, id: str) -> Entry | None: ...

    def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        """Yield all entries, or those in one state, in any order."""

    async def count(self, state: State) -> int: ...

    async def lock_of(self, id: str) -> Lock | None:
        """Return the lock on this entry, if it is locked now."""

    async def delete(self, ids: Collection[str]) -> None:
        """Delete these entries. Unknown ids are ignored."""
