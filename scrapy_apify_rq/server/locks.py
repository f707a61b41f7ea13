"""Operations on the head of a queue and on the locks of its requests.

As in ``application``, "Choice:" marks what Apify's reference leaves open.
"""

from __future__ import annotations

import math
from typing import Annotated, NoReturn

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.limits import MAX_BATCH
from scrapy_apify_rq.server.answers import answer, date, head_item
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.errors import ApiError, not_found
from scrapy_apify_rq.server.parameters import Count, Forefront, LockSecs, Parameters, up_to


class HeadParameters(Parameters):
    # Choice: 100 by default, as in the emulators. The platform's default is unknown.
    limit: Annotated[Count, up_to(1000)] = 100


class LockParameters(Parameters):
    lock_secs: LockSecs
    limit: Annotated[Count, up_to(MAX_BATCH)] = MAX_BATCH


class ProlongParameters(Forefront):
    lock_secs: LockSecs


class Locks:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def head(self, call: Call) -> web.Response:
        limit = HeadParameters.read(call.request).limit
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
        asked = LockParameters.read(call.request)
        locked = await call.queue.lock(asked.limit, asked.lock_secs)
        expires_at = date(locked.expires_at)
        items = [head_item(*text) async for text in call.queue.texts(locked.ids)]
        data = {
            "limit": asked.limit,
            "queueModifiedAt": date(call.now if items else call.record.modified_at),
            "queueHasLockedRequests": locked.any_locked,
            "hadMultipleClients": call.several_clients,
            "lockSecs": math.ceil(asked.lock_secs),  # the description allows whole seconds only
            "items": [{**item, "lockExpiresAt": expires_at} for item in items],
        }
        if call.client_key:
            data["clientKey"] = call.client_key
        return answer(data, 201)

    async def prolong(self, call: Call) -> web.Response:
        """Choice: the new time starts now. The caller must still hold the lock."""
        asked = ProlongParameters.read(call.request)
        until = await call.queue.prolong_lock(call.id, asked.lock_secs, forefront=asked.forefront)
        if until is None:
            await _raise_not_held(call)
        return answer({"lockExpiresAt": date(until)})

    async def end(self, call: Call) -> web.Response:
        forefront = Forefront.read(call.request).forefront
        if not await call.queue.end_lock(call.id, forefront=forefront):
            await _raise_not_held(call)
        return web.Response(status=204)

    async def end_all(self, call: Call) -> web.Response:
        return answer({"unlockedCount": await call.queue.unlock_all()})


async def _raise_not_held(call: Call) -> NoReturn:
    if await call.queue.row(call.id) is None:
        raise not_found("Request")
    raise ApiError(
        400,
        "request-handled-or-locked",
        "The request is handled, not locked, or locked by another client",
    )
