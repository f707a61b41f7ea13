"""Operations on the requests of a queue: list, add, show, update, delete.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import BeforeValidator, Field

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.server.answers import answer, full, raw_answer, registration
from scrapy_apify_rq.server.bodies import (
    named_id,
    read_batch,
    read_entry,
    read_json,
    read_new_entry,
)
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.errors import ApiError, not_found
from scrapy_apify_rq.server.parameters import (
    Count,
    Cursor,
    Forefront,
    Parameters,
    up_to,
    write_cursor,
)

# Bytes of the entries in a page: 10,000 of them can have 90 GB. A longer page is cut, and goes on
# at its nextCursor.
_PAGE_BYTES: Final = 8 * 1024 * 1024
# The event loop gets a turn after so many of them were shown.
_BYTES_PER_TURN: Final = 256 * 1024


class PageParameters(Parameters):
    # Choice: the default is the maximum. The platform's default is unknown.
    limit: Annotated[Count, up_to(10_000)] = 10_000
    states: Annotated[
        frozenset[Literal["locked", "pending"]],
        BeforeValidator(lambda text: frozenset(filter(None, text.split(",")))),
    ] = Field(default=frozenset(), alias="filter")
    cursor: Cursor | None = None
    exclusive_start_id: str | None = None


class Requests:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, call: Call) -> web.Response:
        asked = PageParameters.read(call.request)
        if asked.states and asked.exclusive_start_id is not None:
            raise ApiError(
                400, "invalid-parameter", '"exclusiveStartId" cannot be used with "filter"'
            )
        after = asked.cursor if asked.exclusive_start_id is None else asked.exclusive_start_id
        if after is not None and isinstance(after, int) != bool(asked.states):
            raise ApiError(400, "invalid-parameter", '"cursor" is of a list with another filter')
        page, more = await call.queue.page(
            asked.limit, after=after, states=asked.states, size=_PAGE_BYTES
        )
        self._store.count(call.key, reads=len(page))
        rest: dict[str, Any] = {"limit": asked.limit}
        for name in ("cursor", "exclusiveStartId"):
            if value := call.request.query.get(name):
                rest[name] = value
        if more:
            rest["nextCursor"] = write_cursor(page[-1].position if asked.states else page[-1].id)
        items, size = [], 0
        for row in page:
            items.append(full(row))
            size += len(row.json)
            if size > _BYTES_PER_TURN:
                size = 0
                await asyncio.sleep(0)
        return raw_answer(f'{{"items":[{",".join(items)}],{json.dumps(rest)[1:]}')

    async def add(self, call: Call) -> web.Response:
        """Choice: with forefront the last one ends up first. An existing entry keeps its place."""
        forefront = Forefront.read(call.request).forefront
        entry = read_new_entry(await read_json(call.request, dict))
        (added,) = await call.queue.add([entry], forefront=forefront)
        return answer(registration(added), 201)

    async def add_batch(self, call: Call) -> web.Response:
        forefront = Forefront.read(call.request).forefront
        raw = await read_batch(call.request)
        entries = [read_new_entry(item, f"requests.{n}") for n, item in enumerate(raw)]
        if len({entry.id for entry in entries}) < len(entries):
            raise ApiError(
                400,
                "request-queue-duplicate-requests",
                "The batch has several requests with one uniqueKey",
            )
        added = await call.queue.add(entries, forefront=forefront)
        # Choice: all are processed. On the platform some may not be.
        return answer(
            {
                "processedRequests": [
                    {"uniqueKey": entry.unique_key, **registration(one).model_dump(by_alias=True)}
                    for entry, one in zip(entries, added, strict=True)
                ],
                "unprocessedRequests": [],
            },
            201,
        )

    async def delete_batch(self, call: Call) -> web.Response:
        raw = await read_batch(call.request)
        ids = [named_id(item, n) for n, item in enumerate(raw)]
        await call.queue.delete(ids)
        # Choice: an unknown request counts as processed.
        processed = [
            {name: item[name] for name in ("id", "uniqueKey") if item.get(name)} for item in raw
        ]
        return answer({"processedRequests": processed, "unprocessedRequests": []})

    async def get(self, call: Call) -> web.Response:
        row = await call.queue.row(call.id)
        if row is None:
            raise not_found("Request")
        self._store.count(call.key, reads=1)
        return raw_answer(full(row))

    async def update(self, call: Call) -> web.Response:
        """Choice: any client may update, whoever holds the lock. The lock ends."""
        forefront = Forefront.read(call.request).forefront
        entry = read_entry(await read_json(call.request, dict))
        if entry.id != call.id:
            raise ApiError(400, "request-id-invalid", "Request ID does not correspond to uniqueKey")
        return answer(registration(await call.queue.replace(entry, forefront=forefront)))

    async def delete(self, call: Call) -> web.Response:
        """Choice: deleting an unknown request, or one that another client locked, is no error."""
        await call.queue.delete([call.id])
        return web.Response(status=204)
