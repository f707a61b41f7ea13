"""The leases of one client on the entries of one queue. The API calls them locks.

Its methods are synchronous. Those that take ``counters`` must run in a transaction of ``Catalog``
that stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from scrapy_apify_rq.backends.base import Lock
from scrapy_apify_rq.backends.sqlite.catalog import Counters
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.table import Place, Table, Text


class Taken(NamedTuple):
    """What a crawl has leased."""

    texts: list[Text]
    more: bool
    until: float


class Locked(NamedTuple):
    """What a client of the server has leased."""

    ids: list[str]
    expires_at: float
    any_locked: bool
    """Whether any client has locked an entry of the queue."""


class Leases:
    def __init__(
        self, database: Database, table: Table, client_key: str, now: Callable[[], float]
    ) -> None:
        self._database = database
        self._table = table
        self._client_key = client_key
        self._now = now

    def claim(
        self,
        limit: int,
        known: Collection[str],
        size: int,
        share: int | None,
        secs: float,
        counters: Counters,
    ) -> Taken:
        """Lease the first free entries, up to ``size`` bytes but at least one."""
        until = self._now() + secs
        places, more = self._free(limit, known, share)
        texts, is_cut = self._table.read(places, size, even_if_large=True)
        self._take(places[: len(texts)], until, counters)
        return Taken(texts, more or is_cut, until)

    def lock(self, limit: int, secs: float, counters: Counters) -> Locked:
        """Lease the first entries that no client holds, not even this one."""
        until = self._now() + secs
        places, _ = self._free(limit, ())
        self._take(places, until, counters)
        return Locked([id for _, id in places], until, bool(places) or self.any())

    def _free(
        self, limit: int, known: Collection[str], share: int | None = None
    ) -> tuple[list[Place], bool]:
        is_free = f"AND (lock_expires_at IS NULL OR lock_expires_at <= {self._now()!r})"
        if share is not None:
            return self._table.head_by_host(limit, known, share, is_free)
        return self._table.head(limit, known, is_free)

    def _take(self, places: Sequence[Place], until: float, counters: Counters) -> None:
        self._database.connection.executemany(
            "UPDATE requests SET lock_by = ?, lock_expires_at = ? WHERE rowid = ?",
            [(self._client_key, until, rowid) for rowid, _ in places],
        )
        counters.writes += len(places)

    def any(self) -> bool:
        """Whether any client has a lease on an entry."""
        rows = self._database.connection.execute(
            "SELECT 1 FROM requests WHERE queue = ? AND position IS NOT NULL"
            " AND lock_expires_at > ? LIMIT 1",
            (self._table.key, self._now()),
        )
        return rows.fetchone() is not None

    def of(self, id: str) -> Lock | None:
        """Return any client's lease on this entry."""
        row = self._database.connection.execute(
            "SELECT lock_by, lock_expires_at FROM requests WHERE queue = ? AND id = ?"
            " AND position IS NOT NULL AND lock_expires_at > ?",
            (self._table.key, id, self._now()),
        ).fetchone()
        return None if row is None else Lock(row[0], datetime.fromtimestamp(row[1], UTC))

    def prolong(
        self, id: str, secs: float, counters: Counters, *, even_if_ended: bool = False
    ) -> float | None:
        """Let our lease end ``secs`` from now and return when that is. None if we do not hold it.

        ``even_if_ended`` restarts a lease that has ended if no other client has taken the entry.
        """
        now = self._now()
        until = now + secs
        changed = self._database.connection.execute(
            "UPDATE requests SET lock_expires_at = ? WHERE queue = ? AND id = ?"
            " AND lock_by = ? AND lock_expires_at > ?",
            (until, self._table.key, id, self._client_key, 0 if even_if_ended else now),
        ).rowcount
        counters.writes += changed
        return until if changed else None

    def end(self, id: str, counters: Counters) -> bool:
        """Return False if we do not hold a lease on the entry."""
        return self.prolong(id, 0, counters) is not None

    def end_all(self, counters: Counters) -> int:
        """End all our leases and return how many there were."""
        ended = self._database.connection.execute(
            "UPDATE requests SET lock_by = NULL, lock_expires_at = NULL WHERE queue = ?"
            " AND position IS NOT NULL AND lock_by = ? AND lock_expires_at > ?",
            (self._table.key, self._client_key, self._now()),
        ).rowcount
        counters.writes += ended
        return ended
