"""The request-queue part of Apify's API v2 over HTTP, served from the embedded queue.

``application`` is all of it except the address: ``scrapy rq serve`` runs it, and so can any aiohttp
server. Reference: https://docs.apify.com/api/v2/storage-request-queues. "Choice:" marks where the
reference leaves something open or contradicts the platform.

A call goes through ``calls.Calls``, which applies faults, the token and the rate, to its operation.
Each operation is one method of ``Queues``, ``Requests`` or ``Locks``, listed in ``_operations``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from aiohttp import web

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.limits import BATCH_RATE, CRUD_RATE, MAX_BODY
from scrapy_apify_rq.server.answers import error_answer
from scrapy_apify_rq.server.calls import Calls, Operation
from scrapy_apify_rq.server.faults import Faults, Misbehaviour
from scrapy_apify_rq.server.locks import Locks
from scrapy_apify_rq.server.parameters import ApiError
from scrapy_apify_rq.server.queues import Queues
from scrapy_apify_rq.server.requests import Requests

_QUEUES: Final = "/v2/request-queues"
# Seconds for which a write waits while other processes lock the file.
_PATIENCE: Final = 10


def application(
    storage: Path, *, token: str | None = None, faults: Faults | None = None
) -> web.Application:
    """The API over the queues in the folder ``storage``.

    With a ``token``, callers must send it. With ``faults``, even those of a healthy server,
    ``PUT /_faults`` replaces them, ``GET /_calls`` counts calls and ``DELETE`` resets the counts.
    """
    store = Store(storage, _PATIENCE, time.time)
    misbehaviour = Misbehaviour(faults)
    app = web.Application(client_max_size=MAX_BODY, handler_args={"auto_decompress": False})
    if faults is not None:
        app.router.add_routes(_controls(misbehaviour))
    app.router.add_routes(_routes(store, token, misbehaviour))

    async def opened(_: web.Application) -> AsyncIterator[None]:
        await store.open()
        yield
        await store.close()

    app.cleanup_ctx.append(opened)
    return app


def _routes(store: Store, token: str | None, misbehaviour: Misbehaviour) -> list[web.RouteDef]:
    calls = Calls(store, token, misbehaviour)
    queues = Queues(store, misbehaviour)
    operations = {
        "queues": {
            "GET": Operation(queues.page, client=False),
            "POST": Operation(queues.create, client=False),
        },
        **_operations(queues, Requests(store, misbehaviour), Locks(store, misbehaviour)),
    }
    return [
        *(
            web.route("*", _path(name), calls.handler(name, by_verb))
            for name, by_verb in operations.items()
        ),
        web.route("*", "/{path:.*}", _unknown_path),
    ]


def _path(name: str) -> str:
    special = {"queues": _QUEUES, "queue": f"{_QUEUES}/{{queue}}"}
    return special.get(name, f"{_QUEUES}/{{queue}}/{name}")


def _operations(
    queues: Queues, requests: Requests, locks: Locks
) -> dict[str, dict[str, Operation]]:
    """The operations on one queue, by path and verb. The first path that fits a call has it."""
    return {
        "queue": {
            "GET": Operation(queues.get, client=False),
            "PUT": Operation(queues.update, client=False),
            "DELETE": Operation(queues.delete, client=False),
        },
        "head": {"GET": Operation(locks.head)},
        "head/lock": {"POST": Operation(locks.lock_head, BATCH_RATE)},
        "requests": {
            "GET": Operation(requests.page),
            "POST": Operation(requests.add, CRUD_RATE),
        },
        "requests/batch": {
            "POST": Operation(requests.add_batch, BATCH_RATE),
            "DELETE": Operation(requests.delete_batch, BATCH_RATE),
        },
        "requests/unlock": {"POST": Operation(locks.end_all)},
        "requests/{id}": {
            "GET": Operation(requests.get, CRUD_RATE, client=False),
            "PUT": Operation(requests.update, CRUD_RATE),
            "DELETE": Operation(requests.delete, CRUD_RATE),
        },
        "requests/{id}/lock": {
            "PUT": Operation(locks.prolong, CRUD_RATE),
            "DELETE": Operation(locks.end, CRUD_RATE),
        },
    }


async def _unknown_path(_: web.Request) -> web.Response:
    return error_answer(ApiError(404, "page-not-found", "Page was not found"))


def _controls(misbehaviour: Misbehaviour) -> list[web.RouteDef]:
    async def set_faults(request: web.Request) -> web.Response:
        try:
            misbehaviour.set_json(await request.read())
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(status=204)

    async def calls(_: web.Request) -> web.Response:
        return web.json_response(misbehaviour.report())

    async def forget_calls(_: web.Request) -> web.Response:
        misbehaviour.forget()
        return web.Response(status=204)

    return [
        web.put("/_faults", set_faults),
        web.get("/_calls", calls),
        web.delete("/_calls", forget_calls),
    ]
