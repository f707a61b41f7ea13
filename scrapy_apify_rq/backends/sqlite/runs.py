"""The Actor runs that callers of the server believe to be in: a message and three storages each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from scrapy_apify_rq.backends.sqlite.catalog import Catalog
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.backends.sqlite.storages import Storages


class RunRecord(NamedTuple):
    """A row of the table. The date is a Unix time; storages are named by their ids."""

    id: str
    started_at: float
    dataset: str
    key_value_store: str
    request_queue: str
    message: str | None
    is_terminal: int


_RECORD: Final = f"SELECT {', '.join(RunRecord._fields)} FROM runs WHERE id = ?"


class Runs:
    def __init__(
        self,
        database: Database,
        now: Callable[[], float],
        *,
        queues: Catalog,
        datasets: Storages,
        key_value_stores: Storages,
    ) -> None:
        self._database = database
        self._now = now
        self._queues = queues
        self._datasets = datasets
        self._key_value_stores = key_value_stores

    def find(self, id: str) -> RunRecord | None:
        row = self._database.row(_RECORD, (id,))
        return None if row is None else RunRecord(*row)

    async def get_or_create(self, id: str) -> RunRecord:
        """A new run gets new storages without names."""

        def work() -> RunRecord:
            if found := self.find(id):
                return found
            new = RunRecord(
                id,
                self._now(),
                self._datasets.create(None).id,
                self._key_value_stores.create(None).id,
                self._queues.get(self._queues.create(None)).id,
                None,
                False,
            )
            values = ", ".join("?" * len(new))
            self._database.change(f"INSERT INTO runs VALUES ({values})", new)
            return new

        found = await self._database.patiently(lambda: self.find(id))
        return found if found is not None else await self._database.transaction(work)

    async def set_message(self, id: str, message: str | None, *, is_terminal: bool) -> None:
        await self._database.transaction(
            lambda: self._database.change(
                "UPDATE runs SET message = ?, is_terminal = ? WHERE id = ?",
                (message, is_terminal, id),
            )
        )
