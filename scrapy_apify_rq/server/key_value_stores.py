"""Operations on the records of a key-value store. The operations on stores: ``storages``.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from aiohttp import hdrs, web

from scrapy_apify_rq.backends.sqlite.storages import StorageRecord
from scrapy_apify_rq.backends.sqlite.store_records import StoreRecords
from scrapy_apify_rq.server.answers import answer
from scrapy_apify_rq.server.bodies import read_body
from scrapy_apify_rq.server.errors import ApiError, invalid, not_found
from scrapy_apify_rq.server.parameters import Count, Parameters, up_to
from scrapy_apify_rq.server.storages import StorageCalls

_KEY: Final = re.compile(r"[a-zA-Z0-9!\-_.'()]{1,256}")
# Other bytes could not be sent back, and no real type is longer.
_CONTENT_TYPE: Final = re.compile(r"[\x20-\x7e]{1,256}")


class KeysParameters(Parameters):
    limit: Annotated[Count, up_to(1000)] = 1000
    exclusive_start_key: str | None = None
    prefix: str = ""
    # Refused rather than ignored, which would give other keys than asked for.
    collection: Literal[""] = ""


class RecordParameters(Parameters):
    attachment: bool = False


class KeyValueStores:
    """Choice: a record may be as large as any other body. The platform takes larger ones."""

    def __init__(self, storages: StorageCalls, records: StoreRecords) -> None:
        self._storages = storages
        self._records = records

    async def keys(self, request: web.Request) -> web.Response:
        store = await self._storages.find(request)
        asked = KeysParameters.read(request)
        names, more = await self._records.names(
            store.key, asked.limit, after=asked.exclusive_start_key or "", prefix=asked.prefix
        )
        url = f"{request.scheme}://{request.host}/v2/key-value-stores/{store.id}/records"
        data = {
            "items": [
                {"key": name, "size": size, "recordPublicUrl": f"{url}/{name}"}
                for name, size in names
            ],
            "count": len(names),
            "limit": asked.limit,
            "exclusiveStartKey": asked.exclusive_start_key,
            "isTruncated": more,
            # Always there: the client for JavaScript asks for more until it is null.
            "nextExclusiveStartKey": names[-1][0] if more else None,
        }
        return answer(data)

    async def put(self, request: web.Request) -> web.Response:
        store = await self._storages.find(request)
        key = request.match_info["key"]
        if not _KEY.fullmatch(key):
            raise invalid(
                "the key of a record has 1 to 256 of the characters a-z, A-Z, 0-9 and !-_.'()"
            )
        kind = request.headers.get(hdrs.CONTENT_TYPE) or "application/octet-stream"
        if not _CONTENT_TYPE.fullmatch(kind):
            raise ApiError(
                400,
                "invalid-content-type-header",
                "The header Content-Type must have at most 256 characters, all of them ASCII",
            )
        body = await read_body(request)
        if not await self._records.put(store.key, key, kind, body):
            raise self._storages.gone()
        return web.json_response({}, status=201)

    async def get(self, request: web.Request) -> web.Response:
        """Also answers HEAD, for which aiohttp leaves the body out."""
        store = await self._storages.find(request)
        key = request.match_info["key"]
        record = await self._records.get(store.key, key)
        if record is None:
            raise not_found("Record")
        kind, body = record
        # A page that somebody stored must not run as one of this server's.
        headers = {hdrs.CONTENT_TYPE: kind, "Content-Security-Policy": "sandbox"}
        if RecordParameters.read(request).attachment:
            headers[hdrs.CONTENT_DISPOSITION] = f'attachment; filename="{key}"'
        return web.Response(body=body, headers=headers)

    async def delete(self, request: web.Request) -> web.Response:
        """Choice: deleting an unknown record is no error."""
        store = await self._storages.find(request)
        await self._records.delete(store.key, request.match_info["key"])
        return web.Response(status=204)


def store_fields(record: StorageRecord, url: str) -> dict[str, Any]:
    """What the object of a store has beside what all storages have."""
    return {"keysPublicUrl": f"{url}/keys", "recordsPublicUrl": f"{url}/records"}
