"""Operations on queues as a whole: list, create, show, change, delete."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.catalog import QueueRecord
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.server.answers import answer, date
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.parameters import ApiError, Query, check_name, invalid, read_json

_ACCESSES: Final = (
    "ANYONE_WITH_ID_CAN_READ",
    "ANYONE_WITH_NAME_CAN_READ",
    "FOLLOW_USER_SETTING",
    "RESTRICTED",
)
_USER_ID: Final = "embeddedQueueUser"  # there is only one user
_USERNAME: Final = "local"


class Queues:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, request: web.Request) -> web.Response:
        query = Query(request)
        limit, offset = query.limit(1000, 1000), query.offset()
        newest_first, unnamed = query.flag("desc"), query.flag("unnamed")
        records, total = await self._store.page(
            offset=offset, limit=limit, newest_first=newest_first, unnamed=unnamed
        )
        if query.one_of("ownership", ("ownedByMe", "sharedWithMe")) == "sharedWithMe":
            records, total = [], 0
        # Choice: unnamed queues have an empty name, since the description requires a text here.
        items = [
            {**self._record(record), "name": record.name or "", "username": _USERNAME}
            for record in records
        ]
        return answer(
            {
                "total": total,
                "offset": offset,
                "limit": limit,
                "desc": newest_first,
                "count": len(items),
                "unnamed": unnamed,
                "items": items,
            }
        )

    async def create(self, request: web.Request) -> web.Response:
        name = Query(request).text("name")
        if name is not None:
            check_name(name)
        record, created = await self._store.get_or_create(name)
        data = self._with_url(record, request)
        if not created:
            return answer(data)
        return answer(data, 201, Location=data["consoleUrl"])

    async def get(self, call: Call) -> web.Response:
        record = await self._store.get(call.key)
        return answer(self._with_url(record, call.request))

    async def update(self, call: Call) -> web.Response:
        raw = await read_json(call.request, dict)
        columns = {"name": "name", "title": "title", "generalAccess": "general_access"}
        values = {columns[name]: raw[name] for name in raw.keys() & columns.keys()}
        for name, value in values.items():
            if not isinstance(value, str | None):
                raise invalid(f"{name} must be a text")
        if values.get("name") is not None:
            check_name(values["name"])
        if values.get("general_access") not in (None, *_ACCESSES):
            raise invalid(f"generalAccess must be one of {', '.join(_ACCESSES)}")
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
            "userId": _USER_ID,
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
