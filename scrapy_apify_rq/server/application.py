"""The request-queue part of Apify's API v2 over HTTP, served from the embedded file, and what an
Actor's run needs beside it: datasets, key-value stores, the run and the user.

``application`` is all of it except the address: ``scrapy rq serve`` runs it, and so can any aiohttp
server. Reference: https://docs.apify.com/api/v2/storage-request-queues. "Choice:" marks where the
reference leaves something open or contradicts the platform.

A call goes through ``calls.Calls``, which checks who calls, to its operation. Each operation is one
method of a class that has those on one kind of thing: the functions below list them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.limits import BATCH_RATE, CRUD_RATE, MAX_BODY
from scrapy_apify_rq.server.access import Access
from scrapy_apify_rq.server.answers import error_answer
from scrapy_apify_rq.server.calls import Calls, Operation
from scrapy_apify_rq.server.datasets import Datasets, dataset_fields
from scrapy_apify_rq.server.errors import ApiError
from scrapy_apify_rq.server.key_value_stores import KeyValueStores, store_fields
from scrapy_apify_rq.server.locks import Locks
from scrapy_apify_rq.server.page import Page, page_routes
from scrapy_apify_rq.server.queues import Queues
from scrapy_apify_rq.server.requests import Requests
from scrapy_apify_rq.server.runs import RunCalls, user
from scrapy_apify_rq.server.storages import StorageCalls

_Operations = dict[str, dict[str, Operation]]
# Seconds for which a write waits while other processes lock the file.
_PATIENCE: Final = 10


def application(
    storage: Path,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
    middlewares: Iterable[Any] = (),
    page: Page | None = None,
) -> web.Application:
    """The API over the storages in the folder ``storage``.

    With a ``token``, callers must send it. Without one, they must address the server as this
    machine or as ``host``, the address that it listens on. ``middlewares`` are aiohttp's. With a
    ``page``, people can look at the queues in a browser.
    """
    store = Store(storage, _PATIENCE, clock.now)
    app = web.Application(
        client_max_size=MAX_BODY,
        middlewares=middlewares,
        handler_args={"auto_decompress": False},
    )
    access = Access(token, host, page.token if page else None)
    if page is not None:
        is_servers = token is not None
        app.router.add_routes(page_routes(store, page, host, has_servers_token=is_servers))
    app.router.add_routes(_routes(store, access))

    async def opened(_: web.Application) -> AsyncIterator[None]:
        await store.open()
        yield
        await store.close()

    app.cleanup_ctx.append(opened)
    return app


def _routes(store: Store, access: Access) -> list[web.RouteDef]:
    calls = Calls(store, access)
    queues, datasets = _queue_operations(store), _dataset_operations(store)
    stores = _store_operations(store)
    runs = RunCalls(store.runs)
    operations = {
        **_below("request-queues", "{queue}", queues),
        **_below("datasets", "{storage}", datasets),
        **_below("key-value-stores", "{storage}", stores),
        "actor-runs/{run}": {
            "GET": Operation(runs.get, client=False),
            "PUT": Operation(runs.update, client=False),
        },
        **_of_run("request-queue", runs.leads("queue", "request_queue"), queues),
        **_of_run("dataset", runs.leads("storage", "dataset"), datasets),
        **_of_run("key-value-store", runs.leads("storage", "key_value_store"), stores),
        "users/{user}": {"GET": Operation(user, client=False)},
    }
    return [
        *(
            web.route("*", f"/v2/{name}", calls.handler(name, by_verb))
            for name, by_verb in operations.items()
        ),
        web.route("*", "/{path:.*}", _unknown_path),
    ]


def _below(collection: str, one: str, operations: _Operations) -> _Operations:
    """The operations with whole paths. They are given with paths below one storage, and those on
    all storages as "..".
    """
    special = {"..": collection, "": f"{collection}/{one}"}
    return {
        special.get(path, f"{collection}/{one}/{path}"): by_verb
        for path, by_verb in operations.items()
    }


def _of_run(
    one: str, lead: Callable[[web.Request], Awaitable[None]], operations: _Operations
) -> _Operations:
    """The same operations on a default storage of a run."""
    below = {
        path: {verb: operation._replace(lead=lead) for verb, operation in by_verb.items()}
        for path, by_verb in operations.items()
        if path != ".."
    }
    return _below("actor-runs/{run}", one, below)


def _dataset_operations(store: Store) -> _Operations:
    storages = StorageCalls(store.datasets, "Dataset", dataset_fields)
    datasets = Datasets(storages, store.items)
    return {
        **_storage_operations(storages),
        "items": {
            "GET": Operation(datasets.page, client=False),
            "POST": Operation(datasets.push, CRUD_RATE, client=False),
        },
    }


def _store_operations(store: Store) -> _Operations:
    storages = StorageCalls(store.key_value_stores, "Key-value store", store_fields)
    stores = KeyValueStores(storages, store.records)
    return {
        **_storage_operations(storages),
        "keys": {"GET": Operation(stores.keys, client=False)},
        "records/{key}": {
            "GET": Operation(stores.get, CRUD_RATE, client=False),
            "HEAD": Operation(stores.get, CRUD_RATE, client=False),
            "PUT": Operation(stores.put, CRUD_RATE, client=False),
            "DELETE": Operation(stores.delete, CRUD_RATE, client=False),
        },
    }


def _storage_operations(storages: StorageCalls | Queues) -> _Operations:
    """Those that storages of any kind have."""
    return {
        "..": {
            "GET": Operation(storages.page, client=False),
            "POST": Operation(storages.create, client=False),
        },
        "": {
            "GET": Operation(storages.get, client=False),
            "PUT": Operation(storages.update, client=False),
            "DELETE": Operation(storages.delete, client=False),
        },
    }


def _queue_operations(store: Store) -> _Operations:
    """By path and verb. The first path that fits a call has it."""
    requests, locks = Requests(store), Locks(store)
    return {
        **_storage_operations(Queues(store)),
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
