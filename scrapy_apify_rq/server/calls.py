"""What happens to each call before and after its operation.

Faults come first, and then the checks of the token and the rate. An operation gets a ``Call`` with
the queue of the path; what it raises becomes the API's answer to an error.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from aiohttp import hdrs, web

from scrapy_apify_rq.backends.sqlite.catalog import QueueRecord
from scrapy_apify_rq.backends.sqlite.store import Store, StoredQueue
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import OTHER_RATE
from scrapy_apify_rq.server.answers import error_answer
from scrapy_apify_rq.server.faults import Misbehaviour
from scrapy_apify_rq.server.parameters import ApiError, Query, not_found

logger = logging.getLogger(__name__)


@dataclass
class Call:
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


class Operation(NamedTuple):
    answer: Callable[[Any], Awaitable[web.StreamResponse]]
    rate: int = OTHER_RATE
    client: bool = True
    """It takes ``clientKey``, so its callers count as clients of the queue."""


class Calls:
    """Leads calls to their operations."""

    def __init__(self, store: Store, token: str | None, misbehaviour: Misbehaviour) -> None:
        self._store = store
        self._token = token
        self._misbehaviour = misbehaviour

    def handler(
        self, name: str, operations: dict[str, Operation]
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
                answer = error_answer(wrong_verb)
                answer.headers["Allow"] = verbs
                return answer
            return await self._serve(f"{verb} {name}", operation, request)

        return handle

    async def _serve(
        self, name: str, operation: Operation, request: web.Request
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
        self, name: str, operation: Operation, request: web.Request, fate: str
    ) -> web.StreamResponse:
        try:
            if fate == "failed":
                raise ApiError(500, "internal-server-error", "A failure on request")
            if fate == "limited":
                _raise_rate_exceeded(operation.rate)
            return await self._perform(operation, request)
        except ApiError as error:
            return error_answer(error)
        except BackendError as error:
            if error.reason == "apify_rq_gone":
                return error_answer(not_found("Request Queue"))
            logger.error("%s failed: %s", name, error)
            return error_answer(ApiError(500, "internal-server-error", str(error)))
        except Exception:
            logger.exception("%s failed", name)
            return error_answer(
                ApiError(500, "internal-server-error", "A bug in scrapy-apify-rq, see its log")
            )

    async def _perform(self, operation: Operation, request: web.Request) -> web.StreamResponse:
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
        return await operation.answer(Call(request, query, record, queue, several))

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


def _drop(request: web.Request) -> web.Response:
    """Cut the connection. The returned answer goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


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
