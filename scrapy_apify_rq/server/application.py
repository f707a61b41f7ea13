"""The request-queue part of Apify's API v2 over HTTP, served from the embedded queue.

``application`` is all of it except the address: ``scrapy rq serve`` runs it, and so can any aiohttp
server. Reference: https://docs.apify.com/api/v2/storage-request-queues. "Choice:" marks where the
reference leaves something open or contradicts the platform.

A call goes through ``_Api._serve``, which applies faults, and then through the checks of the token
and the rate to its operation. Each operation is one method of ``_Api``, listed in ``routes``.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from aiohttp import hdrs, web

from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.backends.sqlite.store import QueueRecord, Row, Store, StoredQueue
from scrapy_apify_rq.entries.models import Entry, wire_date
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import (
    BATCH_RATE,
    CRUD_RATE,
    MAX_BATCH,
    MAX_BODY,
    OTHER_RATE,
)
from scrapy_apify_rq.server.faults import Counts, Faults, Misbehaviour
from scrapy_apify_rq.server.parameters import (
    ApiError,
    Query,
    check_name,
    invalid,
    named_id,
    not_found,
    read_batch,
    read_entry,
    read_json,
    read_new_entry,
    write_cursor,
)

logger = logging.getLogger(__name__)

_ACCESSES: Final = (
    "ANYONE_WITH_ID_CAN_READ",
    "ANYONE_WITH_NAME_CAN_READ",
    "FOLLOW_USER_SETTING",
    "RESTRICTED",
)
_USER_ID: Final = "embeddedQueueUser"  # there is only one user
_USERNAME: Final = "local"
_CUT: Final = "...[truncated]"
_CUT_LENGTH: Final = 128
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
    api = _Api(store, token, Misbehaviour(faults))
    app = web.Application(client_max_size=MAX_BODY, handler_args={"auto_decompress": False})
    if faults is not None:
        app.router.add_routes(api.controls())
    app.router.add_routes(api.routes())

    async def opened(_: web.Application) -> AsyncIterator[None]:
        await store.open()
        yield
        await store.close()

    app.cleanup_ctx.append(opened)
    return app


# Answers


def _answer(data: object, status: int = 200, **headers: str) -> web.Response:
    return _raw_answer(json.dumps(data, ensure_ascii=False), status, **headers)


def _raw_answer(data: str, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        text=f'{{"data":{data}}}', status=status, content_type="application/json", headers=headers
    )


def _error_answer(error: ApiError) -> web.Response:
    return web.json_response(
        {"error": {"type": error.type, "message": str(error)}}, status=error.status
    )


def _date(timestamp: float) -> str:
    return wire_date(datetime.fromtimestamp(timestamp, UTC))


def _registration(added: Added) -> dict[str, Any]:
    return {
        "requestId": added.id,
        "wasAlreadyPresent": added.was_already_present,
        "wasAlreadyHandled": added.was_already_handled,
    }


def _head_item(row: Row) -> dict[str, Any]:
    """An entry as the head shows it. Choice: POST head/lock cuts long texts as GET head does."""
    entry = json.loads(row.json)
    item = {name: entry[name] for name in ("uniqueKey", "url", "method", "retryCount")}
    for name in ("uniqueKey", "url"):
        if len(item[name]) > _CUT_LENGTH:
            item[name] = item[name][: _CUT_LENGTH - len(_CUT)] + _CUT
    return {"id": row.id, **item}


def _full(row: Row, now: float) -> str:
    """The JSON of an entry, with its lock if it is locked.

    Choice: an expired lock does not show; lists show the same as a GET by id.
    """
    if row.state(now) != "locked" or row.lock_expires_at is None:
        return row.json
    lock = {"lockExpiresAt": _date(row.lock_expires_at)}
    if row.lock_by:
        lock["lockByClient"] = row.lock_by
    return f"{row.json[:-1]},{json.dumps(lock)[1:]}"


def _drop(request: web.Request) -> web.Response:
    """Cut the connection. The returned answer goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


# The operations


@dataclass
class _Call:
    """One call to one queue."""

    request: web.Request
    query: Query
    record: QueueRecord
    queue: StoredQueue
    several_clients: bool
    now: float = field(default_factory=time.time)

    @property
    def key(self) -> int:
        return self.record.key

    @property
    def id(self) -> str:
        return self.request.match_info["id"]


class _Operation(NamedTuple):
    answer: Callable[[Any], Awaitable[web.StreamResponse]]
    rate: int = OTHER_RATE
    client: bool = True
    """It takes ``clientKey``, so its callers count as clients of the queue."""


class _Api:
    def __init__(self, store: Store, token: str | None, misbehaviour: Misbehaviour) -> None:
        self._store = store
        self._token = token
        self._misbehaviour = misbehaviour

    def routes(self) -> list[web.RouteDef]:
        operation = _Operation
        queue = {
            "queue": {
                "GET": operation(self._get_queue, client=False),
                "PUT": operation(self._update_queue, client=False),
                "DELETE": operation(self._delete_queue, client=False),
            },
            "head": {"GET": operation(self._head)},
            "head/lock": {"POST": operation(self._lock_head, BATCH_RATE)},
            "requests": {
                "GET": operation(self._list_requests),
                "POST": operation(self._add_request, CRUD_RATE),
            },
            "requests/batch": {
                "POST": operation(self._add_batch, BATCH_RATE),
                "DELETE": operation(self._delete_batch, BATCH_RATE),
            },
            "requests/unlock": {"POST": operation(self._unlock)},
            "requests/{id}": {
                "GET": operation(self._get_request, CRUD_RATE, client=False),
                "PUT": operation(self._update_request, CRUD_RATE),
                "DELETE": operation(self._delete_request, CRUD_RATE),
            },
            "requests/{id}/lock": {
                "PUT": operation(self._prolong_lock, CRUD_RATE),
                "DELETE": operation(self._delete_lock, CRUD_RATE),
            },
        }
        collection = {
            "GET": operation(self._list_queues, client=False),
            "POST": operation(self._create_queue, client=False),
        }
        base = "/v2/request-queues"
        paths = {"queues": base}
        for name in queue:
            paths[name] = f"{base}/{{queue}}" + ("" if name == "queue" else f"/{name}")
        return [
            *(
                web.route("*", path, self._route(name, {"queues": collection, **queue}[name]))
                for name, path in paths.items()
            ),
            web.route("*", "/{path:.*}", self._unknown_path),
        ]

    def controls(self) -> list[web.RouteDef]:
        async def set_faults(request: web.Request) -> web.Response:
            try:
                self._misbehaviour.set_json(await request.read())
            except ValueError as error:
                return web.Response(status=400, text=str(error))
            return web.Response(status=204)

        async def calls(_: web.Request) -> web.Response:
            return web.json_response(self._misbehaviour.report())

        async def forget_calls(_: web.Request) -> web.Response:
            self._misbehaviour.forget()
            return web.Response(status=204)

        return [
            web.put("/_faults", set_faults),
            web.get("/_calls", calls),
            web.delete("/_calls", forget_calls),
        ]

    async def _unknown_path(self, _: web.Request) -> web.Response:
        return _error_answer(ApiError(404, "page-not-found", "Page was not found"))

    def _route(
        self, name: str, operations: dict[str, _Operation]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        verbs = ",".join(("OPTIONS", *operations))
        wrong_verb = ApiError(
            405,
            "method-not-allowed",
            "This API end-point can only be accessed using the following HTTP methods: " + verbs,
        )

        async def handle(request: web.Request) -> web.StreamResponse:
            verb = request.method
            if verb == "GET":
                verb = request.query.get("method", verb).upper()
            if verb == "OPTIONS":
                return web.Response(status=204, headers={"Allow": verbs})
            operation = operations.get(verb)
            if operation is None:
                answer = _error_answer(wrong_verb)
                answer.headers["Allow"] = verbs
                return answer
            return await self._serve(f"{verb} {name}", operation, request)

        return handle

    async def _serve(
        self, name: str, operation: _Operation, request: web.Request
    ) -> web.StreamResponse:
        misbehaviour = self._misbehaviour
        misbehaviour.calls[name] += 1
        fate = misbehaviour.fate(name)
        await asyncio.sleep(misbehaviour.latency(name))
        if fate == "dropped":
            answer: web.StreamResponse = _drop(request)
        else:
            answer = await self._answer(name, operation, request, fate)
            answer.headers["X-RateLimit-Limit"] = str(operation.rate)
        misbehaviour.outcomes[fate if fate in ("dropped", "lost") else str(answer.status)] += 1
        return _drop(request) if fate == "lost" else answer

    async def _answer(
        self, name: str, operation: _Operation, request: web.Request, fate: str
    ) -> web.StreamResponse:
        try:
            if fate == "failed":
                raise ApiError(500, "internal-server-error", "A failure on request")
            if fate == "limited":
                _raise_rate_exceeded(operation.rate)
            return await self._perform(operation, request)
        except ApiError as error:
            return _error_answer(error)
        except BackendError as error:
            if error.reason == "apify_rq_gone":
                return _error_answer(not_found("Request Queue"))
            logger.error("%s failed: %s", name, error)
            return _error_answer(ApiError(500, "internal-server-error", str(error)))
        except Exception:
            logger.exception("%s failed", name)
            return _error_answer(
                ApiError(500, "internal-server-error", "A bug in scrapy-apify-rq, see its log")
            )

    async def _perform(self, operation: _Operation, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        query = Query(request)
        client_key = query.client_key() if operation.client else None
        record = self._find(request)
        queue_key = record.key if record else None
        if self._misbehaviour.exceeds_rate(queue_key, operation.rate):
            _raise_rate_exceeded(operation.rate)
        if record is None:
            return await operation.answer(request)
        self._store.count(record.key)
        several = bool(record.had_multiple_clients)
        if operation.client:
            several = await self._store.note_client(record, client_key)
        # Choice: callers without a key hold locks together.
        queue = self._store.queue(record.key, client_key or "")
        return await operation.answer(_Call(request, query, record, queue, several))

    def _authorize(self, request: web.Request) -> None:
        if self._token is None:
            _refuse_web_pages(request)
            return
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.query.get("token", "")
        # Choice: always, while the platform answers some reads by id to anybody.
        if not token:
            raise ApiError(401, "token-not-provided", "Authentication token was not provided")
        if not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise ApiError(
                401,
                "user-or-token-not-found",
                "User was not found or authentication token is not valid",
            )

    def _find(self, request: web.Request) -> QueueRecord | None:
        """The queue of the path. None if the path has none."""
        id = request.match_info.get("queue")
        if id is None:
            return None
        # Choice: any user name, since there is one user here.
        _, tilde, name = id.partition("~")
        record = self._store.find(name=name) if tilde else self._store.find(id=id)
        if record is None:
            raise not_found("Request Queue")
        return record

    # Queues

    async def _list_queues(self, request: web.Request) -> web.Response:
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
        return _answer(
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

    async def _create_queue(self, request: web.Request) -> web.Response:
        name = Query(request).text("name")
        if name is not None:
            check_name(name)
        record, created = await self._store.get_or_create(name)
        data = self._queue_object(record, request)
        if not created:
            return _answer(data)
        return _answer(data, 201, Location=data["consoleUrl"])

    async def _get_queue(self, call: _Call) -> web.Response:
        record = await self._store.get(call.key)
        if record is None:
            raise not_found("Request Queue")
        return _answer(self._queue_object(record, call.request))

    async def _update_queue(self, call: _Call) -> web.Response:
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
        return await self._get_queue(call)

    async def _delete_queue(self, call: _Call) -> web.Response:
        await self._store.drop(call.key)
        return web.Response(status=204)

    def _queue_object(self, record: QueueRecord, request: web.Request) -> dict[str, Any]:
        url = f"{request.scheme}://{request.host}/v2/request-queues/{record.id}"
        return {**self._record(record), "consoleUrl": url}

    def _record(self, record: QueueRecord) -> dict[str, Any]:
        counts = self._misbehaviour.counts(record.key, Counts(record.total, record.handled))
        data = {
            "id": record.id,
            "name": record.name,
            "title": record.title,
            "userId": _USER_ID,
            "createdAt": _date(record.created_at),
            "modifiedAt": _date(record.modified_at),
            "accessedAt": _date(record.accessed_at),
            "totalRequestCount": counts.total,
            "handledRequestCount": counts.handled,
            "pendingRequestCount": counts.total - counts.handled,
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

    # The head

    async def _head(self, call: _Call) -> web.Response:
        # Choice: 100 by default, as in the emulators. The platform's default is unknown.
        limit = call.query.limit(100, 1000)
        # Choice: sources conflict about whether locked entries are listed. Here they are.
        locked = not self._misbehaviour.faults.hide_locked
        hidden = self._misbehaviour.hidden(call.key)
        rows = call.queue.head(limit, locked=locked, without=hidden)
        states = ("pending", "locked") if locked else ("pending",)
        if hidden:
            rows += _in_states(hidden.values(), states, call.now)
            rows.sort(key=lambda row: row.position or 0)
            rows = rows[:limit]
        self._store.count(call.key, head_items_read=len(rows))
        return _answer(
            {
                "limit": limit,
                "queueModifiedAt": _date(call.record.modified_at),
                "hadMultipleClients": call.several_clients,
                "items": [_head_item(row) for row in rows],
            }
        )

    async def _lock_head(self, call: _Call) -> web.Response:
        secs, limit = call.query.lock_secs(), call.query.limit(MAX_BATCH, MAX_BATCH)
        # An entry whose last change is not visible yet cannot be locked.
        hidden = self._misbehaviour.hidden(call.key)
        locked = await call.queue.lock(limit, secs, without=hidden)
        expires_at = _date(locked.expires_at)
        data = {
            "limit": limit,
            "queueModifiedAt": _date(call.now if locked.rows else call.record.modified_at),
            "queueHasLockedRequests": locked.any_locked,
            "hadMultipleClients": call.several_clients,
            "lockSecs": math.ceil(secs),  # the description allows whole seconds only
            "items": [{**_head_item(row), "lockExpiresAt": expires_at} for row in locked.rows],
        }
        if client_key := call.query.client_key():
            data["clientKey"] = client_key
        return _answer(data, 201)

    # Requests

    async def _list_requests(self, call: _Call) -> web.Response:
        query, states = call.query, call.query.states()
        # Choice: the default is the maximum. The platform's default is unknown.
        limit, after = query.limit(10_000, 10_000), query.start()
        hidden = self._misbehaviour.hidden(call.key) if states else {}
        rows = call.queue.requests(limit + 1, after=after, states=states, without=hidden)
        if hidden:
            back = _in_states(hidden.values(), states, call.now)
            rows += [row for row in back if row.id > after]
            rows.sort(key=lambda row: row.id)
        page = rows[:limit]
        self._store.count(call.key, reads=len(page))
        rest: dict[str, Any] = {"limit": limit}
        for name in ("cursor", "exclusiveStartId"):
            if value := query.text(name):
                rest[name] = value
        if len(rows) > limit:
            rest["nextCursor"] = write_cursor(page[-1].id)
        items = ",".join(_full(row, call.now) for row in page)
        return _raw_answer(f'{{"items":[{items}],{json.dumps(rest)[1:]}')

    async def _add_request(self, call: _Call) -> web.Response:
        forefront = call.query.flag("forefront")
        entry = read_new_entry(await read_json(call.request, dict))
        (added,) = await self._add(call, [entry], forefront)
        return _answer(_registration(added), 201)

    async def _add_batch(self, call: _Call) -> web.Response:
        forefront = call.query.flag("forefront")
        raw = await read_batch(call.request)
        entries = [read_new_entry(item, f"requests.{n}") for n, item in enumerate(raw)]
        if len({entry.id for entry in entries}) < len(entries):
            raise ApiError(
                400,
                "request-queue-duplicate-requests",
                "The batch has several requests with one uniqueKey",
            )
        spared = [self._misbehaviour.spares("POST requests/batch") for _ in entries]
        stored = [entry for entry, spare in zip(entries, spared, strict=True) if spare]
        left = [entry for entry, spare in zip(entries, spared, strict=True) if not spare]
        added = await self._add(call, stored, forefront)
        return _answer(
            {
                "processedRequests": [
                    {"uniqueKey": entry.unique_key, **_registration(one)}
                    for entry, one in zip(stored, added, strict=True)
                ],
                "unprocessedRequests": [
                    {"uniqueKey": entry.unique_key, "url": entry.url, "method": entry.method}
                    for entry in left
                ],
            },
            201,
        )

    async def _add(self, call: _Call, entries: Sequence[Entry], forefront: bool) -> list[Added]:
        """Choice: with forefront the last one ends up first. An existing entry keeps its place."""
        self._before_change(call, [entry.id for entry in entries])
        return await call.queue.add(entries, forefront=forefront) if entries else []

    async def _delete_batch(self, call: _Call) -> web.Response:
        raw = await read_batch(call.request)
        ids = [named_id(item, n) for n, item in enumerate(raw)]
        self._before_change(call, ids)
        await call.queue.delete(ids)
        # Choice: an unknown request counts as processed.
        processed = [
            {name: item[name] for name in ("id", "uniqueKey") if item.get(name)} for item in raw
        ]
        return _answer({"processedRequests": processed, "unprocessedRequests": []})

    async def _unlock(self, call: _Call) -> web.Response:
        return _answer({"unlockedCount": await call.queue.unlock_all()})

    # One request

    async def _get_request(self, call: _Call) -> web.Response:
        row = call.queue.row(call.id)
        if row is None:
            raise not_found("Request")
        self._store.count(call.key, reads=1)
        return _raw_answer(_full(row, call.now))

    async def _update_request(self, call: _Call) -> web.Response:
        """Choice: any client may update, whoever holds the lock. The lock ends."""
        forefront = call.query.flag("forefront")
        entry = read_entry(await read_json(call.request, dict))
        if entry.id != call.id:
            raise ApiError(400, "request-id-invalid", "Request ID does not correspond to uniqueKey")
        self._before_change(call, [entry.id])
        return _answer(_registration(await call.queue.replace(entry, forefront=forefront)))

    async def _delete_request(self, call: _Call) -> web.Response:
        """Choice: deleting an unknown request, or one that another client locked, is no error."""
        self._before_change(call, [call.id])
        await call.queue.delete([call.id])
        return web.Response(status=204)

    async def _prolong_lock(self, call: _Call) -> web.Response:
        """Choice: the new time starts now. The caller must still hold the lock."""
        secs, forefront = call.query.lock_secs(), call.query.flag("forefront")
        until = await call.queue.prolong_lock(call.id, secs, forefront=forefront)
        if until is None:
            _raise_not_held(call)
        return _answer({"lockExpiresAt": _date(until)})

    async def _delete_lock(self, call: _Call) -> web.Response:
        if not await call.queue.end_lock(call.id, forefront=call.query.flag("forefront")):
            _raise_not_held(call)
        return web.Response(status=204)

    def _before_change(self, call: _Call, ids: Sequence[str]) -> None:
        if self._misbehaviour.lags:
            before = {id: call.queue.row(id) for id in ids}
            record = self._store.find(id=call.record.id) or call.record
            self._misbehaviour.note(call.key, before, Counts(record.total, record.handled))


def _in_states(rows: Collection[Row | None], states: Collection[str], now: float) -> list[Row]:
    return [row for row in rows if row is not None and row.state(now) in states]


def _raise_not_held(call: _Call) -> NoReturn:
    if call.queue.row(call.id) is None:
        raise not_found("Request")
    raise ApiError(
        400,
        "request-handled-or-locked",
        "The request is handled, not locked, or locked by another client",
    )


def _raise_rate_exceeded(rate: int) -> NoReturn:
    raise ApiError(
        429,
        "rate-limit-exceeded",
        f"You have exceeded the rate limit of {rate} requests per second",
    )


def _refuse_web_pages(request: web.Request) -> None:
    """Without a token, any web page in a browser on this machine could send us calls: with forms,
    with images (``?method=DELETE``), or with a host name that resolves to 127.0.0.1. Refuse them.
    """
    site = request.headers.get("Sec-Fetch-Site", "none")
    host = request.url.host or ""
    if site != "none" or hdrs.ORIGIN in request.headers or not _is_own_name(host):
        raise ApiError(
            403,
            "insufficient-permissions",
            "Web pages may not use this server, and its host name must be localhost or an IP"
            " address, unless it is started with --token",
        )


def _is_own_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
