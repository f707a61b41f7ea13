"""Operations on datasets and key-value stores as a whole: list, create, show, change, delete.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.storages import StorageRecord, Storages
from scrapy_apify_rq.server.answers import answer, date
from scrapy_apify_rq.server.errors import ApiError, not_found
from scrapy_apify_rq.server.storage_parameters import (
    USER_ID,
    ListParameters,
    new_name,
    page_of,
    read_changes,
)


class StorageCalls:
    """``noun`` is what messages call a storage of this kind, and ``more`` gives the part of its
    object that other kinds do not have, from its record and its URL.
    """

    def __init__(
        self,
        storages: Storages,
        noun: str,
        more: Callable[[StorageRecord, str], dict[str, Any]],
    ) -> None:
        self._storages = storages
        self._noun = noun
        self._more = more

    async def page(self, request: web.Request) -> web.Response:
        asked = ListParameters.read(request)
        records, total = await self._storages.page(
            offset=asked.offset, limit=asked.limit, newest_first=asked.desc, unnamed=asked.unnamed
        )
        return answer(page_of([self._object(one, request) for one in records], total, asked))

    async def create(self, request: web.Request) -> web.Response:
        record, created = await self._storages.get_or_create(new_name(request))
        return answer(self._object(record, request), 201 if created else 200)

    async def get(self, request: web.Request) -> web.Response:
        return answer(self._object(await self.find(request), request))

    async def update(self, request: web.Request) -> web.Response:
        record = await self.find(request)
        values = await read_changes(request)
        if not await self._storages.change(record.key, values):
            raise ApiError(
                400,
                "name-not-unique",
                f'There is a {self._noun.lower()} named "{values["name"]}" already',
            )
        changed = await self._storages.find(id=record.id)
        if changed is None:
            raise self.gone()
        return answer(self._object(changed, request))

    async def delete(self, request: web.Request) -> web.Response:
        await self._storages.drop((await self.find(request)).key)
        return web.Response(status=204)

    async def find(self, request: web.Request) -> StorageRecord:
        """The storage that the path names by id, or by the name after a user's. Choice: any user
        name, since there is one user here.
        """
        id = request.match_info["storage"]
        _, tilde, name = id.partition("~")
        record = await (self._storages.find(name=name) if tilde else self._storages.find(id=id))
        if record is None:
            raise self.gone()
        return record

    def gone(self) -> ApiError:
        return not_found(self._noun)

    def _object(self, record: StorageRecord, request: web.Request) -> dict[str, Any]:
        url = f"{request.scheme}://{request.host}/v2/{self._storages.kind}/{record.id}"
        data = {
            "id": record.id,
            "name": record.name,
            "title": record.title,
            "userId": USER_ID,
            "createdAt": date(record.created_at),
            "modifiedAt": date(record.modified_at),
            # Choice: only changes count, so that no read has to write.
            "accessedAt": date(record.modified_at),
            "generalAccess": record.general_access,
            "consoleUrl": url,
            "stats": {},  # apify-cli looks into it
            **self._more(record, url),
        }
        return {name: value for name, value in data.items() if value is not None or name == "name"}
