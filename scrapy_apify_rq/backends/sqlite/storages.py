"""The datasets and key-value stores that the server keeps in the file: their names and dates.

What is in them is the business of ``dataset_items`` and ``store_records``.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.limits import ID_LENGTH

_CONTENTS: Final = ("dataset_items", "store_records")
_ALPHABET: Final = string.ascii_letters + string.digits


class StorageRecord(NamedTuple):
    """A row of the table. Dates are Unix times."""

    key: int
    id: str
    name: str | None
    title: str | None
    general_access: str | None
    created_at: float
    modified_at: float
    items: int
    clean_items: int


_RECORD: Final = f"SELECT {', '.join(StorageRecord._fields)} FROM storages"


class Storages:
    """All storages of one ``kind``, which is what the API's paths call it."""

    def __init__(self, kind: str, database: Database, now: Callable[[], float]) -> None:
        self.kind = kind
        self._database = database
        self._now = now

    def find(self, *, id: str | None = None, name: str | None = None) -> StorageRecord | None:
        return self._one("kind = ? AND (id = ? OR name = ?)", self.kind, id, name)

    def page(
        self, *, offset: int, limit: int, newest_first: bool, unnamed: bool
    ) -> tuple[list[StorageRecord], int]:
        """Return a page of storages in order of their creation, and how many there are."""
        db = self._database.connection
        which = "kind = ?" if unnamed else "kind = ? AND name IS NOT NULL"
        order = "DESC" if newest_first else "ASC"
        (total,) = db.execute(
            f"SELECT count(*) FROM storages WHERE {which}", (self.kind,)
        ).fetchone()
        rows = db.execute(
            f"{_RECORD} WHERE {which} ORDER BY key {order} LIMIT ? OFFSET ?",
            (self.kind, limit, offset),
        )
        return [StorageRecord(*row) for row in rows], total

    async def get_or_create(self, name: str | None) -> tuple[StorageRecord, bool]:
        """Return the storage of this name, and whether it is new. Without a name it always is."""

        def work() -> tuple[StorageRecord, bool]:
            found = self.find(name=name)
            return (found, False) if found else (self.create(name), True)

        return await self._database.transaction(work)

    def create(self, name: str | None) -> StorageRecord:
        """Must run in a transaction."""
        id = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))
        now = self._now()
        self._database.connection.execute(
            "INSERT INTO storages (kind, id, name, created_at, modified_at) VALUES (?, ?, ?, ?, ?)",
            (self.kind, id, name, now, now),
        )
        created = self.find(id=id)
        assert created is not None
        return created

    async def change(self, key: int, values: Mapping[str, str | None]) -> bool:
        """Set name, title or general_access. Return False if another storage has the name."""

        def work() -> bool:
            found = self.find(name=values.get("name"))
            if found is not None and found.key != key:
                return False
            for column, value in {**values, "modified_at": self._now()}.items():
                self._database.connection.execute(
                    f"UPDATE storages SET {column} = ? WHERE key = ?", (value, key)
                )
            return True

        return await self._database.transaction(work)

    async def drop(self, key: int) -> None:
        def work() -> None:
            db = self._database.connection
            for table in _CONTENTS:
                db.execute(f"DELETE FROM {table} WHERE storage = ?", (key,))
            db.execute("DELETE FROM storages WHERE key = ?", (key,))

        await self._database.transaction(work)

    def _one(self, condition: str, *values: object) -> StorageRecord | None:
        query = f"{_RECORD} WHERE {condition}"
        row = self._database.connection.execute(query, values).fetchone()
        return None if row is None else StorageRecord(*row)
