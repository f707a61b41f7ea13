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
            db = self._database.connection
            if not self._touch(store):
                return False
            db.execute(
                "INSERT INTO store_records VALUES (?, ?, ?, ?) ON CONFLICT (storage, name)"
                " DO UPDATE SET content_type = excluded.content_type, body = excluded.body",
                (store, name, content_type, body),
            )
            return True

        return await self._database.transaction(work)

    async def get(self, store: int, name: str) -> tuple[str, bytes] | None:
        """The content type and the body."""
        found: tuple[str, bytes] | None = await self._database.patiently(
            lambda: self._database.connection.execute(
                "SELECT content_type, body FROM store_records WHERE storage = ? AND name = ?",
                (store, name),
            ).fetchone()
        )
        return found

    async def delete(self, store: int, name: str) -> None:
        def work() -> None:
            self._database.connection.execute(
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
            lambda: self._database.connection.execute(
                "SELECT name, length(body) FROM store_records WHERE storage = ? AND name > ?"
                " AND name >= ? AND name < ? ORDER BY name LIMIT ?",
                (store, after, prefix, prefix + _LAST, limit + 1),
            ).fetchall()
        )
        return rows[:limit], len(rows) > limit

    def _touch(self, store: int) -> bool:
        cursor = self._database.connection.execute(
            "UPDATE storages SET modified_at = ? WHERE key = ?", (self._now(), store)
        )
        return cursor.rowcount == 1
