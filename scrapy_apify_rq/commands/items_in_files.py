"""Reads saved items from the file of ``export``, where they are below the entries, one per line
(``backends.item_lines``). An item is imported once under its key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Final

from scrapy_apify_rq.backends.base import LooseItems
from scrapy_apify_rq.backends.item_lines import BEGIN
from scrapy_apify_rq.commands import output
from scrapy_apify_rq.commands.adding import Line
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.mending import strict_json, without_words
from scrapy_apify_rq.errors import RequestQueueError

_BATCH: Final = 100


class Rest:
    """The lines of a file: first those of entries, then those of items."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines

    def entries(self) -> Iterator[Line]:
        for where, text in self._lines:
            if text.startswith(BEGIN):
                self._lines = chain([(where, text)], self._lines)
                return
            yield where, text

    async def add_items(self, queue: Queue) -> None:
        """Raises RequestQueueError at a line that is none of an item."""
        store, count = queue.backend.items, 0
        batch: list[LooseItems] = []
        for where, text in self._lines:
            if store is None:
                raise RequestQueueError(
                    f"{where}: APIFY_TOKEN may not use the key-value store that says where the"
                    " queue's items are: give the token this permission"
                )
            batch.append(_parsed(where, text))
            count += 1
            if len(batch) == _BATCH:
                await store.save(batch)
                batch = []
        if store is not None and batch:
            await store.save(batch)
        if count:
            output.say(f"{output.counted(count, 'item')} read")


def _parsed(where: str, text: bytes) -> LooseItems:
    try:
        data = json.loads(strict_json(text))
        item, key = data["item"], data["#scrapy"]["key"]
        if not isinstance(item, dict):
            raise TypeError("it is not a JSON object")
        text_of_item = without_words(json.dumps(item, ensure_ascii=False))
        return LooseItems([text_of_item], str(key))
    except (KeyError, TypeError, ValueError) as error:
        raise RequestQueueError(f"{where} is not an item: {error!r}") from error
