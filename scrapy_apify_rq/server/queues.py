"""Operations on queues as a whole: list, create, show, change, delete."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.schema import QueueRecord
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.limits import NAME_LENGTH, is_name
from scrapy_apify_rq.server.answers import answer, date
from scrapy_apify_rq.server.bodies import read_json
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.errors import ApiError, invalid
from scrapy_apify_rq.server.parameters import Count, Parameters, up_to

_ACCESSES: Final = (
    "ANYONE_WITH_ID_CAN_READ",
    "ANYONE_WITH_NAME_CAN_READ",
    "FOLLOW_USER_SETTING",
    "RESTRICTED",
)
_USER_ID: Final = "embeddedQueueUser"  # there is only one user
_USERNAME: Final = "local"


class ListParameters(Parameters):
    limit: Annotated[Count, up_to(1000)] = 1000
    offset: Count = 0
    desc: bool = False
    unnamed: bool = False
    ownership: Literal["ownedByMe", "sharedWithMe"] = "ownedByMe"


class CreateParameters(Parameters):
    name: str | None = None


class Queues:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, request: web.Request) -> web.Response:
        asked = ListParameters.read(request)
        records, total = await self._store.page(
            offset=asked.offset, limit=asked.limit, newest_first=asked.desc, unnamed=asked.unnamed
        )
        if asked.ownership == "sharedWithMe":
            records, total = [], 0
        # Choice: unnamed queues have an empty name, since the description requires a text here.
        items = [
            {**self._record(record), "name": record.name or "", "username": _USERNAME}
            for record in records
        ]
        return answer(
            {
                "total": total,
                "offset": asked.offset,
                "limit": asked.limit,
                "desc": asked.desc,
                "count": len(items),
                "unnamed": asked.unnamed,
                "items": items,
            }
        )

    async def create(self, request: web.Request) -> web.Response:
        name = CreateParameters.read(request).name
        if name is not None:
            _check_name(name)
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
            _check_name(values["name"])
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


def _check_name(name: str) -> None:
    if len(name) > NAME_LENGTH:
        raise invalid(f"Name must have at most {NAME_LENGTH} characters")
    if not is_name(name):
        raise invalid(
            "Name can only contain letters 'a' through 'z', the digits '0' through '9', and the"
            " hyphen ('-') but only in the middle of the string (e.g. 'my-value-1')"
        )
