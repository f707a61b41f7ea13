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
    """All storages of one ``kind``, which is what the API's paths call it. ``sweep_soon`` is called
    when what was in one has to be deleted.
    """

    def __init__(
        self,
        kind: str,
        database: Database,
        now: Callable[[], float],
        sweep_soon: Callable[[], None],
    ) -> None:
        self.kind = kind
        self._database = database
        self._now = now
        self._sweep_soon = sweep_soon

    async def find(self, *, id: str | None = None, name: str | None = None) -> StorageRecord | None:
        return await self._database.patiently(lambda: self._find(id, name))

    async def page(
        self, *, offset: int, limit: int, newest_first: bool, unnamed: bool
    ) -> tuple[list[StorageRecord], int]:
        """Return a page of storages in order of their creation, and how many there are."""
        which = "kind = ?" if unnamed else "kind = ? AND name IS NOT NULL"
        order = "DESC" if newest_first else "ASC"
        count = f"SELECT count(*) FROM storages WHERE {which}"
        query = f"{_RECORD} WHERE {which} ORDER BY key {order} LIMIT ? OFFSET ?"

        def read() -> tuple[list[StorageRecord], int]:
            ((total,),) = self._database.rows(count, (self.kind,))
            rows = self._database.rows(query, (self.kind, limit, offset))
            return [StorageRecord(*row) for row in rows], total

        return await self._database.patiently(read)

    async def get_or_create(self, name: str | None) -> tuple[StorageRecord, bool]:
        """Return the storage of this name, and whether it is new. Without a name it always is."""

        def work() -> tuple[StorageRecord, bool]:
            found = self._find(None, name)
            return (found, False) if found else (self.create(name), True)

        return await self._database.transaction(work)

    def create(self, name: str | None) -> StorageRecord:
        """Must run in a transaction."""
        id = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))
        now = self._now()
        self._database.change(
            "INSERT INTO storages (kind, id, name, created_at, modified_at) VALUES (?, ?, ?, ?, ?)",
            (self.kind, id, name, now, now),
        )
        created = self._find(id, None)
        assert created is not None
        return created

    async def change(self, key: int, values: Mapping[str, str | None]) -> bool:
        """Set name, title or general_access. Return False if another storage has the name."""

        def work() -> bool:
            found = self._find(None, values.get("name"))
            if found is not None and found.key != key:
                return False
            for column, value in {**values, "modified_at": self._now()}.items():
                query = f"UPDATE storages SET {column} = ? WHERE key = ?"
                self._database.change(query, (value, key))
            return True

        return await self._database.transaction(work)

    async def drop(self, key: int) -> None:
        query = "DELETE FROM storages WHERE key = ?"
        await self._database.transaction(lambda: self._database.change(query, (key,)))
        self._sweep_soon()

    def _find(self, id: str | None, name: str | None) -> StorageRecord | None:
        query = f"{_RECORD} WHERE kind = ? AND (id = ? OR name = ?)"
        row = self._database.row(query, (self.kind, id, name))
        return None if row is None else StorageRecord(*row)
