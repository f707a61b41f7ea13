"""The entries of one queue: rows of the table of requests.

Its methods are synchronous. Those that take ``counters`` must run in a transaction of ``Catalog``
that stores them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from scrapy_apify_rq.backends.base import Added, State
from scrapy_apify_rq.backends.fairness import choose_fairly
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.schema import Counters
from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.entries.models import Entry

Place = tuple[int, str]
"""The rowid and the id of an entry."""
Text = tuple[str, bytes]
"""The id and the JSON of an entry."""


# A lease that was taken in the future is from before somebody set the clock back. Those of other
# processes may be ahead by so many seconds: their clocks do not follow that of the machine.
_CLOCKS_DIFFER: Final = 60
LEASED: Final = (
    f"coalesce(lock_expires_at, 0) > :now AND coalesce(locked_at, 0) <= :now + {_CLOCKS_DIFFER}"
)
FREE: Final = f"NOT ({LEASED})"


class Row(NamedTuple):
    """An entry as it is stored. ``position`` is None once it is handled."""

    id: str
    json: bytes
    position: int | None
    lock_by: str | None
    lock_expires_at: float | None
    is_leased: int


_INSERT: Final = (
    "INSERT INTO requests (queue, id, position, failed, json, host) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING"
)
# JSON as bytes, since another program may have written something that is not UTF-8.
_JSON: Final = "CAST(json AS BLOB)"
ROW: Final = f"id, {_JSON}, position, lock_by, lock_expires_at, position IS NOT NULL AND {LEASED}"
_ROW: Final = f"SELECT {ROW} FROM requests WHERE queue = :queue"
_FILTERS: Final = {
    frozenset({"locked"}): LEASED,
    frozenset({"pending"}): FREE,
    frozenset({"locked", "pending"}): "TRUE",
}
# The second condition is what makes the index sort them by rowid, and count them alone.
FAILED: Final = "INDEXED BY requests_failed WHERE queue = :queue AND failed AND failed = TRUE"
LEASED_ROWS: Final = (
    "FROM requests INDEXED BY requests_leased WHERE queue = :queue AND lock_by IS NOT NULL"
    f" AND position IS NOT NULL AND {LEASED}"
)
# By which column the entries of a state are paged, and the rest of the query. Left to choose an
# index, SQLite may take one that makes it sort the rows again for each page.
_IN_STATE: Final[dict[State | None, tuple[str, str]]] = {
    None: ("rowid", "NOT INDEXED WHERE queue = :queue"),
    "pending": (
        "position",
        "INDEXED BY requests_pending WHERE queue = :queue AND position IS NOT NULL",
    ),
    "handled": ("rowid", "NOT INDEXED WHERE queue = :queue AND position IS NULL"),
    "failed": ("rowid", FAILED),
    "locked": ("rowid", f"WHERE rowid IN (SELECT rowid {LEASED_ROWS})"),
}
# SQLite has no skip scan of its own: each step finds the next host by the index.
_NEXT_HOST: Final = (
    "SELECT host FROM requests INDEXED BY requests_by_host WHERE queue = :queue AND host {}"
    " AND position IS NOT NULL ORDER BY host LIMIT 1"
)
_HOSTS: Final = (
    "WITH RECURSIVE hosts (host) AS (SELECT * FROM ({first}) UNION ALL SELECT ({next}) FROM hosts"
    " WHERE host IS NOT NULL LIMIT :limit) SELECT host FROM hosts WHERE host IS NOT NULL"
)
_FIRST_HOSTS: Final = _HOSTS.format(
    first=_NEXT_HOST.format("IS NOT NULL"), next=_NEXT_HOST.format("> hosts.host")
)
_HOSTS_AFTER: Final = _HOSTS.format(
    first=_NEXT_HOST.format("> :after"), next=_NEXT_HOST.format("> hosts.host")
)
# How many hosts one claim looks at: each costs a few microseconds.
_MOST_HOSTS: Final = 128
_BEFORE_ALL: Final = -(2**63)
# Rowids that are remembered: some more than a crawl has in its window, at 0.16 KB each.
_MOST_ROWIDS: Final = 10_000


class Table:
    """The entries of the queue with this key."""

    def __init__(self, database: Database, now: Callable[[], float], key: int = 0) -> None:
        self._database = database
        self._now = now
        self.key = key
        """0, which no queue has, until the backend of a crawl has found or made its queue."""
        self._last_host: str | None = None
        """After which the next claim goes on; None if it begins with the first."""
        self._rowids: OrderedDict[str, int] = OrderedDict()
        """Of entries that were added or claimed last, so that their acks need not search the index:
        each would read another page of a large file. An entry may have left its row meanwhile.
        """

    # Changes

    def add(self, entries: Sequence[Entry], forefront: bool, counters: Counters) -> list[Added]:
        # One by one, since each can have 9 MB of JSON.
        return [self._add(entry, forefront, counters) for entry in entries]

    def _add(self, entry: Entry, forefront: bool, counters: Counters) -> Added:
        counters.writes += 1
        handled = entry.is_handled
        if self._insert(entry, counters.place(handled, forefront)):
            counters.total += 1
            counters.handled += handled
            return Added(entry.id, False, False)
        ((old,),) = self._database.rows(
            "SELECT position FROM requests WHERE queue = ? AND id = ?", (self.key, entry.id)
        )
        return Added(entry.id, True, old is None)

    def _insert(self, entry: Entry, position: int | None) -> bool:
        """Return False if the queue has an entry of this id."""
        json = entry.to_json()
        values = (self.key, entry.id, position, entry.failed, json, host_of(entry))
        rowid = self._database.insert(_INSERT, values)
        if rowid is not None and position is not None:
            self._remember(rowid, entry.id)
        return rowid is not None

    def _remember(self, rowid: int, id: str) -> None:
        self._rowids[id] = rowid
        self._rowids.move_to_end(id)
        if len(self._rowids) > _MOST_ROWIDS:
            self._rowids.popitem(last=False)

    def _find(self, id: str) -> tuple[int, bool] | None:
        """The rowid of an entry, and whether it is handled."""
        query = "SELECT rowid, position IS NULL FROM requests WHERE queue = ? AND id = ?"
        row = None
        if (rowid := self._rowids.get(id)) is not None:
            row = self._database.row(f"{query} AND rowid = ?", (self.key, id, rowid))
        row = row or self._database.row(query, (self.key, id))
        return None if row is None else (row[0], bool(row[1]))

    def replace(self, entry: Entry, forefront: bool, counters: Counters) -> Added:
        """Store the entry whether it is new or not. The answer describes the queue before."""
        counters.writes += 1
        handled = entry.is_handled
        position = counters.place(handled, forefront)
        old = self._find(entry.id)
        if old is None:
            self._insert(entry, position)
            counters.total += 1
        else:
            self._database.change(
                "UPDATE requests SET position = ?, failed = ?, json = ?, host = ?, lock_by = NULL,"
                " lock_expires_at = NULL WHERE rowid = ?",
                (position, entry.failed, entry.to_json(), host_of(entry), old[0]),
            )
        was_handled = old is not None and old[1]
        counters.handled += handled - was_handled
        if handled:
            self._rowids.pop(entry.id, None)
        return Added(entry.id, old is not None, was_handled)

    def move_to_front(self, id: str, counters: Counters) -> None:
        """Move a pending entry to the very front."""
        self._database.change(
            "UPDATE requests SET position = ? WHERE queue = ? AND id = ?",
            (counters.place(handled=False, forefront=True), self.key, id),
        )

    def delete(self, ids: Collection[str], counters: Counters) -> None:
        for id in ids:
            # Not "RETURNING position IS NULL": SQLite 3.40.1 returns 0 for a position that is
            # NULL, if the column queue is NOT NULL.
            gone = self._database.row(
                "DELETE FROM requests WHERE queue = ? AND id = ? RETURNING position",
                (self.key, id),
            )
            if gone is not None:
                counters.total -= 1
                counters.handled -= gone[0] is None
                counters.deletes += 1

    # Records

    def load_records(self, prefix: str) -> dict[str, bytes]:
        rows = self._database.rows(
            "SELECT name, CAST(text AS BLOB) FROM records"
            " WHERE queue = ? AND substr(name, 1, length(?)) = ?",
            (self.key, prefix, prefix),
        )
        return dict(rows)

    def save_records(self, texts: Mapping[str, bytes | None]) -> None:
        for name, text in texts.items():
            if text is None:
                query = "DELETE FROM records WHERE queue = ? AND name = ?"
                self._database.change(query, (self.key, name))
            else:
                query = "INSERT OR REPLACE INTO records VALUES (?, ?, ?)"
                self._database.change(query, (self.key, name, text))

    # Reads for a claim

    def head(
        self, limit: int, known: Collection[str], condition: str = "TRUE"
    ) -> tuple[list[Place], bool]:
        """The first pending entries that are not ``known``, and whether there are more.

        With rowids, since finding a row by its id costs a read of the file in a large queue.
        """
        found = self._database.rows(
            "SELECT rowid, id FROM requests WHERE queue = :queue AND position IS NOT NULL"
            f" AND {condition} ORDER BY position LIMIT :limit",
            {"queue": self.key, "now": self._now(), "limit": limit + len(known) + 1},
        )
        rows = [row for row in found if row[1] not in known]
        return rows[:limit], len(rows) > limit

    def head_by_host(
        self, limit: int, known: Collection[str], share: int, client: str | None = None
    ) -> tuple[list[Place], bool]:
        """The same, but with equally many of each host, up to ``share``, known ones included.

        In shared access only what is free for this ``client``. With very many hosts, each call is
        for some of them in turn.
        """
        # Entries without a host wait in a line of their own.
        hosts: list[str | None] = [None, *self._next_hosts()]
        each = min((limit + len(known)) // len(hosts) + 2, share)
        found, more = choose_fairly(
            [self._line(host, each, client) for host in hosts],
            limit,
            share,
            lambda row: bool(row[3]) and row[2] not in known,
        )
        places = [(rowid, id) for _, rowid, id, _ in sorted(found)]
        return places, more or self._last_host is not None

    def _next_hosts(self) -> list[str]:
        """The hosts whose turn it is."""
        last = self._last_host
        hosts = self._hosts(_FIRST_HOSTS if last is None else _HOSTS_AFTER, _MOST_HOSTS)
        if last is not None and len(hosts) < _MOST_HOSTS:
            first = self._hosts(_FIRST_HOSTS, _MOST_HOSTS - len(hosts))
            hosts += [host for host in first if host <= last]
        self._last_host = hosts[-1] if len(hosts) == _MOST_HOSTS else None
        return hosts

    def _hosts(self, query: str, limit: int) -> list[str]:
        values = {"queue": self.key, "after": self._last_host, "limit": limit}
        return [host for (host,) in self._database.rows(query, values)]

    def _line(
        self, host: str | None, chunk: int, client: str | None
    ) -> Iterator[tuple[int, int, str, int]]:
        """Position, rowid, id and whether it is free, of the pending entries of a host, in the
        queue's order: those that others have leased are left out. They are read so many at a time.
        """
        free, condition = "1", "TRUE"
        if client is not None:  # what it has leased itself takes places, too
            free, condition = FREE, f"({FREE} OR lock_by = :client)"
        query = (
            f"SELECT position, rowid, id, {free} FROM requests INDEXED BY requests_by_host"
            " WHERE queue = :queue AND host IS :host AND position > :after"
            f" AND position IS NOT NULL AND {condition} ORDER BY position LIMIT :limit"
        )
        values: dict[str, Any] = {"queue": self.key, "host": host, "now": self._now()}
        values["client"] = client
        after = _BEFORE_ALL
        while True:
            rows = list(self._database.rows(query, {**values, "after": after, "limit": chunk}))
            yield from rows
            if len(rows) < chunk:
                return
            after = rows[-1][0]

    def read(
        self, places: Sequence[Place], size: int, *, even_if_large: bool
    ) -> tuple[list[Text], bool]:
        """Read these entries up to ``size`` bytes, and whether that left some out.

        ``even_if_large`` reads the first one whatever its size. A row that no longer holds the
        entry of this id is skipped.
        """
        # A join in this order yields the rows in theirs, one by one: the rows that do not fit are
        # never read.
        query = (
            f"WITH wanted (row) AS (VALUES {', '.join(['(?)'] * len(places))})"
            f" SELECT id, {_JSON} FROM wanted CROSS JOIN requests"
            " ON requests.rowid = wanted.row AND +queue = ?"
        )
        rowids = {id: rowid for rowid, id in places}
        texts: list[Text] = []
        if places:
            for id, text in self._database.rows(query, (*rowids.values(), self.key)):
                if id not in rowids:
                    continue
                size -= len(text)
                if size < 0 and (texts or not even_if_large):
                    return texts, True
                texts.append((id, text))
                self._remember(rowids[id], id)
        return texts, False

    # Reads for the tools

    def get(self, id: str) -> Text | None:
        query = f"SELECT id, {_JSON} FROM requests WHERE queue = ? AND id = ?"
        row = self._database.row(query, (self.key, id))
        return None if row is None else (row[0], row[1])

    def page(
        self, state: State | None, *, after: int = _BEFORE_ALL, limit: int
    ) -> list[tuple[int, str, bytes]]:
        """Place, id and JSON of entries in this state, behind that place."""
        place, which = _IN_STATE[state]
        query = (
            f"SELECT {place}, id, {_JSON} FROM requests {which}"
            f" AND {place} > :after ORDER BY {place} LIMIT :limit"
        )
        values = {"queue": self.key, "now": self._now(), "after": after, "limit": limit}
        return [(place, id, json) for place, id, json in self._database.rows(query, values)]

    def count(self, state: State) -> int:
        query = f"SELECT count(*) FROM requests {_IN_STATE[state][1]}"
        values = {"queue": self.key, "now": self._now()}
        ((count,),) = self._database.rows(query, values)
        return int(count)

    # Reads for the server

    def row(self, id: str) -> Row | None:
        return next(self._rows("AND id = :id", id=id), None)

    def page_by_id(self, limit: int, *, after: str, size: int) -> tuple[list[Row], bool]:
        """Read entries in the order of their ids, and whether there are more.

        After about ``size`` bytes it stops, but not before the first entry.
        """
        return self._page("AND id > :after ORDER BY id", limit, size, after=after)

    def page_in_order(
        self, limit: int, *, after: int | None, states: frozenset[str], size: int
    ) -> tuple[list[Row], bool]:
        """The same with entries in these states, in the queue's order, behind this position."""
        after = _BEFORE_ALL if after is None else after
        which = "AND position > :after AND position IS NOT NULL"
        more = f"{which} AND {_FILTERS[states]} ORDER BY position"
        return self._page(more, limit, size, after=after)

    def _page(self, more: str, limit: int, size: int, **values: Any) -> tuple[list[Row], bool]:
        rows: list[Row] = []
        for row in self._rows(f"{more} LIMIT :limit", limit=limit + 1, **values):
            size -= len(row.json)
            if len(rows) == limit or (rows and size < 0):
                return rows, True
            rows.append(row)
        return rows, False

    def _rows(self, more: str, **values: Any) -> Iterator[Row]:
        values |= {"queue": self.key, "now": self._now()}
        return map(Row._make, self._database.rows(f"{_ROW} {more}", values))
