"""Operations on the requests of a queue: list, add, show, update, delete.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.server.answers import answer, full, raw_answer, registration
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.faults import Counts, Misbehaviour, in_states
from scrapy_apify_rq.server.parameters import (
    ApiError,
    named_id,
    not_found,
    read_batch,
    read_entry,
    read_json,
    read_new_entry,
    write_cursor,
)


class Requests:
    def __init__(self, store: Store, misbehaviour: Misbehaviour) -> None:
        self._store = store
        self._misbehaviour = misbehaviour

    async def page(self, call: Call) -> web.Response:
        query, states = call.query, call.query.states()
        # Choice: the default is the maximum. The platform's default is unknown.
        limit, after = query.limit(10_000, 10_000), query.start()
        hidden = self._misbehaviour.hidden(call.key) if states else {}
        rows = call.queue.requests(limit + 1, after=after, states=states, without=hidden)
        if hidden:
            back = in_states(hidden.values(), states, call.now)
            rows += [row for row in back if row.id > after]
            rows.sort(key=lambda row: row.id)
        page = rows[:limit]
        self._store.count(call.key, reads=len(page))
        rest: dict[str, Any] = {"limit": limit}
        for name in ("cursor", "exclusiveStartId"):
            if value := query.text(name):
                rest[name] = value
        if len(rows) > limit:
            rest["nextCursor"] = write_cursor(page[-1].id)
        items = ",".join(full(row, call.now) for row in page)
        return raw_answer(f'{{"items":[{items}],{json.dumps(rest)[1:]}')

    async def add(self, call: Call) -> web.Response:
        forefront = call.query.flag("forefront")
        entry = read_new_entry(await read_json(call.request, dict))
        (added,) = await self._add(call, [entry], forefront)
        return answer(registration(added), 201)

    async def add_batch(self, call: Call) -> web.Response:
        forefront = call.query.flag("forefront")
        raw = await read_batch(call.request)
        entries = [read_new_entry(item, f"requests.{n}") for n, item in enumerate(raw)]
        if len({entry.id for entry in entries}) < len(entries):
            raise ApiError(
                400,
                "request-queue-duplicate-requests",
                "The batch has several requests with one uniqueKey",
            )
        spared = [self._misbehaviour.spares("POST requests/batch") for _ in entries]
        stored = [entry for entry, spare in zip(entries, spared, strict=True) if spare]
        left = [entry for entry, spare in zip(entries, spared, strict=True) if not spare]
        added = await self._add(call, stored, forefront)
        return answer(
            {
                "processedRequests": [
                    {"uniqueKey": entry.unique_key, **registration(one)}
                    for entry, one in zip(stored, added, strict=True)
                ],
                "unprocessedRequests": [
                    {"uniqueKey": entry.unique_key, "url": entry.url, "method": entry.method}
                    for entry in left
                ],
            },
            201,
        )

    async def _add(self, call: Call, entries: Sequence[Entry], forefront: bool) -> list[Added]:
        """Choice: with forefront the last one ends up first. An existing entry keeps its place."""
        self._before_change(call, [entry.id for entry in entries])
        return await call.queue.add(entries, forefront=forefront) if entries else []

    async def delete_batch(self, call: Call) -> web.Response:
        raw = await read_batch(call.request)
        ids = [named_id(item, n) for n, item in enumerate(raw)]
        self._before_change(call, ids)
        await call.queue.delete(ids)
        # Choice: an unknown request counts as processed.
        processed = [
            {name: item[name] for name in ("id", "uniqueKey") if item.get(name)} for item in raw
        ]
        return answer({"processedRequests": processed, "unprocessedRequests": []})

    async def get(self, call: Call) -> web.Response:
        row = call.queue.row(call.id)
        if row is None:
            raise not_found("Request")
        self._store.count(call.key, reads=1)
        return raw_answer(full(row, call.now))

    async def update(self, call: Call) -> web.Response:
        """Choice: any client may update, whoever holds the lock. The lock ends."""
        forefront = call.query.flag("forefront")
        entry = read_entry(await read_json(call.request, dict))
        if entry.id != call.id:
            raise ApiError(400, "request-id-invalid", "Request ID does not correspond to uniqueKey")
        self._before_change(call, [entry.id])
        return answer(registration(await call.queue.replace(entry, forefront=forefront)))

    async def delete(self, call: Call) -> web.Response:
        """Choice: deleting an unknown request, or one that another client locked, is no error."""
        self._before_change(call, [call.id])
        await call.queue.delete([call.id])
        return web.Response(status=204)

    def _before_change(self, call: Call, ids: Sequence[str]) -> None:
        if self._misbehaviour.lags:
            before = {id: call.queue.row(id) for id in ids}
            record = self._store.find(id=call.record.id) or call.record
            self._misbehaviour.note(call.key, before, Counts(record.total, record.handled))
