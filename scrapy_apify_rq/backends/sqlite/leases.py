"""The leases of one client on the entries of one queue. The API calls them locks.

Its methods are synchronous. Those that take ``counters`` must run in a transaction of ``Catalog``
that stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from scrapy_apify_rq.backends.base import Lock
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.schema import Counters
from scrapy_apify_rq.backends.sqlite.table import FREE, LEASED, LEASED_ROWS, Place, Table, Text


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
        if share is not None:
            return self._table.head_by_host(limit, known, share, self._client_key)
        return self._table.head(limit, known, FREE)

    def _take(self, places: Sequence[Place], until: float, counters: Counters) -> None:
        now = self._now()
        self._database.change_all(
            "UPDATE requests SET lock_by = ?, locked_at = ?, lock_expires_at = ? WHERE rowid = ?",
            [(self._client_key, now, until, rowid) for rowid, _ in places],
        )
        counters.writes += len(places)

    def any(self) -> bool:
        """Whether any client has a lease on an entry."""
        query = f"SELECT 1 {LEASED_ROWS} LIMIT 1"
        return self._database.row(query, self._values()) is not None

    def of(self, id: str) -> Lock | None:
        """Return any client's lease on this entry."""
        row = self._database.row(
            "SELECT lock_by, lock_expires_at FROM requests WHERE queue = :queue AND id = :id"
            f" AND position IS NOT NULL AND {LEASED}",
            self._values(id=id),
        )
        return None if row is None else Lock(row[0], datetime.fromtimestamp(row[1], UTC))

    def prolong(
        self, id: str, secs: float, counters: Counters, *, even_if_ended: bool = False
    ) -> float | None:
        """Let our lease end ``secs`` from now and return when that is. None if we do not hold it.

        ``even_if_ended`` restarts a lease that has ended if no other client has taken the entry.
        """
        values = self._values(id=id, client=self._client_key, secs=secs)
        is_ours = "lock_expires_at > 0" if even_if_ended else LEASED
        changed = self._database.change(
            "UPDATE requests SET locked_at = :now, lock_expires_at = :now + :secs"
            f" WHERE queue = :queue AND id = :id AND lock_by = :client AND {is_ours}",
            values,
        )
        counters.writes += changed
        return values["now"] + secs if changed else None

    def end(self, id: str, counters: Counters) -> bool:
        """Return False if we hold no lease on the entry. ``prolong`` cannot restart it."""
        ended = self._database.change(
            "UPDATE requests SET lock_by = NULL, lock_expires_at = NULL"
            f" WHERE queue = :queue AND id = :id AND lock_by = :client AND {LEASED}",
            self._values(id=id, client=self._client_key),
        )
        counters.writes += ended
        return bool(ended)

    def end_all(self, counters: Counters) -> int:
        """End all our leases and return how many there were."""
        ended = self._database.change(
            "UPDATE requests INDEXED BY requests_leased SET lock_by = NULL, lock_expires_at = NULL"
            " WHERE queue = :queue AND lock_by = :client AND lock_by IS NOT NULL"
            f" AND position IS NOT NULL AND {LEASED}",
            self._values(client=self._client_key),
        )
        counters.writes += ended
        return ended

    def _values(self, **more: Any) -> dict[str, Any]:
        return {"queue": self._table.key, "now": self._now(), **more}
