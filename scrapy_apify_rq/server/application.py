"""The request-queue part of Apify's API v2 over HTTP, served from the embedded queue.

``application`` is all of it except the address: ``scrapy rq serve`` runs it, and so can any aiohttp
server. Reference: https://docs.apify.com/api/v2/storage-request-queues. "Choice:" marks where the
reference leaves something open or contradicts the platform.

A call goes through ``calls.Calls``, which checks who calls, to its operation. Each operation is one
method of ``Queues``, ``Requests`` or ``Locks``, listed in ``_operations``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.limits import BATCH_RATE, CRUD_RATE, MAX_BODY
from scrapy_apify_rq.server.access import Access
from scrapy_apify_rq.server.answers import error_answer
from scrapy_apify_rq.server.calls import Calls, Operation
from scrapy_apify_rq.server.errors import ApiError
from scrapy_apify_rq.server.locks import Locks
from scrapy_apify_rq.server.queues import Queues
from scrapy_apify_rq.server.requests import Requests

_QUEUES: Final = "/v2/request-queues"
# Seconds for which a write waits while other processes lock the file.
_PATIENCE: Final = 10


def application(
    storage: Path,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
    middlewares: Iterable[Any] = (),
) -> web.Application:
    """The API over the queues in the folder ``storage``.

    With a ``token``, callers must send it. Without one, they must address the server as this
    machine or as ``host``, the address that it listens on. ``middlewares`` are aiohttp's.
    """
    store = Store(storage, _PATIENCE, clock.now)
    app = web.Application(
        client_max_size=MAX_BODY,
        middlewares=middlewares,
        handler_args={"auto_decompress": False},
    )
    app.router.add_routes(_routes(store, Access(token, host)))

    async def opened(_: web.Application) -> AsyncIterator[None]:
        await store.open()
        yield
        await store.close()

    app.cleanup_ctx.append(opened)
    return app


def _routes(store: Store, access: Access) -> list[web.RouteDef]:
    calls = Calls(store, access)
    queues = Queues(store)
    operations = {
        "queues": {
            "GET": Operation(queues.page, client=False),
            "POST": Operation(queues.create, client=False),
        },
        **_operations(queues, Requests(store), Locks(store)),
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
