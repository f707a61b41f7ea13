"""The backend over the Apify API: a request queue on the platform, or on our own server.

This module knows what the endpoints mean. ``http`` calls them, ``head`` claims without leases, and
``reader`` fetches entries. Source: https://docs.apify.com/api/v2/storage-request-queues
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from scrapy_apify_rq.backends.apify.head import HEAD_LIMIT, Head
from scrapy_apify_rq.backends.apify.http import (
    CONNECTIONS,
    Answer,
    AnswerTooLong,
    Client,
    Refused,
    TransientError,
)
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.apify.reader import Reader
from scrapy_apify_rq.backends.base import (
    Added,
    Claim,
    Claimed,
    Info,
    Lock,
    Operations,
    State,
    Updated,
)
from scrapy_apify_rq.config import DEFAULTS
from scrapy_apify_rq.entries.models import Entry, read_date
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import (
    BATCH_RATE,
    CRUD_RATE,
    MAX_BATCH,
    MAX_BODY,
    OTHER_RATE,
)

logger = logging.getLogger(__name__)

# The rest is for brackets and commas.
PAYLOAD_LIMIT: Final = MAX_BODY - 1024

# Entries in the first page of a list, while their size is unknown: each can have 9 MB.
_FIRST_PAGE: Final = 10
# The API would give 10,000 entries in one answer, which would block the event loop for seconds.
_LONGEST_PAGE: Final = 1000
_PAGE_BYTES: Final = 4 * 1024 * 1024
# When this many updates are refused, the entries are not what is wrong.
_REFUSED_LIMIT: Final = HEAD_LIMIT // 2
# Refusals that are about one entry. All others are about the queue.
_ABOUT_ENTRIES: Final = frozenset(
    (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )
)
# Refusals that are about the queue: the closing reason and the cure.
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
        "The queue does not exist or was deleted: check APIFY_RQ_ID and APIFY_API_BASE_URL, or set"
        " APIFY_RQ_NAME to create one.",
    ),
}
_OTHER_CURE: Final = (
    "apify_rq_unavailable",
    "Check APIFY_API_BASE_URL, and APIFY_RQ_NAME or APIFY_RQ_ID.",
)


class ApifyBackend:
    """One request queue of the platform. ``Backend`` says what each method promises.

    ``memory`` is how many bytes of complete entries may be kept, so that claiming them takes no
    call. ``inc_stat`` is called with the name of a stat at each event.
    """

    batch = MAX_BATCH
    parallel = 16
    # The API has no batch update. More calls than connections would only wait for one.
    update_batch = 1
    update_parallel = CONNECTIONS
    lag = 30.0
    consistency_delay = 3.0
    linger = 0.1
    counts_reads = True

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        id: str | None = None,
        name: str | None = None,
        lock_secs: int | None = None,
        client_key: str | None = None,
        patience: float = DEFAULTS["APIFY_RQ_UNAVAILABLE_TIMEOUT"],
        memory: int = 16 * 1024 * 1024,
        inc_stat: Callable[[str], None],
    ) -> None:
        self.patience = patience
        self._client = Client(base_url, token, patience=patience, inc_stat=inc_stat)
        self._inc_stat = inc_stat
        self._id = id
        self._name = name
        self.lock_secs = lock_secs
        self._client_key = client_key or secrets.token_hex(16)
        self._queue: dict[str, Any] = {}
        self._fresh = False
        """Whether ``_queue`` was answered after our last call that may have changed it."""
        self._memory = memory
        self._reset()

    def _reset(self) -> None:
        """Forget all that we know about single entries."""
        is_single = self.lock_secs is None
        self._reader = Reader(self._text, self._memory if is_single else 0)
        self._head = Head(self, self._reader) if is_single else None
        self._refused: set[str] = set()
        """Ids of entries whose update the API refused; they are not claimed again."""
        self._stray_leases = False
        """Whether an answer was lost, so that we may hold leases that we do not know about."""

    @property
    def location(self) -> str:
        return str(self._queue.get("consoleUrl") or self._name or self._id or "without a name")

    @property
    def rate_reached(self) -> str | None:
        return f"{CRUD_RATE} updates a second" if self._client.is_paced(CRUD_RATE) else None

    async def open(self) -> None:
        self._client.open()
        if self._id is None:
            await self._open_by_name(self._name)
        else:
            path = f"request-queues/{quote(self._id, safe='~')}"
            self._use(await self._call("queue_get", "GET", path, rate=OTHER_RATE))

    async def _open_by_name(self, name: str | None) -> None:
        query = {} if name is None else {"name": name}
        self._use(
            await self._call("queue_create", "POST", "request-queues", rate=OTHER_RATE, query=query)
        )

    def _use(self, queue: dict[str, Any]) -> None:
        self._queue = queue
        self._path = f"request-queues/{queue['id']}"
        self._fresh = True

    async def close(self) -> None:
        await self._client.close()

    async def _call(self, name: str, method: str, path: str, **options: Any) -> Any:
        """Return the data of an answer. A refusal is final for the whole queue."""
        return (await self._answer(name, method, path, **options)).data

    async def _answer(self, name: str, method: str, path: str, **options: Any) -> Answer:
        try:
            return await self._client.call(name, method, path, **options)
        except Refused as error:
            raise self._fatal(error) from None

    async def _answer_if_any(
        self,
        name: str,
        method: str,
        path: str,
        *,
        none_at: Collection[int] = (HTTPStatus.NOT_FOUND,),
        **options: Any,
    ) -> Answer | None:
        """Return None if the API says that the thing does not exist."""
        try:
            return await self._client.call(name, method, path, **options)
        except Refused as error:
            if error.status not in none_at:
                raise self._fatal(error) from None
            return None

    def _fatal(self, error: Refused) -> BackendError:
        reason, cure = _CURES.get(error.status, _OTHER_CURE)
        return BackendError(f"Request queue {self.location}: {error}. {cure}", reason)

    async def _call_queue(self, name: str, method: str, path: str = "", **options: Any) -> Any:
        return await self._call(name, method, self._path + path, **options)

    @property
    def pending_count(self) -> int:
        """For ``Head``."""
        return int(self._queue["pendingRequestCount"])

    async def info(self) -> Info:
        if not self._fresh:  # fresh: ``open`` has just asked
            self._queue = await self._call_queue("queue_get", "GET", rate=OTHER_RATE)
        self._fresh = False
        queue = self._queue
        total, handled = queue["totalRequestCount"], queue["handledRequestCount"]
        # The platform's counters lag, each by its own time. This one can even be negative.
        pending = max(queue["pendingRequestCount"], 0)
        stats = queue.get("stats") or {}
        return Info(
            queue["id"],
            queue.get("name"),
            total,
            handled,
            pending,
            read_date(queue["modifiedAt"]),
            Operations(stats.get("readCount", 0), stats.get("writeCount", 0)),
        )

    # Adding.

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        self._fresh = False
        first: dict[str, Entry] = {}
        for entry in entries:
            first.setdefault(entry.id, entry)
        texts = {id: _wire(entry) for id, entry in first.items()}
        answers: dict[str, Added] = {}
        for id, text in texts.items():
            if len(text) > PAYLOAD_LIMIT:
                answers[id] = _refusal(id, f"its {len(text):,} bytes are more than the API takes")
        waiting = [entry for id, entry in first.items() if id not in answers]
        for batch in _by_size(waiting, texts):
            answers |= await self._add_batch(batch, texts, forefront)
        for id, answer in answers.items():
            new = not (answer.was_already_present or answer.refused)
            if new and not first[id].is_handled and self._head is not None:
                self._head.wrote(id, _with_id(id, texts[id]))
        return [
            answers[entry.id]
            if entry is first[entry.id]
            else _repeated_answer(entry, answers[entry.id])
            for entry in entries
        ]

    async def _add_batch(
        self, batch: Sequence[Entry], texts: dict[str, bytes], forefront: bool
    ) -> dict[str, Added]:
        """Send the batch, and the unprocessed entries again until each one is answered."""
        answers: dict[str, Added] = {}
        attempt = 0
        since = time.monotonic()
        while left := [entry for entry in batch if entry.id not in answers]:
            if attempt:
                self._inc_stat("apify_rq/api/unprocessed")
                problem = TransientError(f"{len(left)} entries unprocessed", maybe_done=True)
                await self._client.back_off("requests_batch_add", problem, attempt - 1, since)
            try:
                data, maybe_repeated = await self._post_batch(left, texts, forefront)
            except Refused as error:
                return answers | await self._add_halves(left, texts, forefront, error)
            pairs = _added(data["processedRequests"], left)
            if attempt or maybe_repeated:
                added = await run_all(self._recognized(*pair) for pair in pairs)
            else:
                added = [answer for _, answer in pairs]
            answers |= {answer.id: answer for answer in added}
            attempt += 1
        return answers

    async def _recognized(self, entry: Entry, answer: Added) -> Added:
        """Find out whether an entry that we sent more than once was there before.

        If the stored entry is exactly the one we sent, then a call stored it whose answer was lost.
        (Or an earlier run stored the same entry. Taking that one for new loses nothing.)
        """
        if not answer.was_already_present or answer.was_already_handled:
            return answer
        stored = await self.get(entry.id)
        is_ours = stored is not None and _content(stored) == _content(entry)
        return answer._replace(was_already_present=not is_ours)

    async def _post_batch(
        self, batch: Sequence[Entry], texts: dict[str, bytes], forefront: bool
    ) -> Answer:
        return await self._client.call(
            "requests_batch_add",
            "POST",
            f"{self._path}/requests/batch",
            rate=BATCH_RATE,
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
        error: Refused,
    ) -> dict[str, Added]:
        """Find the entry for which the API refuses the whole batch, and add the others."""
        if error.status not in _ABOUT_ENTRIES:
            raise self._fatal(error) from None
        if len(batch) == 1:
            return {batch[0].id: _refusal(batch[0].id, f"the API refuses it: {error}")}
        middle = len(batch) // 2
        first = await self._add_batch(batch[:middle], texts, forefront)
        return first | await self._add_batch(batch[middle:], texts, forefront)

    # Claiming.

    async def claim(self, limit: int, known: Collection[str], size: int) -> Claim:
        self._fresh = False
        if self._head is not None:
            return await self._head.claim(limit, {*known, *self._refused}, size)
        assert self.lock_secs is not None  # shared access has no Head
        if self._stray_leases and not known:
            await self.unlock()
            self._stray_leases = False
        # Claim fewer than asked for if only these fit.
        limit = min(limit, max(self._reader.fit(size, unknown=limit), 1))
        return await self._claim_leased(limit, size, self.lock_secs)

    async def _claim_leased(self, limit: int, size: int, lock_secs: int) -> Claim:
        # By our own clock, taken before the call: not later than the API's.
        asked_at = time.time()
        heads = await run_all(
            self._lock_head(min(MAX_BATCH, limit - start), lock_secs)
            for start in range(0, limit, MAX_BATCH)
        )
        found = [item["id"] for head in heads for item in head["items"]]
        ids = [id for id in found if id not in self._refused]
        # A head may lag, and another client may have changed an entry since. A GET is exact.
        read = await self._reader.read(ids, size)
        if unwanted := [*self._refused.intersection(found), *read.rest]:
            await self.unlock(unwanted)
        lease = asked_at + min(lock_secs, *(head["lockSecs"] for head in heads))
        return Claim(
            [Claimed(entry, lease) for entry in read.entries],
            more=len(ids) >= limit or bool(read.rest),
            # A lock on an entry that we may not update is not worth waiting for.
            leased=bool(ids) or (not found and await self._is_any_leased(heads[0])),
        )

    async def _is_any_leased(self, empty_head: dict[str, Any]) -> bool:
        answer: bool | None = empty_head.get("queueHasLockedRequests")  # optional in the API
        return (await self.info()).pending > 0 if answer is None else answer

    async def _lock_head(self, limit: int, lock_secs: int) -> Any:
        query = {"limit": limit, "lockSecs": lock_secs, "clientKey": self._client_key}
        answer = await self._answer(
            "head_lock", "POST", f"{self._path}/head/lock", rate=BATCH_RATE, query=query
        )
        self._stray_leases = self._stray_leases or answer.maybe_repeated
        return answer.data

    async def read_head(self, limit: int) -> Any:
        """For ``Head``."""
        query = {"limit": limit, "clientKey": self._client_key}
        return await self._call_queue("head_get", "GET", "/head", rate=OTHER_RATE, query=query)

    # Updating.

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        self._fresh = False
        if len(entries) == 1:  # as the frontier calls it; a task would cost more than the rest
            return [await self._put(entries[0], forefront)]
        return await run_all(self._put(entry, forefront) for entry in entries)

    async def _put(self, entry: Entry, forefront: bool) -> Updated:
        text = _wire(entry)
        try:
            if len(text) > PAYLOAD_LIMIT:  # a server may cut the connection instead of answering
                raise Refused(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"its {len(text):,} bytes are more than the API takes",
                )
            answer = await self._client.call(
                "request_put",
                "PUT",
                f"{self._path}/requests/{quote(entry.id, safe='')}",
                rate=CRUD_RATE,
                body=text,
                query={
                    "clientKey": self._client_key,
                    **({"forefront": "true"} if forefront else {}),
                },
            )
        except Refused as error:
            self._note_refused(entry, error)
            return Updated(was_handled=False, refused=True)
        self._refused.discard(entry.id)
        if self._head is not None:
            if entry.is_handled:
                self._head.acked(entry.id)
            else:
                self._head.wrote(entry.id, _with_id(entry.id, text))
        return Updated(answer.data["wasAlreadyHandled"] and not answer.maybe_repeated)

    def _note_refused(self, entry: Entry, error: Refused) -> None:
        """Log that an entry stays in the queue as it was. This crawl goes on without it."""
        if error.status not in _ABOUT_ENTRIES:
            raise self._fatal(error) from None
        self._refused.add(entry.id)
        self._inc_stat("apify_rq/api/refused")
        logger.error(
            "The API refuses the update of entry %s (%s): %s. It stays pending, and the next run"
            " crawls it again",
            entry.id,
            entry.url[:500],
            error,
        )
        if len(self._refused) > _REFUSED_LIMIT:
            raise BackendError(
                f"The API has refused {len(self._refused)} updates. The last error was: {error}."
                " The log names the entries."
            )

    # Leases.

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        leases = await run_all(map(self._prolong, ids))
        return {id: lease for id, lease in zip(ids, leases, strict=True) if lease is not None}

    async def _prolong(self, id: str) -> float | None:
        asked_at = time.time()
        secs = self.lock_secs or 0
        return asked_at + secs if await self._call_lock("PUT", id, lockSecs=secs) else None

    async def _call_lock(self, method: str, id: str, **query: int) -> bool:
        """Return False if we do not hold the lock."""
        answer = await self._answer_if_any(
            f"lock_{method.lower()}",
            method,
            f"{self._path}/requests/{quote(id, safe='')}/lock",
            none_at=(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND),
            rate=CRUD_RATE,
            query={**query, "clientKey": self._client_key},
        )
        return answer is not None

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        query = {"clientKey": self._client_key}
        if ids is None:
            path = "/requests/unlock"
            await self._call_queue("unlock", "POST", path, rate=OTHER_RATE, query=query)
        else:
            await run_all(self._call_lock("DELETE", id) for id in ids)

    # For the tools.

    async def find(self) -> bool:
        self._client.open()
        path = f"request-queues/{quote(self._id or f'~{self._name}', safe='~')}"
        answer = await self._answer_if_any("queue_get", "GET", path, rate=OTHER_RATE)
        if answer is not None:
            self._use(answer.data)
        return answer is not None

    async def names(self) -> Sequence[str]:
        query = {"limit": 50, "desc": "true"}
        path = "request-queues"
        data = await self._call("queues_list", "GET", path, rate=OTHER_RATE, query=query)
        return [queue["name"] for queue in data["items"] if queue.get("name")]

    async def purge(self) -> None:
        """Delete a named queue and create it again, since the API cannot empty one."""
        if self._name is None or self._id is not None:
            await self.delete([entry.id async for entry in self.list()])
        else:
            # A call whose answer was lost may have deleted it.
            await self._answer_if_any("queue_delete", "DELETE", self._path, rate=OTHER_RATE)
            await self._open_by_name(self._name)
        self._reset()

    async def get(self, id: str) -> Entry | None:
        text = await self._text(id)
        return None if text is None else Entry.from_json(id, text)

    async def _text(self, id: str) -> bytes | None:
        """The JSON of an entry."""
        data = await self._get(id)
        return None if data is None else json.dumps(data).encode()

    async def _get(self, id: str) -> Any:
        path = f"{self._path}/requests/{quote(id, safe='')}"
        answer = await self._answer_if_any("request_get", "GET", path, rate=CRUD_RATE)
        return None if answer is None else answer.data

    async def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        # The platform's "pending" leaves out locked entries, ours does not.
        states = {"pending": "pending,locked", "locked": "locked"}.get(state or "")
        async for id, text in self.stored(states):
            entry = Entry.from_json(id, text)
            if _is_in(entry, state):
                yield entry

    async def stored(self, states: str | None) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield id and JSON of all entries in these states of the API, page by page."""
        limit = self._reader.fit(_PAGE_BYTES, unknown=_FIRST_PAGE)
        query: dict[str, Any] = {"clientKey": self._client_key}
        if states is not None:
            query["filter"] = states
        while True:
            query["limit"] = max(1, min(limit, _LONGEST_PAGE))
            page = await self._list_page(query)
            size = 0
            for n, item in enumerate(page["items"]):
                text = json.dumps(item).encode()
                size += len(text)
                yield item["id"], text
                if n % 100 == 99:
                    await asyncio.sleep(0)
            if not page.get("nextCursor"):
                return
            query["cursor"] = page["nextCursor"]
            limit = _PAGE_BYTES * len(page["items"]) // max(size, 1)

    async def _list_page(self, query: dict[str, Any]) -> Any:
        """Return a page of the list. Sets a shorter limit if the answer would be too long."""
        while True:
            try:
                answer = await self._client.call(
                    "requests_list", "GET", f"{self._path}/requests", rate=OTHER_RATE, query=query
                )
            except AnswerTooLong as error:
                if query["limit"] == 1:
                    raise self._fatal(error) from None
                query["limit"] = max(1, query["limit"] // 8)
            except Refused as error:
                raise self._fatal(error) from None
            else:
                return answer.data

    async def count(self, state: State) -> int:
        number = 0
        async for _ in self.list(state):
            number += 1
        return number

    async def lock_of(self, id: str) -> Lock | None:
        data = await self._get(id) or {}
        if not (ends := data.get("lockExpiresAt")):
            return None
        expires_at = read_date(ends)
        still = expires_at > datetime.now(UTC)
        return Lock(data.get("lockByClient"), expires_at) if still else None

    async def delete(self, ids: Collection[str]) -> None:
        self._fresh = False
        left = list(dict.fromkeys(ids))
        while left:
            batch, left = left[:MAX_BATCH], left[MAX_BATCH:]
            await self._delete_batch(batch)
            if self._head is not None:
                self._head.deleted(batch)

    async def _delete_batch(self, batch: Sequence[str]) -> None:
        attempt = 0
        since = time.monotonic()
        while True:
            data = await self._call_queue(
                "requests_batch_delete",
                "DELETE",
                "/requests/batch",
                rate=BATCH_RATE,
                body=json.dumps([{"id": id} for id in batch]).encode(),
                query={"clientKey": self._client_key},
            )
            unprocessed = {item.get("id") for item in data["unprocessedRequests"]}
            batch = [id for id in batch if id in unprocessed]
            if not batch:
                return
            problem = TransientError(f"{len(batch)} entries unprocessed", maybe_done=True)
            await self._client.back_off("requests_batch_delete", problem, attempt, since)
            attempt += 1


def _wire(entry: Entry) -> bytes:
    """The JSON that we send. Without the id, which the API makes itself and refuses to take."""
    return entry.to_json(with_id=False).encode()


def _with_id(id: str, text: bytes) -> bytes:
    """The JSON as it is stored, from what was sent."""
    return b'{"id":"%s",%s' % (id.encode(), text[1:])


def _content(entry: Entry) -> Any:
    return json.loads(_wire(entry))


def _refusal(id: str, why: str) -> Added:
    return Added(id, False, False, refused=why)


def _repeated_answer(entry: Entry, answer: Added) -> Added:
    """The answer for an entry whose id came before in the same call."""
    if answer.refused:
        return answer
    return Added(entry.id, True, answer.was_already_handled or entry.is_handled)


def _added(items: Sequence[Any], sent: Sequence[Entry]) -> list[tuple[Entry, Added]]:
    """Pair the entries that were processed with the API's answers."""
    by_id = {item["requestId"]: item for item in items}
    return [
        (
            entry,
            Added(
                entry.id,
                by_id[entry.id]["wasAlreadyPresent"],
                by_id[entry.id]["wasAlreadyHandled"],
            ),
        )
        for entry in sent
        if entry.id in by_id
    ]


def _by_size(entries: Sequence[Entry], texts: dict[str, bytes]) -> Iterator[Sequence[Entry]]:
    """Cut the entries into batches of no more bytes than the API takes."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        length = len(texts[entry.id]) + 1
        if batch and size + length > PAYLOAD_LIMIT:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += length
    if batch:
        yield batch


def _is_in(entry: Entry, state: State | None) -> bool:
    if state in ("handled", "failed"):
        return entry.is_handled and (state == "handled" or entry.failed)
    return True
