"""Operations on the items of a dataset: push and list. The operations on datasets: ``storages``.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, Final, Literal

from aiohttp import hdrs, web
from pydantic import BeforeValidator, Field

from scrapy_apify_rq.backends.sqlite.dataset_items import DatasetItems
from scrapy_apify_rq.backends.sqlite.storages import StorageRecord
from scrapy_apify_rq.server.answers import body_of
from scrapy_apify_rq.server.bodies import read_items
from scrapy_apify_rq.server.errors import invalid
from scrapy_apify_rq.server.parameters import Count, Parameters, up_to
from scrapy_apify_rq.server.storages import StorageCalls

# The limit that an answer shows if the caller has set none.
_NO_LIMIT: Final = 999_999_999_999
# The event loop gets a turn after so many characters of items were read or written. Each item takes
# the time of a few more.
_TURN: Final = 64 * 1024
_ITEM_COST: Final = 200
_KINDS: Final = {"json": "application/json", "jsonl": "application/x-ndjson"}
# How a body begins, what is between two items, and how it ends.
_FRAMES: Final = {"json": ("[", ",\n", "]"), "jsonl": ("", "\n", "\n")}
# One for all: json.dumps() would make one for each item.
_text: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda text: tuple(filter(None, text.split(","))))
]


class ItemParameters(Parameters):
    """``fields`` and so on are names of an item's own fields, not of those within its values."""

    offset: Count = 0
    limit: Annotated[Count, up_to(_NO_LIMIT)] = _NO_LIMIT
    desc: bool = False
    clean: bool = False
    skip_hidden: bool = False
    skip_empty: bool = False
    fields: Names = ()
    omit: Names = ()
    # Choice: so many, since the items of each are unwound by the next.
    unwind: Annotated[Names, Field(max_length=10)] = ()
    format: Literal["json", "jsonl"] = "json"
    # Refused rather than ignored, which would give other items than asked for.
    flatten: Literal[""] = ""
    view: Literal[""] = ""

    @property
    def changes_items(self) -> bool:
        return bool(
            self.clean
            or self.skip_hidden
            or self.skip_empty
            or self.fields
            or self.omit
            or self.unwind
        )


class Datasets:
    def __init__(self, storages: StorageCalls, items: DatasetItems) -> None:
        self._storages = storages
        self._items = items

    async def push(self, request: web.Request) -> web.Response:
        dataset = await self._storages.find(request)
        texts: list[str] = []
        clean = size = 0
        async for item in read_items(request):
            try:
                texts.append(_text(item))
            except ValueError:  # such as 1e400, of which the reader of JSON makes an infinity
                raise invalid(f"items.{len(texts)} has a number that is too large") from None
            clean += any(not _is_hidden(name) for name in item)
            size += len(texts[-1]) + _ITEM_COST
            if size > _TURN:
                size = 0
                await asyncio.sleep(0)
        if not await self._items.push(dataset.key, texts, clean):
            raise self._storages.gone()
        return web.json_response({}, status=201)

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Answers piece by piece: a dataset may be larger than the memory."""
        dataset = await self._storages.find(request)
        asked = ItemParameters.read(request)
        total = dataset.items
        # Choice: items count from the end with "desc", as they do on the platform.
        count = max(min(asked.limit, total - asked.offset), 0)
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: f"{_KINDS[asked.format]}; charset=utf-8",
                "X-Apify-Pagination-Total": str(total),
                "X-Apify-Pagination-Offset": str(asked.offset),
                "X-Apify-Pagination-Limit": str(asked.limit),
                # Of items read, including those that are then skipped: the clients go on from here.
                "X-Apify-Pagination-Count": str(count),
                "X-Apify-Pagination-Desc": str(asked.desc).lower(),
            }
        )
        after = total - asked.offset - count if asked.desc else asked.offset
        rows = self._items.read(dataset.key, after, after + count, newest_first=asked.desc)
        async with body_of(response, request):
            async for piece in _pieces(asked, rows):
                if piece:
                    await response.write(piece)
                await asyncio.sleep(0)
        return response


def dataset_fields(record: StorageRecord, url: str) -> dict[str, Any]:
    """What the object of a dataset has beside what all storages have."""
    return {
        "itemCount": record.items,
        "cleanItemCount": record.clean_items,
        "itemsPublicUrl": f"{url}/items",
    }


async def _pieces(asked: ItemParameters, rows: AsyncIterator[list[str]]) -> AsyncIterator[bytes]:
    """The body of the answer. Pieces may be empty: there is one after each turn of work."""
    begin, between, end = _FRAMES[asked.format]
    piece, size, separator = [begin], 0, ""
    async for texts in rows:
        for text in texts:
            for shown in chain(_shown(text, asked), [None]):
                if shown is not None:
                    piece += (separator, shown)
                    separator = between
                size += len(text if shown is None else shown) + _ITEM_COST
                if size > _TURN:
                    yield "".join(piece).encode()
                    piece, size = [], 0
    if begin or separator:  # no item is no line
        piece.append(end)
    yield "".join(piece).encode()


def _shown(text: str, asked: ItemParameters) -> Iterator[str]:
    """What the caller gets of an item. Choice: it is unwound first."""
    if not asked.changes_items:
        yield text
        return
    for item in _unwound(json.loads(text), asked.unwind):
        if asked.fields:
            item = {name: item[name] for name in asked.fields if name in item}
        skips_hidden = asked.clean or asked.skip_hidden
        item = {
            name: value
            for name, value in item.items()
            if name not in asked.omit and not (skips_hidden and _is_hidden(name))
        }
        if item or not (asked.clean or asked.skip_empty):
            yield _text(item)


def _unwound(item: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The items that an item becomes, one for each element of the fields with these names.

    Choice: an element that is no object takes the place of the field.
    """
    if not names:
        yield item
        return
    name, *more = names
    inner = item.get(name)
    if not isinstance(inner, list | dict):
        yield from _unwound(item, more)
        return
    rest = {other: value for other, value in item.items() if other != name}
    for element in inner if isinstance(inner, list) else [inner]:
        merged = element if isinstance(element, dict) else {name: element}
        yield from _unwound({**rest, **merged}, more)


def _is_hidden(name: str) -> bool:
    return name.startswith("#")
