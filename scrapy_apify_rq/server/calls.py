"""What happens to each call before and after its operation.

The caller is checked first. An operation gets a ``Call`` with the queue of the path; what it raises
becomes the API's answer to an error.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import hdrs, web

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.sqlite.schema import QueueRecord
from scrapy_apify_rq.backends.sqlite.store import Store, StoredQueue
from scrapy_apify_rq.errors import BackendError, RequestQueueError
from scrapy_apify_rq.limits import OTHER_RATE
from scrapy_apify_rq.server.answers import error_answer
from scrapy_apify_rq.server.errors import ApiError, not_found
from scrapy_apify_rq.server.parameters import ClientParameters

logger = logging.getLogger(__name__)

# A client that comes back after so many others counts as new.
_MOST_CLIENTS: Final = 1000


@dataclass
class Call:
    """One call to one queue."""

    request: web.Request
    record: QueueRecord
    queue: StoredQueue
    several_clients: bool
    client_key: str | None
    now: float = field(default_factory=clock.now)

    @property
    def key(self) -> int:
        return self.record.key

    @property
    def id(self) -> str:
        return self.request.match_info["id"]


class Operation(NamedTuple):
    answer: Callable[[Any], Awaitable[web.StreamResponse]]
    rate: int = OTHER_RATE
    """How many calls a second the platform takes. This server takes all, and answers the rate."""
    client: bool = True
    """It takes ``clientKey``, so its callers count as clients of the queue."""
    lead: Callable[[web.Request], Awaitable[None]] | None = None
    """Completes a path that does not say the id of its storage."""


class Access(Protocol):
    """Who may call."""

    def verb(self, request: web.Request) -> str:
        """The verb of the call. Raises ApiError."""

    def check(self, request: web.Request) -> None:
        """Raise ApiError unless the caller may call."""


class Calls:
    """Leads calls to their operations."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access
        self._clients = _Clients()

    def handler(
        self, name: str, operations: dict[str, Operation]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        verbs = ",".join(("OPTIONS", *operations))

        async def handle(request: web.Request) -> web.StreamResponse:
            if request.method == "OPTIONS":
                return web.Response(status=204, headers={hdrs.ALLOW: verbs})
            answer = await self._answer(name, operations, request)
            if answer.status == 405:
                answer.headers[hdrs.ALLOW] = verbs
            # Not the query, which may hold the token.
            path = request.rel_url.raw_path
            logger.debug("%s %s: %d", request.method, path, answer.status)
            return answer

        return handle

    async def _answer(
        self, name: str, operations: dict[str, Operation], request: web.Request
    ) -> web.StreamResponse:
        try:
            operation = operations.get(self._access.verb(request))
            if operation is None:
                raise _wrong_verb(operations)
        except ApiError as error:
            return error_answer(error)
        answer = await self._outcome(f"{request.method} {name}", operation, request)
        answer.headers["X-RateLimit-Limit"] = str(operation.rate)
        return answer

    async def _outcome(
        self, name: str, operation: Operation, request: web.Request
    ) -> web.StreamResponse:
        try:
            return await self._perform(operation, request)
        except ApiError as error:
            return error_answer(error)
        except RequestQueueError as error:
            if isinstance(error, BackendError) and error.reason == "apify_rq_gone":
                return error_answer(not_found("Request Queue"))
            logger.error("%s failed: %s", name, error)
            return error_answer(ApiError(500, "internal-server-error", str(error)))
        except Exception:
            logger.exception("%s failed", name)
            return error_answer(
                ApiError(500, "internal-server-error", "A bug in scrapy-apify-rq, see its log")
            )

    async def _perform(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        self._access.check(request)
        self._store.refresh()
        if operation.lead is not None:
            await operation.lead(request)
        client_key = ClientParameters.read(request).client_key if operation.client else None
        record = await self._find(request)
        if record is None:
            return await operation.answer(request)
        self._store.count(record.key)
        several = bool(record.had_multiple_clients)
        if operation.client:
            self._clients.note(record, request, client_key)
            several = await self._store.note_client(record, client_key)
        # Choice: callers without a key hold locks together.
        queue = self._store.queue(record.key, client_key or "")
        return await operation.answer(Call(request, record, queue, several, client_key))

    async def _find(self, request: web.Request) -> QueueRecord | None:
        """The queue of the path. None if the path has none."""
        id = request.match_info.get("queue")
        if id is None:
            return None
        # Choice: any user name, since there is one user here.
        _, tilde, name = id.partition("~")
        record = await (self._store.find(name=name) if tilde else self._store.find(id=id))
        if record is None:
            raise not_found("Request Queue")
        return record


class _Clients:
    """Logs a line for each client of a queue that comes: its program, its address and its key."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def note(self, record: QueueRecord, request: web.Request, client_key: str | None) -> None:
        program, address = request.headers.get(hdrs.USER_AGENT, ""), request.remote or ""
        key = "without a key" if client_key is None else f"with the key {client_key!r}"
        client = (record.id, program, address, key)
        if client not in self._known:
            queue = record.name or record.id
            logger.info("New client of the queue %s: %.100r at %s, %s", queue, *client[1:])
        self._known[client] = None
        self._known.move_to_end(client)
        if len(self._known) > _MOST_CLIENTS:
            self._known.popitem(last=False)


def _wrong_verb(operations: dict[str, Operation]) -> ApiError:
    verbs = ",".join(("OPTIONS", *operations))
    return ApiError(
        405,
        "method-not-allowed",
        "This API end-point can only be accessed using the following HTTP methods: " + verbs,
    )
