"""The items that were scraped from one queue: rows of the table of items.

A row holds up to 256 KB of items. So the rows of a request with a hundred thousand of them are few
enough to be validated in one transaction of some milliseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from typing import Final

from scrapy_apify_rq.backends.base import EntryItems, LooseItems, SavedItem
from scrapy_apify_rq.backends.cutting import cut
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.table import Table

# Characters of a row, unless one item alone has more.
_ROW_SIZE: Final = 2**18
# What is read at once.
_READ_SIZE: Final = 2**20
_READ_ROWS: Final = 100
# Seconds for which rows are deleted at once: it takes 8 us to 2 ms for each, by its size.
_DELETING: Final = 0.004
_MOST_DELETED: Final = 1000

_INSERT: Final = (
    "INSERT INTO items (queue, entry, key, client, valid, count) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING RETURNING number"
)
_INSERT_TEXT: Final = "INSERT INTO item_texts (number, json) VALUES (?, ?)"
_COUNT: Final = (
    "INSERT INTO item_counts (queue, count) VALUES (?, ?)"
    " ON CONFLICT (queue) DO UPDATE SET count = count + excluded.count"
)


class SavedItems:
    """``ItemStore`` says what each public method promises. ``client`` is None in single access."""

    def __init__(self, database: Database, table: Table, client: str | None) -> None:
        self._database = database
        self._table = table
        self._client = client

    # Within a transaction of the backend.

    def add(self, entry: str, items: EntryItems) -> None:
        """Save the items of a request that has just been finished or retried."""
        count = self._insert(items.texts, entry, None, valid=True)
        if items.spill is not None:
            count += sum(
                spilled
                for (spilled,) in self._database.rows(
                    "UPDATE items SET valid = TRUE, key = NULL"
                    " WHERE queue = ? AND key = ? AND NOT valid RETURNING count",
                    (self._table.key, items.spill),
                )
            )
        self._add_count(count)

    def drop(self, items: EntryItems) -> None:
        """Forget the items of a request that somebody else has finished."""
        self._database.change(
            "DELETE FROM items WHERE queue = ? AND key = ? AND NOT valid",
            (self._table.key, items.spill),
        )

    def _insert(
        self, texts: Sequence[str], entry: str | None, key: str | None, *, valid: bool
    ) -> int:
        """Return how many were inserted."""
        inserted = 0
        for lines in cut(texts, _ROW_SIZE):
            values = (self._table.key, entry, key, self._client, valid, len(lines))
            if (row := self._database.row(_INSERT, values)) is not None:
                self._database.change(_INSERT_TEXT, (*row, "\n".join(lines)))
                inserted += len(lines)
        return inserted

    def _add_count(self, count: int) -> None:
        self._database.change(_COUNT, (self._table.key, count))

    # The protocol.

    async def save(self, batches: Sequence[LooseItems]) -> None:
        def work() -> None:
            for texts, key, entry, _ in batches:
                count = self._insert(texts, entry, key, valid=entry is None)
                if entry is None:
                    self._add_count(count)

        await self._database.transaction(work)

    async def read(self, after: int = 0, *, own: bool = False) -> AsyncIterator[SavedItem]:
        mine = "AND client = :client" if own and self._client is not None else ""
        query = (
            "SELECT number, entry, key, json FROM items JOIN item_texts USING (number)"
            " WHERE queue = :queue AND valid = TRUE AND number > :after"
            f" {mine} ORDER BY number LIMIT {_READ_ROWS}"
        )
        while True:
            values = {"queue": self._table.key, "after": after, "client": self._client}
            rows = await self._database.patiently(partial(self._fetch, query, values))
            if not rows:
                return
            for after, entry, key, json in rows:
                for index, line in enumerate(json.split("\n")):
                    yield SavedItem(after, entry, key or f"{entry}:{after}:{index}", line)
            await asyncio.sleep(0)

    def _fetch(
        self, query: str, values: Mapping[str, object]
    ) -> list[tuple[int, str | None, str | None, str]]:
        rows: list[tuple[int, str | None, str | None, str]] = []
        size = 0
        for row in self._database.rows(query, values):
            rows.append((row[0], row[1], row[2], row[3]))
            size += len(row[3])
            if size > _READ_SIZE:
                break
        return rows

    async def count(self) -> int:
        return await self._number("SELECT count FROM item_counts WHERE queue = ?")

    async def last(self) -> int:
        return await self._number("SELECT max(number) FROM items WHERE queue = ? AND valid = TRUE")

    async def _number(self, query: str) -> int:
        def read() -> int:
            row = self._database.row(query, (self._table.key,))
            return 0 if row is None or row[0] is None else int(row[0])

        return await self._database.patiently(read)

    async def keys(self, after: int) -> set[str]:
        query = "SELECT key FROM items WHERE queue = ? AND key IS NOT NULL AND valid AND number > ?"

        def read() -> set[str]:
            rows = self._database.rows(query, (self._table.key, after))
            return {key for (key,) in rows}

        return await self._database.patiently(read)

    async def discard_spilled(self) -> None:
        if self._client is None:
            await self._delete("NOT valid")
        else:
            await self._delete(
                "NOT valid AND (client = :client OR EXISTS (SELECT 1 FROM requests AS r"
                " WHERE r.queue = :queue AND r.id = items.entry AND r.position IS NULL))"
            )

    async def _delete(self, which: str) -> None:
        query = (
            "DELETE FROM items WHERE number IN"
            f" (SELECT number FROM items WHERE queue = :queue AND {which} LIMIT :rows)"
        )
        rows, deleted = 1, 1
        while deleted:
            values = {"queue": self._table.key, "client": self._client, "rows": rows}
            began = time.monotonic()
            deleted = await self._database.transaction(
                partial(self._database.change, query, values)
            )
            took = max(time.monotonic() - began, 1e-6)
            rows = min(max(int(rows * _DELETING / took), 1), 2 * rows, _MOST_DELETED)
            await asyncio.sleep(0)

    # What the crawl knows about its feeds.

    async def notes(self) -> dict[str, str]:
        query = "SELECT name, json FROM feeds WHERE queue = ? AND client = ?"

        def read() -> dict[str, str]:
            return dict(self._database.rows(query, self._owner))

        return await self._database.patiently(read)

    async def note(self, texts: Mapping[str, str], *, anew: bool = False) -> None:
        query = "INSERT OR REPLACE INTO feeds (queue, client, name, json) VALUES (?, ?, ?, ?)"
        rows = [(*self._owner, name, text) for name, text in texts.items()]

        def work() -> None:
            if anew:
                forget = "DELETE FROM feeds WHERE queue = ? AND client = ?"
                self._database.change(forget, self._owner)
            self._database.change_all(query, rows)

        await self._database.transaction(work)

    async def notes_of_others(self, names: Collection[str]) -> list[dict[str, str]]:
        # Not a query for each name: a feed may have thousands of batches, and there is no index.
        query = "SELECT queue, client, name, json FROM feeds WHERE (queue, client) <> (?, ?)"
        wanted = frozenset(names)

        def read() -> list[dict[str, str]]:
            notes: defaultdict[tuple[int, str], dict[str, str]] = defaultdict(dict)
            for queue, client, name, text in self._database.rows(query, self._owner):
                if name in wanted:
                    notes[queue, client][name] = text
            return list(notes.values())

        return await self._database.patiently(read)

    @property
    def _owner(self) -> tuple[int, str]:
        return self._table.key, self._client or ""
