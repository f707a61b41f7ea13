"""The Apify API: the backend that talks to a request queue over HTTP.

All of HTTP is here: URLs, the token, rates, retries, limits. Source of endpoints and limits:
https://docs.apify.com/api/v2/storage-request-queues and
https://docs.apify.com/platform/storage/request-queue#rate-limiting

httpx sends through aiohttp (package httpx-aiohttp), because httpx's own transport costs several
times the CPU for each request; see benchmarks/http_transport.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import quote

import httpx
from httpx_aiohttp import AiohttpTransport

from scrapy_apify_rq.backends.base import Added, Claim, Claimed, Info, State
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.models import Entry

logger = logging.getLogger(__name__)

BATCH: Final = 25
# The limit is 9 MiB of decompressed body; the rest is for brackets and commas.
PAYLOAD_LIMIT: Final = 9 * 1024 * 1024 - 1024
HEAD_LIMIT: Final = 1000
LIST_LIMIT: Final = 10_000
LOCK_LIMIT: Final = 25

# Requests per second and queue, by class of endpoint.
_CRUD_RATE: Final = 400
_BATCH_RATE: Final = 40
_OTHER_RATE: Final = 60
# https://docs.apify.com/api/v2#rate-limiting recommends 500 ms, doubling, with jitter.
_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 30.0
_TIMEOUT: Final = httpx.Timeout(30, connect=10, pool=None)
_CONNECTIONS: Final = 64
# Below it, gzip's own header and the work outweigh what it saves.
_COMPRESS_FROM: Final = 1024
# Complete entries kept so that they need not be fetched again.
_COMPLETE_LIMIT: Final = 10_000
# Missing this many complete entries, one list of all pending ones is cheaper than a GET for each.
_LIST_FROM: Final = 50
# Fetched one by one at the very start, so that the first pages need not wait for a long list.
_FIRST_FETCH: Final = 16
# What concerns the whole queue: the closing reason and the cure.
_CURES: Final[dict[int, tuple[str, str]]] = {
    HTTPStatus.UNAUTHORIZED: (
        "apify_rq_unauthorized",
        "Set APIFY_TOKEN to a valid token: https://console.apify.com/settings/integrations.",
    ),
    HTTPStatus.FORBIDDEN: (
        "apify_rq_unauthorized",
        "The APIFY_TOKEN may not use this queue: give it the permission, or choose another queue"
        " with APIFY_RQ_NAME or APIFY_RQ_ID.",
    ),
    HTTPStatus.NOT_FOUND: (
        "apify_rq_gone",
        "The queue does not exist (any more): check APIFY_RQ_ID, or set APIFY_RQ_NAME to have one"
        " made.",
    ),
}


class _Pace:
    """Lets at most ``rate`` calls a second begin, a tenth of a second's worth at once."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._burst = 0.1
        self._next = 0.0

    async def wait(self) -> bool:
        """Wait for a turn; says whether there was a wait."""
        now = time.monotonic()
        self._next = max(self._next, now - self._burst) + self._interval
        delay = self._next - now
        if delay > 0:
            await asyncio.sleep(delay)
        return delay > 0


class _Refused(Exception):
    """The API refuses this one call (4xx) and would refuse it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Client:
    """HTTP to one API, with one token: paced, retried, errors mapped."""

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        patience: float,
        count: Callable[[str], None],
    ) -> None:
        headers = {"User-Agent": f"scrapy-apify-rq/{version('scrapy-apify-rq')}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        limits = httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=30)
        self._http = httpx.AsyncClient(
            base_url=f"{base_url}/v2/",
            headers=headers,
            timeout=_TIMEOUT,
            transport=AiohttpTransport(limits=limits),
        )
        self._patience = patience
        self._count = count
        self._paces = {rate: _Pace(rate) for rate in (_CRUD_RATE, _BATCH_RATE, _OTHER_RATE)}
        self._failing_since: float | None = None

    async def close(self) -> None:
        await self._http.aclose()

    async def call(
        self,
        name: str,
        method: str,
        path: str,
        *,
        rate: int,
        body: bytes | None = None,
        query: Mapping[str, str | int] | None = None,
    ) -> Any:
        """The ``data`` of the answer. Retries what may pass; ``name`` is for stats and messages.

        Raises _Refused for what concerns this call only, BackendError for what concerns all.
        """
        headers, content = _encoded(body)
        attempt = 0
        while True:
            await self._paces[rate].wait()
            self._count(f"apify_rq/api/calls/{name}")
            try:
                answer = await self._http.request(
                    method, path, params=query, content=content, headers=headers
                )
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                delay = 0.0
            else:
                if answer.is_success:
                    self._failing_since = None
                    return answer.json()["data"] if answer.content else None
                problem = _problem(answer)
                if answer.status_code < 500 and answer.status_code != 429:
                    raise _Refused(answer.status_code, problem)
                delay = self._note_failure(answer)
            await self._back_off(name, problem, attempt, delay)
            attempt += 1

    def _note_failure(self, answer: httpx.Response) -> float:
        """Seconds that the server asks us to wait."""
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            self._count("apify_rq/api/rate_limited")
        try:
            return float(answer.headers.get("Retry-After", 0))
        except ValueError:
            return 0.0

    async def _back_off(self, name: str, problem: str, attempt: int, delay: float) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        outage = now - self._failing_since
        if outage > self._patience:
            raise BackendError(
                f"The Apify API did not answer for {outage:.0f} seconds"
                f" (APIFY_RQ_UNAVAILABLE_TIMEOUT is {self._patience:.0f}), last {name}: {problem}."
                " What is unfinished stays pending: run the spider again when the API can be"
                " reached at APIFY_API_BASE_URL."
            )
        self._count("apify_rq/api/retries")
        delay = max(delay, min(_FIRST_BACKOFF * 2**attempt, _LONGEST_BACKOFF)) * random.uniform(
            1, 2
        )
        level = logging.WARNING if attempt == 2 else logging.DEBUG
        logger.log(level, "%s failed (%s), tried again in %.1f s", name, problem, delay)
        await asyncio.sleep(delay)


def _encoded(body: bytes | None) -> tuple[dict[str, str], bytes | None]:
    if body is None:
        return {}, None
    headers = {"Content-Type": "application/json"}
    if len(body) < _COMPRESS_FROM:
        return headers, body
    return {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 1)


def _problem(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{answer.status_code} {error['type']}: {error['message']}"
    except (ValueError, LookupError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"


class ApifyBackend:
    """One request queue of the platform, in single access; see ``Backend`` for the promises.

    ``count`` is called with the name of a stat at each event.
    """

    batch = BATCH
    parallel = 4
    lag = 30.0
    consistency_delay = 3.0
    linger = 0.1

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        id: str | None = None,
        name: str | None = None,
        client_key: str | None = None,
        patience: float = 600,
        count: Callable[[str], None],
    ) -> None:
        self._client = _Client(base_url, token, patience=patience, count=count)
        self._count = count
        self._id = id
        self._name = name
        self._client_key = client_key or secrets.token_hex(16)
        self._queue: dict[str, Any] = {}
        self._complete: dict[str, str | bytes] = {}
        """JSON of pending entries by id, so that claiming them takes no further call."""
        self._refused: set[str] = set()
        """Ids of entries that the API would not let us update; never claimed again."""
        self._started = False

    @property
    def location(self) -> str:
        return str(self._queue.get("consoleUrl") or self._name or self._id)

    async def open(self) -> None:
        if self._id is None:
            self._queue = await self._call(
                "queue_create",
                "POST",
                "request-queues",
                rate=_OTHER_RATE,
                query={"name": self._name or ""},
            )
        else:
            path = f"request-queues/{quote(self._id, safe='~')}"
            self._queue = await self._call("queue_get", "GET", path, rate=_OTHER_RATE)
        self._path = f"request-queues/{self._queue['id']}"
        self._fresh = True

    async def close(self) -> None:
        await self._client.close()

    async def _call(self, name: str, method: str, path: str, **options: Any) -> Any:
        """A call whose refusal concerns the whole queue."""
        try:
            return await self._client.call(name, method, path, **options)
        except _Refused as error:
            raise self._fatal(error) from None

    def _fatal(self, error: _Refused) -> BackendError:
        reason, cure = _CURES.get(error.status, ("apify_rq_unavailable", ""))
        return BackendError(f"Request queue {self.location}: {error}. {cure}".strip(), reason)

    async def _call_queue(self, name: str, method: str, path: str = "", **options: Any) -> Any:
        return await self._call(name, method, self._path + path, **options)

    async def info(self) -> Info:
        if not self._fresh:  # opening has told it just now
            self._queue = await self._call_queue("queue_get", "GET", rate=_OTHER_RATE)
        self._fresh = False
        queue = self._queue
        total, handled = queue["totalRequestCount"], queue["handledRequestCount"]
        # The platform's counters lag, each by its own time, and may even be negative.
        pending = max(queue["pendingRequestCount"], 0)
        return Info(queue["id"], queue.get("name"), total, handled, pending)

    # Adding.

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        texts = {entry.id: _wire(entry) for entry in entries}
        answers: dict[str, Added] = {}
        for entry in entries:
            if len(texts[entry.id]) > PAYLOAD_LIMIT:
                size = f"{len(texts[entry.id]):,} bytes"
                answers[entry.id] = _refusal(entry, f"its {size} are more than the API takes")
        waiting = [entry for entry in entries if entry.id not in answers]
        for batch in _by_size(waiting, texts):
            answers |= await self._add_batch(batch, texts, forefront)
        for id, answer in answers.items():
            if not (answer.was_already_present or answer.refused):
                self._remember(id, _with_id(id, texts[id]))
        return [answers[entry.id] for entry in entries]

    async def _add_batch(
        self, batch: Sequence[Entry], texts: dict[str, bytes], forefront: bool
    ) -> dict[str, Added]:
        """Send until each entry is answered; what is unprocessed goes again, all in their order."""
        answers: dict[str, Added] = {}
        attempt = 0
        while left := [entry for entry in batch if entry.id not in answers]:
            if attempt:
                self._count("apify_rq/api/unprocessed")
                await asyncio.sleep(
                    _FIRST_BACKOFF * 2 ** min(attempt - 1, 5) * random.uniform(1, 2)
                )
            try:
                data = await self._post_batch(left, texts, forefront)
            except _Refused as error:
                return answers | await self._add_halves(left, texts, forefront, error)
            for item in data["processedRequests"]:
                id = item["requestId"]
                answers[id] = Added(id, item["wasAlreadyPresent"], item["wasAlreadyHandled"])
            attempt += 1
        return answers

    async def _post_batch(
        self, batch: Sequence[Entry], texts: dict[str, bytes], forefront: bool
    ) -> Any:
        return await self._client.call(
            "requests_batch_add",
            "POST",
            f"{self._path}/requests/batch",
            rate=_BATCH_RATE,
            body=b"[" + b",".join(texts[entry.id] for entry in batch) + b"]",
            query={
                "forefront": "true" if forefront else "false",
                "clientKey": self._client_key,
            },
        )

    async def _add_halves(
        self,
        batch: Sequence[Entry],
        texts: dict[str, bytes],
        forefront: bool,
        error: _Refused,
    ) -> dict[str, Added]:
        """One entry that the API objects to refuses its whole batch: find it."""
        if error.status in _CURES:
            raise self._fatal(error) from None
        if len(batch) == 1:
            return {batch[0].id: _refusal(batch[0], f"the API refuses it: {error}")}
        middle = len(batch) // 2
        first = await self._add_batch(batch[:middle], texts, forefront)
        return first | await self._add_batch(batch[middle:], texts, forefront)

    def _remember(self, id: str, text: str | bytes) -> None:
        # The oldest are needed first, so when there is no room, the new ones are left out.
        if id in self._complete or len(self._complete) < _COMPLETE_LIMIT:
            self._complete[id] = text

    # Claiming.

    async def claim(self, limit: int, known: Collection[str]) -> Claim:
        unwanted = set(known) | self._refused
        asked = min(limit + len(unwanted), HEAD_LIMIT)
        head = await self._call_queue(
            "head_get",
            "GET",
            "/head",
            rate=_OTHER_RATE,
            query={"limit": asked, "clientKey": self._client_key},
        )
        self._queue["hadMultipleClients"] = head["hadMultipleClients"]
        ids = [item["id"] for item in head["items"] if item["id"] not in unwanted]
        more = len(head["items"]) >= asked or len(ids) > limit
        ids = ids[:limit]
        if not self._started and len(ids) > _FIRST_FETCH:
            ids, more = ids[:_FIRST_FETCH], True
        self._started = self._started or bool(ids)
        entries = await self._hydrate(ids)
        return Claim([Claimed(entry, None) for entry in entries], more)

    async def _hydrate(self, ids: Sequence[str]) -> list[Entry]:
        """The complete entries, in this order; those not found yet, or handled, are left out."""
        missing = [id for id in ids if id not in self._complete]
        if len(missing) >= _LIST_FROM and self._queue["pendingRequestCount"] <= LIST_LIMIT:
            await self._list_pending()
            missing = [id for id in ids if id not in self._complete]
        fetched = await asyncio.gather(*map(self.get, missing))
        found = {entry.id: entry for entry in fetched if entry is not None}
        entries: list[Entry] = []
        for start in range(0, len(ids), 100):
            for id in ids[start : start + 100]:
                entry = found.get(id)
                if entry is None and id in self._complete:
                    entry = Entry.from_json(id, self._complete.pop(id))
                if entry is not None and entry.handled_at is None:
                    entries.append(entry)
            await asyncio.sleep(0)
        return entries

    async def _list_pending(self) -> None:
        data = await self._call_queue(
            "requests_list",
            "GET",
            "/requests",
            rate=_OTHER_RATE,
            query={"limit": LIST_LIMIT, "filter": "pending", "clientKey": self._client_key},
        )
        for item in data["items"]:
            self._complete[item["id"]] = json.dumps(item)

    # Updating.

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> None:
        await asyncio.gather(*(self._put(entry, forefront) for entry in entries))

    async def _put(self, entry: Entry, forefront: bool) -> None:
        text = _wire(entry)
        try:
            await self._client.call(
                "request_put",
                "PUT",
                f"{self._path}/requests/{entry.id}",
                rate=_CRUD_RATE,
                body=text,
                query={
                    "clientKey": self._client_key,
                    **({"forefront": "true"} if forefront else {}),
                },
            )
        except _Refused as error:
            if error.status in _CURES:
                raise self._fatal(error) from None
            self._refused.add(entry.id)
            self._count("apify_rq/api/refused")
            logger.error(
                "The API refuses the update of entry %s (%s): %s", entry.id, entry.url, error
            )
        if entry.handled_at is None:
            self._remember(entry.id, _with_id(entry.id, text))
        else:
            self._complete.pop(entry.id, None)

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        raise NotImplementedError("leases come with shared access")

    async def unlock(self) -> None:
        raise NotImplementedError("leases come with shared access")

    # For the tools.

    async def purge(self) -> None:
        """The API cannot empty a queue: one with a name is deleted and made anew."""
        if self._queue.get("name") is None:
            await self.delete([entry.id async for entry in self.list()])
        else:
            await self._call_queue("queue_delete", "DELETE", rate=_OTHER_RATE)
            self._id, self._name = None, self._queue["name"]
            await self.open()
        self._complete.clear()

    async def get(self, id: str) -> Entry | None:
        try:
            data = await self._client.call(
                "request_get", "GET", f"{self._path}/requests/{id}", rate=_CRUD_RATE
            )
        except _Refused as error:
            if error.status == HTTPStatus.NOT_FOUND:  # on the head, but not readable yet
                return None
            raise self._fatal(error) from None
        return Entry.from_json(id, json.dumps(data))

    async def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        query: dict[str, Any] = {"limit": LIST_LIMIT, "clientKey": self._client_key}
        if state in ("pending", "locked"):
            # The platform's "pending" leaves out what is locked, ours does not.
            query["filter"] = "pending,locked" if state == "pending" else "locked"
        while True:
            data = await self._call_queue(
                "requests_list", "GET", "/requests", rate=_OTHER_RATE, query=query
            )
            for item in data["items"]:
                entry = Entry.from_json(item["id"], json.dumps(item))
                if _is_in(entry, state):
                    yield entry
            if not data.get("nextCursor"):
                return
            query["cursor"] = data["nextCursor"]

    async def delete(self, ids: Collection[str]) -> None:
        left = list(ids)
        while left:
            batch, left = left[:BATCH], left[BATCH:]
            await self._call_queue(
                "requests_batch_delete",
                "DELETE",
                "/requests/batch",
                rate=_BATCH_RATE,
                body=json.dumps([{"id": id} for id in batch]).encode(),
                query={"clientKey": self._client_key},
            )


def _wire(entry: Entry) -> bytes:
    """As sent: without the id, which the API derives and refuses to be told."""
    return entry.to_json(with_id=False).encode()


def _with_id(id: str, text: bytes) -> bytes:
    """As stored, from what was sent."""
    return b'{"id":"%s",%s' % (id.encode(), text[1:])


def _refusal(entry: Entry, why: str) -> Added:
    return Added(entry.id, False, False, refused=why)


def _by_size(entries: Sequence[Entry], texts: dict[str, bytes]) -> Iterator[Sequence[Entry]]:
    """Cut into batches that the API takes, by the bytes that are sent."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        length = len(texts[entry.id]) + 1
        if batch and (size + length > PAYLOAD_LIMIT or len(batch) == BATCH):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += length
    if batch:
        yield batch


def _is_in(entry: Entry, state: State | None) -> bool:
    if state in ("handled", "failed"):
        return entry.handled_at is not None and (state == "handled" or entry.failed)
    return True
