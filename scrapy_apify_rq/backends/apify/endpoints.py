"""The endpoints of the API that concern one request queue: a method for each.

A method knows the path, the query, the class of rate, and which refusals are answers. It raises
BackendError for every other refusal, because that one is final for the whole queue.
Source: https://docs.apify.com/api/v2/storage-request-queues
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import quote

from scrapy_apify_rq.backends.api_models import (
    AddedBatch,
    DeletedBatch,
    Head,
    Lock,
    LockedHead,
    Model,
    Page,
    Queue,
    QueueList,
    Registered,
)
from scrapy_apify_rq.backends.apify import answers
from scrapy_apify_rq.backends.apify.answers import Reading, reading
from scrapy_apify_rq.backends.apify.http import (
    Answer,
    AnswerTooLong,
    Client,
    Refused,
    TransientError,
)
from scrapy_apify_rq.backends.apify.wire import ABOUT_CONTENT, SPENT
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import BATCH_RATE, CRUD_RATE, OTHER_RATE

T = TypeVar("T")

# How an answer is read.
_QUEUE: Final = reading(Queue)
_QUEUES: Final = reading(QueueList)
_HEAD: Final = reading(Head)
_LOCKED: Final = reading(LockedHead)
_ADDED: Final = reading(AddedBatch)
_DELETED: Final = reading(DeletedBatch)
_REGISTERED: Final = reading(Registered)
_SOMETHING: Final = reading(Model)
# How many ids of the head the API gives at a time.
HEAD_LIMIT: Final = 1000

_MISSING: Final = frozenset((HTTPStatus.NOT_FOUND,))
# A lock that is not ours is a 400.
_NOT_LOCKED: Final = frozenset((HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND))
# Refusals that are about the queue: the closing reason and the cure.
_CURES: Final[dict[int, tuple[str, str]]] = {
    HTTPStatus.UNAUTHORIZED: (
        "apify_rq_unauthorized",
        "Set APIFY_TOKEN to a valid token: https://console.apify.com/settings/integrations.",
    ),
    HTTPStatus.PAYMENT_REQUIRED: SPENT,
    HTTPStatus.FORBIDDEN: (
        "apify_rq_unauthorized",
        "The APIFY_TOKEN may not use this queue: give it the permission, or choose another queue"
        " with APIFY_RQ_NAME or APIFY_RQ_ID.",
    ),
    HTTPStatus.NOT_FOUND: (
        "apify_rq_gone",
        "The queue does not exist or was deleted: check APIFY_RQ_ID and APIFY_API_BASE_URL, or set"
        " APIFY_RQ_NAME to create one.",
    ),
}
_OTHER_CURE: Final = (
    "apify_rq_unavailable",
    "Check APIFY_API_BASE_URL, and APIFY_RQ_NAME or APIFY_RQ_ID.",
)


class Endpoints:
    """Calls the endpoints of the queue with this id, or else with this name.

    An empty queue without a title gets this one.
    """

    def __init__(
        self,
        client: Client,
        client_key: str,
        *,
        id: str | None,
        name: str | None,
        title: str | None = None,
    ) -> None:
        self._client = client
        self._client_key = client_key
        self._id = id
        self._name = name
        self._title = title
        self._path = f"request-queues/{quote(id or f'~{name}', safe='~')}"
        self._queue: Queue | None = None

    @property
    def queue(self) -> Queue:
        """The API's last answer about the queue itself; there is none before the first one."""
        assert self._queue is not None
        return self._queue

    @property
    def location(self) -> str:
        """Where the queue is, for people."""
        url = None if self._queue is None else self._queue.console_url
        return url or self._name or self._id or "without a name"

    @property
    def is_opened_by_name(self) -> bool:
        """Whether the queue can be deleted and created again."""
        return self._id is None and self._name is not None

    # Queues.

    async def open_queue(self) -> None:
        """Get the queue. One without an id is created if it does not exist."""
        await (self.create_queue() if self._id is None else self.get_queue())

    async def get_queue(self) -> None:
        """Ask for the queue's counts."""
        answer = await self._call("queue_get", "GET", self._path, _QUEUE, rate=OTHER_RATE)
        self._use(answer.data)

    async def find_queue(self) -> bool:
        """Get the queue. Return False if it does not exist."""
        answer = await self._call_if_any("queue_get", "GET", self._path, _QUEUE, rate=OTHER_RATE)
        if answer is not None:
            self._use(answer.data)
        return answer is not None

    async def create_queue(self) -> None:
        """Get the queue of our name, or create it. Without a name, create one that has none."""
        query = {} if self._name is None else {"name": self._name}
        answer = await self._call(
            "queue_create", "POST", "request-queues", _QUEUE, rate=OTHER_RATE, query=query
        )
        self._use(answer.data)

    @property
    def lacks_title(self) -> bool:
        """Whether the queue should get our title."""
        is_new = not (self.queue.total_request_count or self.queue.title)
        return self._id is None and is_new and self._title is not None

    async def put_title(self) -> None:
        # The clients send it, but the API's description lacks it.
        await self._call_if_any(
            "queue_put",
            "PUT",
            self._path,
            _SOMETHING,
            none_at=ABOUT_CONTENT,
            rate=OTHER_RATE,
            body=json.dumps({"title": self._title}).encode(),
        )

    async def delete_queue(self) -> None:
        """Delete the queue. A call whose answer was lost may have deleted it already."""
        await self._call_if_any(
            "queue_delete", "DELETE", self._path, answers.nothing, rate=OTHER_RATE
        )

    async def list_queues(self, limit: int) -> list[Queue]:
        """Return queues of the account, the newest first."""
        query = {"limit": limit, "desc": "true"}
        answer = await self._call(
            "queues_list", "GET", "request-queues", _QUEUES, rate=OTHER_RATE, query=query
        )
        return answer.data.items

    # The head and its locks.

    async def get_head(self, limit: int) -> Head:
        """Return the ids of the first pending entries, in the queue's order."""
        path = f"{self._path}/head"
        query = {"limit": limit, "clientKey": self._client_key}
        answer = await self._call("head_get", "GET", path, _HEAD, rate=OTHER_RATE, query=query)
        return answer.data

    async def lock_head(self, limit: int, lock_secs: int) -> Answer[LockedHead]:
        """Lock the first pending entries that are not locked, and return their ids."""
        path = f"{self._path}/head/lock"
        query = {"limit": limit, "lockSecs": lock_secs, "clientKey": self._client_key}
        return await self._call("head_lock", "POST", path, _LOCKED, rate=BATCH_RATE, query=query)

    async def put_lock(self, id: str, lock_secs: int) -> bool:
        """Prolong our lock. Return False if we do not hold it."""
        return await self._call_lock("PUT", id, _SOMETHING, lockSecs=lock_secs)

    async def delete_lock(self, id: str) -> bool:
        """End our lock. Return False if we do not hold it."""
        return await self._call_lock("DELETE", id, answers.nothing)

    async def unlock_requests(self) -> None:
        """End all locks of our client key."""
        path = f"{self._path}/requests/unlock"
        query = {"clientKey": self._client_key}
        await self._call("unlock", "POST", path, _SOMETHING, rate=OTHER_RATE, query=query)

    # Requests, which we call entries.

    async def add_requests(self, texts: Iterable[bytes], *, forefront: bool) -> Answer[AddedBatch]:
        """Add entries, given as JSON. Raises Refused if the API does not take one of them."""
        return await self._call(
            "requests_batch_add",
            "POST",
            f"{self._path}/requests/batch",
            _ADDED,
            expected=ABOUT_CONTENT,
            rate=BATCH_RATE,
            body=b"[" + b",".join(texts) + b"]",
            query={
                "forefront": "true" if forefront else "false",
                "clientKey": self._client_key,
            },
        )

    async def delete_requests(self, ids: Collection[str]) -> DeletedBatch:
        """Delete entries. The answer may leave some of them unprocessed."""
        answer = await self._call(
            "requests_batch_delete",
            "DELETE",
            f"{self._path}/requests/batch",
            _DELETED,
            rate=BATCH_RATE,
            body=json.dumps([{"id": id} for id in ids]).encode(),
            query={"clientKey": self._client_key},
        )
        return answer.data

    async def get_request(self, id: str) -> Entry | None:
        """Return an entry, or None if it does not exist."""
        entry = await self._get(id, answers.entry)
        if entry is not None:
            entry.id = id  # under any other, an ack would miss it
        return entry

    async def get_lock(self, id: str) -> Lock | None:
        """Return the lock that an entry shows. It may have ended."""
        return await self._get(id, answers.lock)

    async def _get(self, id: str, read: Reading[T]) -> T | None:
        path = f"{self._path}/requests/{quote(id, safe='')}"
        answer = await self._call_if_any("request_get", "GET", path, read, rate=CRUD_RATE)
        return None if answer is None else answer.data

    async def put_request(self, id: str, text: bytes, *, forefront: bool) -> Answer[Registered]:
        """Replace an entry by this JSON. Raises Refused if the API does not take it."""
        query = {"clientKey": self._client_key}
        if forefront:
            query["forefront"] = "true"
        return await self._call(
            "request_put",
            "PUT",
            f"{self._path}/requests/{quote(id, safe='')}",
            _REGISTERED,
            expected=ABOUT_CONTENT,
            rate=CRUD_RATE,
            body=text,
            query=query,
        )

    async def list_requests(self, limit: int, *, states: str | None, cursor: str | None) -> Page:
        """Return a page of the entries in these states of the API.

        Raises AnswerTooLong if the page is too long to be read and a shorter one is possible.
        """
        optional = {"filter": states, "cursor": cursor}
        query = {name: value for name, value in optional.items() if value is not None}
        try:
            answer = await self._client.call(
                "requests_list",
                "GET",
                f"{self._path}/requests",
                rate=OTHER_RATE,
                read=answers.page,
                query={**query, "limit": limit, "clientKey": self._client_key},
            )
        except Refused as error:
            if isinstance(error, AnswerTooLong) and limit > 1:
                raise
            raise self._fatal(error) from None
        return answer.data

    async def wait_for_unprocessed(self, name: str, count: int, attempt: int, since: float) -> None:
        """Wait before a batch is sent again of which the API left ``count`` entries unprocessed.

        Raises BackendError when it was first sent, at ``since``, too long ago.
        """
        problem = TransientError(f"entries unprocessed: {count}", maybe_done=True)
        await self._client.back_off(name, problem, attempt, since)

    # How they are called.

    def _use(self, queue: Queue) -> None:
        self._queue = queue
        self._path = f"request-queues/{quote(queue.id, safe='')}"

    async def _call(
        self,
        name: str,
        method: str,
        path: str,
        read: Reading[T],
        *,
        expected: Collection[int] = (),
        **options: Any,
    ) -> Answer[T]:
        """Raises Refused for a status that is ``expected``, and BackendError for any other."""
        try:
            return await self._client.call(name, method, path, read=read, **options)
        except Refused as error:
            if error.status in expected:
                raise
            raise self._fatal(error) from None

    async def _call_if_any(
        self,
        name: str,
        method: str,
        path: str,
        read: Reading[T],
        *,
        none_at: Collection[int] = _MISSING,
        **options: Any,
    ) -> Answer[T] | None:
        """Return None if the API says that the thing does not exist."""
        try:
            return await self._call(name, method, path, read, expected=none_at, **options)
        except Refused:
            return None

    async def _call_lock(self, method: str, id: str, read: Reading[Any], **query: int) -> bool:
        answer = await self._call_if_any(
            f"lock_{method.lower()}",
            method,
            f"{self._path}/requests/{quote(id, safe='')}/lock",
            read,
            none_at=_NOT_LOCKED,
            rate=CRUD_RATE,
            query={**query, "clientKey": self._client_key},
        )
        return answer is not None

    def _fatal(self, error: Refused) -> BackendError:
        reason, cure = _CURES.get(error.status, _OTHER_CURE)
        return BackendError(f"Request queue {self.location}: {error}. {cure}", reason)
