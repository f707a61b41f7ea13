"""Operations on queues as a whole: list, create, show, change, delete."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.schema import QueueRecord
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.server.answers import answer, date
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.errors import ApiError
from scrapy_apify_rq.server.storage_parameters import (
    USER_ID,
    ListParameters,
    new_name,
    page_of,
    read_changes,
)


class Queues:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, request: web.Request) -> web.Response:
        asked = ListParameters.read(request)
        records, total = await self._store.page(
            offset=asked.offset, limit=asked.limit, newest_first=asked.desc, unnamed=asked.unnamed
        )
        return answer(page_of([self._record(record) for record in records], total, asked))

    async def create(self, request: web.Request) -> web.Response:
        record, created = await self._store.get_or_create(new_name(request))
        data = self._with_url(record, request)
        if not created:
            return answer(data)
        return answer(data, 201, Location=data["consoleUrl"])

    async def get(self, call: Call) -> web.Response:
        record = await self._store.get(call.key)
        return answer(self._with_url(record, call.request))

    async def update(self, call: Call) -> web.Response:
        values = await read_changes(call.request)
        if not await self._store.change(call.key, values):
            raise ApiError(
                400, "name-not-unique", f'There is a request queue named "{values["name"]}" already'
            )
        return await self.get(call)

    async def delete(self, call: Call) -> web.Response:
        await self._store.drop(call.key)
        return web.Response(status=204)

    def _with_url(self, record: QueueRecord, request: web.Request) -> dict[str, Any]:
        url = f"{request.scheme}://{request.host}/v2/request-queues/{record.id}"
        return {**self._record(record), "consoleUrl": url}

    def _record(self, record: QueueRecord) -> dict[str, Any]:
        data = {
            "id": record.id,
            "name": record.name,
            "title": record.title,
            "userId": USER_ID,
            "createdAt": date(record.created_at),
            "modifiedAt": date(record.modified_at),
            "accessedAt": date(record.accessed_at),
            "totalRequestCount": record.total,
            "handledRequestCount": record.handled,
            "pendingRequestCount": record.total - record.handled,
            "hadMultipleClients": bool(record.had_multiple_clients),
            "generalAccess": record.general_access,
            # Choice: no storageBytes, since each change would have to read the old entry first.
            "stats": {
                "readCount": record.reads,
                "writeCount": record.writes,
                "deleteCount": record.deletes,
                "headItemReadCount": record.head_items_read,
            },
        }
        return {name: value for name, value in data.items() if value is not None or name == "name"}
