"""What a page for people asks about a queue: numbers, workers, and entries one after the other.

Each question costs about the same for a queue of a million entries as for a small one: it reads an
index that holds no more than the answer, a sample, or as much as the caller takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple

from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.table import FAILED, LEASED_ROWS, ROW, Row

Which = Literal["all", "pending", "locked", "handled", "failed"]

# Rows of the file that a walk passes over before its caller gets a turn.
_WINDOW: Final = 2000
# Numbers of items that one look for those of an entry covers; it reads no items.
_ITEMS: Final = 100_000


class Numbers(NamedTuple):
    """What the queue's own counters do not hold."""

    failed: int
    locked: int
    items: int


class Worker(NamedTuple):
    client_key: str
    leases: int
    taken_at: float | None
    """When it took the oldest of its leases, or last prolonged it."""
    first_end: float
    last_end: float


class Step(NamedTuple):
    """Where a walk has come to. ``row`` is None if no entry is there."""

    at: int
    row: Row | None


class Survey:
    """Of all queues of the file; ``key`` says which."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    def numbers(self, key: int) -> Numbers:
        questions = (
            f"SELECT count(*) FROM requests {FAILED}",
            f"SELECT count(*) {LEASED_ROWS}",
            "SELECT sum(count) FROM item_counts WHERE queue = :queue",
        )
        return Numbers(*(int(row[0] or 0) for q in questions for row in self._rows(q, key)))

    def workers(self, key: int, limit: int) -> list[Worker]:
        """Those that hold leases, the one with most of them first."""
        query = (
            "SELECT lock_by, count(*), min(locked_at), min(lock_expires_at), max(lock_expires_at)"
            f" {LEASED_ROWS} GROUP BY lock_by ORDER BY 2 DESC, 1 LIMIT :limit"
        )
        return [Worker(*row) for row in self._rows(query, key, limit=limit)]

    def row(self, key: int, id: str) -> Row | None:
        query = f"SELECT {ROW} FROM requests WHERE queue = :queue AND id = :id"
        return next(map(Row._make, self._rows(query, key, id=id)), None)

    def sample(self, key: int, limit: int, failed: bool) -> Iterator[Row]:
        """Up to so many entries, or failed ones. The former are a random sample, since ids are
        hashes; the latter are those that were added last.
        """
        which = (
            f"{FAILED} ORDER BY rowid DESC"
            if failed
            else "INDEXED BY requests_by_id WHERE queue = :queue ORDER BY id"
        )
        query = f"SELECT {ROW} FROM requests {which} LIMIT :limit"
        return map(Row._make, self._rows(query, key, limit=limit))

    def walk(self, key: int, which: Which, after: int | None) -> Iterator[Step]:
        """Entries in this state, and places without one, from the one after ``after``.

        Pending ones come in the queue's order, failed ones begin with that added last, others with
        that added first.
        """
        if which in ("all", "handled"):
            return self._windows(key, which, after or 0)
        if which == "pending":
            return self._steps(
                "position",
                "INDEXED BY requests_pending WHERE queue = :queue AND position IS NOT NULL"
                " AND position > :after ORDER BY position",
                key,
                after=-(2**63) if after is None else after,
            )
        if which == "failed":
            return self._steps(
                "rowid",
                f"{FAILED} AND rowid < :after ORDER BY rowid DESC",
                key,
                after=2**63 - 1 if after is None else after,
            )
        # The rows are sorted before their texts are read.
        return self._steps(
            "rowid",
            f"WHERE rowid > :after AND rowid IN (SELECT rowid {LEASED_ROWS}) ORDER BY rowid",
            key,
            after=after or 0,
        )

    def _windows(self, key: int, which: Which, after: int) -> Iterator[Step]:
        """In the order of the file, where entries of other queues and states lie in between."""
        (last,) = self._database.row("SELECT max(rowid) FROM requests") or (None,)
        state = "AND position IS NULL" if which == "handled" else ""
        while after < (last or 0):
            until = after + _WINDOW
            yield from self._steps(
                "rowid",
                f"NOT INDEXED WHERE rowid > :after AND rowid <= :until AND queue = :queue {state}"
                " ORDER BY rowid",
                key,
                after=after,
                until=until,
            )
            yield Step(until, None)
            after = until

    def _steps(self, place: str, where: str, key: int, **values: int) -> Iterator[Step]:
        query = f"SELECT {place}, {ROW} FROM requests {where}"
        return (Step(at, Row._make(row)) for at, *row in self._rows(query, key, **values))

    def items_of(self, key: int, entry: str, after: int) -> tuple[list[str], int | None]:
        """JSON Lines of the items of an entry among the next items, and where to go on. There is
        no index of them by entry, which each ack would have to update.
        """
        query = (
            "SELECT json FROM items NOT INDEXED CROSS JOIN item_texts USING (number)"
            " WHERE items.number > :after AND items.number <= :until AND queue = :queue"
            " AND entry = :entry AND valid ORDER BY items.number"
        )
        until = after + _ITEMS
        texts = [text for (text,) in self._rows(query, key, after=after, until=until, entry=entry)]
        (last,) = self._database.row("SELECT max(number) FROM items") or (None,)
        return texts, until if until < (last or 0) else None

    def _rows(self, query: str, key: int, **values: object) -> Iterator[tuple[Any, ...]]:
        return self._database.rows(query, {"queue": key, "now": self._now(), **values})
