"""Operations on the head of a queue and on the locks of its requests.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import math
from typing import NoReturn

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.limits import MAX_BATCH
from scrapy_apify_rq.server.answers import answer, date, head_item
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.parameters import ApiError, not_found


class Locks:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def head(self, call: Call) -> web.Response:
        # Choice: 100 by default, as in the emulators. The platform's default is unknown.
        limit = call.query.limit(100, 1000)
        # Choice: sources conflict about whether locked entries are listed. Here they are.
        items = [head_item(*text) async for text in call.queue.head(limit)]
        self._store.count(call.key, head_items_read=len(items))
        return answer(
            {
                "limit": limit,
                "queueModifiedAt": date(call.record.modified_at),
                "hadMultipleClients": call.several_clients,
                "items": items,
            }
        )

    async def lock_head(self, call: Call) -> web.Response:
        secs, limit = call.query.lock_secs(), call.query.limit(MAX_BATCH, MAX_BATCH)
        locked = await call.queue.lock(limit, secs)
        expires_at = date(locked.expires_at)
        items = [head_item(*text) async for text in call.queue.texts(locked.ids)]
        data = {
            "limit": limit,
            "queueModifiedAt": date(call.now if items else call.record.modified_at),
            "queueHasLockedRequests": locked.any_locked,
            "hadMultipleClients": call.several_clients,
            "lockSecs": math.ceil(secs),  # the description allows whole seconds only
            "items": [{**item, "lockExpiresAt": expires_at} for item in items],
        }
        if client_key := call.query.client_key():
            data["clientKey"] = client_key
        return answer(data, 201)

    async def prolong(self, call: Call) -> web.Response:
        """Choice: the new time starts now. The caller must still hold the lock."""
        secs, forefront = call.query.lock_secs(), call.query.flag("forefront")
        until = await call.queue.prolong_lock(call.id, secs, forefront=forefront)
        if until is None:
            _raise_not_held(call)
        return answer({"lockExpiresAt": date(until)})

    async def end(self, call: Call) -> web.Response:
        if not await call.queue.end_lock(call.id, forefront=call.query.flag("forefront")):
            _raise_not_held(call)
        return web.Response(status=204)

    async def end_all(self, call: Call) -> web.Response:
        return answer({"unlockedCount": await call.queue.unlock_all()})


def _raise_not_held(call: Call) -> NoReturn:
    if call.queue.row(call.id) is None:
        raise not_found("Request")
    raise ApiError(
        400,
        "request-handled-or-locked",
        "The request is handled, not locked, or locked by another client",
    )
