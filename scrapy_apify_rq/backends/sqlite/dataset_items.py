"""The items of a dataset: JSON texts, numbered from 1 as they come.

A row holds up to 64 KB of them, so a push of a hundred thousand small items writes few rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final

from scrapy_apify_rq.backends.cutting import cut
from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.errors import BackendError

# Characters of a row, unless one item alone has more.
_ROW_SIZE: Final = 64 * 1024
# The row that has an item of this number.
_ROW: Final = (
    "SELECT last, json FROM dataset_items WHERE storage = ? AND last >= ? ORDER BY last LIMIT 1"
)


class DatasetItems:
    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    async def push(self, dataset: int, texts: Sequence[str], clean: int) -> bool:
        """Append items, ``clean`` of which are not empty without their hidden fields. Return False
        if the dataset was deleted.
        """

        def work() -> bool:
            row = self._database.row(
                "UPDATE storages SET items = items + ?, clean_items = clean_items + ?,"
                " modified_at = ? WHERE key = ? RETURNING items",
                (len(texts), clean, self._now(), dataset),
            )
            if row is None:
                return False
            last = row[0] - len(texts)
            for lines in cut(texts, _ROW_SIZE):
                last += len(lines)
                values = (dataset, last, "\n".join(lines))
                self._database.change("INSERT INTO dataset_items VALUES (?, ?, ?)", values)
            return True

        return await self._database.transaction(work)

    async def read(
        self, dataset: int, after: int, up_to: int, *, newest_first: bool
    ) -> AsyncIterator[list[str]]:
        """Yield the items numbered ``after`` + 1 to ``up_to``, those of a row at a time.

        Raises BackendError if the dataset is deleted meanwhile.
        """
        while after < up_to:
            number = up_to if newest_first else after + 1
            find = partial(self._database.row, _ROW, (dataset, number))
            row = await self._database.patiently(find)
            if row is None:
                raise BackendError("The dataset was deleted while it was read", "apify_rq_gone")
            last, json = row
            lines = json.split("\n")
            before = last - len(lines)
            found = lines[max(after - before, 0) : up_to - before]
            if newest_first:
                found.reverse()
                up_to = before
            else:
                after = last
            yield found
