"""The records of a key-value store: bytes with a content type, each under a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scrapy_apify_rq.backends.sqlite.database import Database

# Greater than any character of a name.
_LAST: Final = "\x7f"


class StoreRecords:
    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    async def put(self, store: int, name: str, content_type: str, body: bytes) -> bool:
        """Store the record in place of one of that name. False if the store was deleted."""

        def work() -> bool:
            if not self._touch(store):
                return False
            self._database.change(
                "INSERT INTO store_records VALUES (?, ?, ?, ?) ON CONFLICT (storage, name)"
                " DO UPDATE SET content_type = excluded.content_type, body = excluded.body",
                (store, name, content_type, body),
            )
            return True

        return await self._database.transaction(work)

    async def get(self, store: int, name: str) -> tuple[str, bytes] | None:
        """The content type and the body."""
        found = await self._database.patiently(
            lambda: self._database.row(
                "SELECT content_type, body FROM store_records WHERE storage = ? AND name = ?",
                (store, name),
            )
        )
        return None if found is None else (found[0], found[1])

    async def delete(self, store: int, name: str) -> None:
        def work() -> None:
            self._database.change(
                "DELETE FROM store_records WHERE storage = ? AND name = ?", (store, name)
            )
            self._touch(store)

        await self._database.transaction(work)

    async def names(
        self, store: int, limit: int, *, after: str, prefix: str
    ) -> tuple[list[tuple[str, int]], bool]:
        """The first names with this prefix that come after ``after``, with the sizes of their
        records, and whether there are more.
        """
        rows = await self._database.patiently(
            lambda: [
                (name, size)
                for name, size in self._database.rows(
                    "SELECT name, length(body) FROM store_records WHERE storage = ? AND name > ?"
                    " AND name >= ? AND name < ? ORDER BY name LIMIT ?",
                    (store, after, prefix, prefix + _LAST, limit + 1),
                )
            ]
        )
        return rows[:limit], len(rows) > limit

    def _touch(self, store: int) -> bool:
        query = "UPDATE storages SET modified_at = ? WHERE key = ?"
        return self._database.change(query, (self._now(), store)) == 1
