"""The Apify API: the backend that keeps its queue on the platform, or on our own server.

Here is what the endpoints mean; how they are called is in ``http``. Source:
https://docs.apify.com/api/v2/storage-request-queues
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from scrapy_apify_rq.backends.base import Added, Claim, Claimed, Info, Lock, Operations, State
from scrapy_apify_rq.backends.http import CONNECTIONS, Answer, Client, Passing, Refused
from scrapy_apify_rq.config import DEFAULTS
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.models import Entry, read_date
from scrapy_apify_rq.platform_limits import (
    BATCH_RATE,
    CRUD_RATE,
    MAX_BATCH,
    MAX_BODY,
    OTHER_RATE,
)
from scrapy_apify_rq.tasks import together

logger = logging.getLogger(__name__)

# The rest is for brackets and commas.
PAYLOAD_LIMIT: Final = MAX_BODY - 1024
HEAD_LIMIT: Final = 1000
LOCK_LIMIT: Final = MAX_BATCH
LIST_LIMIT: Final = 10_000

# Complete entries kept so that they need not be fetched again: how many, and their bytes.
_COMPLETE_LIMIT: Final = 10_000
_COMPLETE_BYTES: Final = 32 * 1024 * 1024
# Missing this many complete entries, one list of all pending ones is cheaper than a GET for each.
_LIST_FROM: Final = 50
# Fetched one by one at the very start, so that the first pages need not wait for a long list, and
# so that it shows whether the head lags: a GET by id never does, but a list would like the head.
_FIRST_FETCH: Final = 16
# Who lists entries may be content with the first ones, and each one listed is billed as a read.
_FIRST_PAGE: Final = 100
# So many updates refused, and something other than these entries is wrong.
_REFUSED_LIMIT: Final = HEAD_LIMIT // 2
# What is wrong with one entry, and not with the call as such.
_ABOUT_ENTRIES: Final = frozenset(
    (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )
)
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
        "The queue does not exist (any more): check APIFY_RQ_ID and APIFY_API_BASE_URL, or set"
        " APIFY_RQ_NAME to have one made.",
    ),
}
_OTHER_CURE: Final = (
    "apify_rq_unavailable",
    "Check APIFY_API_BASE_URL, and what names the queue: APIFY_RQ_NAME or APIFY_RQ_ID.",
)


class _Complete:
    """JSON of pending entries by id, within limits, so that claiming them takes no further call."""

    def __init__(self) -> None:
        self._texts: dict[str, bytes] = {}
        self._size = 0

    def __contains__(self, id: str) -> bool:
        return id in self._texts

    def keep(self, id: str, text: bytes) -> bool:
        """False where there is no room: the oldest stay, since they are needed first."""
        self.pop(id)
        full = len(self._texts) >= _COMPLETE_LIMIT or self._size + len(text) > _COMPLETE_BYTES
        if not full:
            self._texts[id] = text
            self._size += len(text)
        return not full

    def pop(self, id: str) -> bytes | None:
        text = self._texts.pop(id, None)
        self._size -= len(text or b"")
        return text

    def clear(self) -> None:
        self._texts.clear()
        self._size = 0


class ApifyBackend:
    """One request queue of the platform; see ``Backend`` for the promises.

    ``count`` is called with the name of a stat at each event.
    """

    batch = MAX_BATCH
    parallel = 16
    # No endpoint takes several. More than there are connections would only wait for one.
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
        count: Callable[[str], None],
    ) -> None:
        self._client = Client(base_url, token, patience=patience, count=count)
        self._count = count
        self._id = id
        self._name = name
        self.lock_secs = lock_secs
        self._client_key = client_key or secrets.token_hex(16)
        self._queue: dict[str, Any] = {}
        self._fresh = False
        """``_queue`` is what the API has told just now."""
        self._alone: bool | None = None
        """Whether the API knows of no client but us; None before it has told."""
        self._forget()

    def _forget(self) -> None:
        """What is known of single entries."""
        self._complete = _Complete()
        self._listable = True
        """All pending entries fit into one list, as far as we know."""
        self._is_head_fresh = False
        """What was fetched last is pending, as the head has it."""
        self._refused: set[str] = set()
        """Ids of entries that the API would not let us update; never claimed again."""
        self._acked: dict[str, float] = {}
        """When the acks of late were confirmed; a head that lags shows their entries as pending."""
        self._stale = 0
        """How many of them the last head showed."""
        self._absent: dict[str, float] = {}
        """Since when ids on the head have had no entry."""
        self._stray_leases = False
        """An answer was lost, so that we may hold leases that we do not know of."""

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
        """The data that a call gives; its refusal concerns the whole queue."""
        return (await self._answer(name, method, path, **options)).data

    async def _answer(self, name: str, method: str, path: str, **options: Any) -> Answer:
        try:
            return await self._client.call(name, method, path, **options)
        except Refused as error:
            raise self._fatal(error) from None

    def _fatal(self, error: Refused) -> BackendError:
        reason, cure = _CURES.get(error.status, _OTHER_CURE)
        return BackendError(f"Request queue {self.location}: {error}. {cure}", reason)

    async def _call_queue(self, name: str, method: str, path: str = "", **options: Any) -> Any:
        return await self._call(name, method, self._path + path, **options)

    async def info(self) -> Info:
        if not self._fresh:  # opening has told it just now
            self._queue = await self._call_queue("queue_get", "GET", rate=OTHER_RATE)
        self._fresh = False
        queue = self._queue
        total, handled = queue["totalRequestCount"], queue["handledRequestCount"]
        # The platform's counters lag, each by its own time, and may even be negative.
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
            if new and first[id].handled_at is None:
                self._complete.keep(id, _with_id(id, texts[id]))
        return [
            answers[entry.id] if entry is first[entry.id] else _second(entry, answers[entry.id])
            for entry in entries
        ]

    async def _add_batch(
        self, batch: Sequence[Entry], texts: dict[str, bytes], forefront: bool
    ) -> dict[str, Added]:
        """Send until each entry is answered; what is unprocessed goes again, all in their order."""
        answers: dict[str, Added] = {}
        attempt = 0
        since = time.monotonic()
        while left := [entry for entry in batch if entry.id not in answers]:
            if attempt:
                self._count("apify_rq/api/unprocessed")
                problem = Passing(f"{len(left)} entries unprocessed", maybe_done=True)
                await self._client.back_off("requests_batch_add", problem, attempt - 1, since)
            try:
                data, maybe_repeated = await self._post_batch(left, texts, forefront)
            except Refused as error:
                return answers | await self._add_halves(left, texts, forefront, error)
            pairs = _added(data["processedRequests"], left)
            if attempt or maybe_repeated:
                added = await together(self._recognized(*pair) for pair in pairs)
            else:
                added = [answer for _, answer in pairs]
            answers |= {answer.id: answer for answer in added}
            attempt += 1
        return answers

    async def _recognized(self, entry: Entry, answer: Added) -> Added:
        """What an entry was before we first sent it, now that it was sent more than once.

        If it is there exactly as sent, then a call stored it whose answer was lost. (Or an earlier
        run stored the same; then nothing is lost by taking it for new.)
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
        """One entry that the API objects to refuses its whole batch: find it."""
        if error.status not in _ABOUT_ENTRIES:
            raise self._fatal(error) from None
        if len(batch) == 1:
            return {batch[0].id: _refusal(batch[0].id, f"the API refuses it: {error}")}
        middle = len(batch) // 2
        first = await self._add_batch(batch[:middle], texts, forefront)
        return first | await self._add_batch(batch[middle:], texts, forefront)

    # Claiming.

    async def claim(self, limit: int, known: Collection[str]) -> Claim:
        self._fresh = False
        if self.lock_secs is None:
            return await self._claim_unleased(limit, known)
        if self._stray_leases and not known:
            await self.unlock()
            self._stray_leases = False
        return await self._claim_leased(limit, self.lock_secs)

    async def _claim_leased(self, limit: int, lock_secs: int) -> Claim:
        calls = math.ceil(limit / LOCK_LIMIT)
        asked = min(limit, LOCK_LIMIT)
        # By our own clock, and from before the call: never later than the API has it.
        asked_at = time.time()
        query = {"limit": asked, "lockSecs": lock_secs, "clientKey": self._client_key}
        heads = await together(self._lock_head(query) for _ in range(calls))
        found = [item["id"] for head in heads for item in head["items"]]
        ids = [id for id in found if id not in self._refused]
        if len(ids) < len(found):
            await self.unlock(self._refused.intersection(found))
        # A head may lag, and another client's change be newer than what we have; a GET is exact.
        entries = await together(map(self.get, ids))
        lease = asked_at + min(lock_secs, *(head["lockSecs"] for head in heads))
        return Claim(
            [Claimed(entry, lease) for entry in entries if entry and _is_pending(entry)],
            more=len(ids) >= asked * calls,
            # Locks on nothing but what we may not update are no reason to wait.
            leased=bool(ids) or (not found and await self._is_any_leased(heads[0])),
        )

    async def _is_any_leased(self, empty_head: dict[str, Any]) -> bool:
        told: bool | None = empty_head.get("queueHasLockedRequests")  # optional in the description
        return (await self.info()).pending > 0 if told is None else told

    async def _lock_head(self, query: dict[str, Any]) -> Any:
        answer = await self._answer(
            "head_lock", "POST", f"{self._path}/head/lock", rate=BATCH_RATE, query=query
        )
        self._stray_leases = self._stray_leases or answer.maybe_repeated
        return answer.data

    async def _claim_unleased(self, limit: int, known: Collection[str]) -> Claim:
        self._forget_acked()
        unwanted = {*known, *self._refused} - self._acked.keys()
        # One more than wanted, to know whether there are more.
        asked = min(limit + len(unwanted) + 2 * self._stale + 1, HEAD_LIMIT)
        head = await self._call_queue(
            "head_get",
            "GET",
            "/head",
            rate=OTHER_RATE,
            query={"limit": asked, "clientKey": self._client_key},
        )
        others = self._note_clients(head["hadMultipleClients"])
        ids = [item["id"] for item in head["items"]]
        self._stale = sum(id in self._acked for id in ids)
        pending = [id for id in ids if id not in unwanted and id not in self._acked]
        first = self._first(pending[:limit])
        more = len(ids) >= asked or len(first) < len(pending)
        entries = await self._hydrate(first) if first else await self._put_back(ids)
        # An entry that cannot be read yet is pending all the same, but not one that is gone.
        now = time.monotonic()
        more = more or any(now - since < self.lag for since in self._absent.values())
        return Claim([Claimed(entry, None) for entry in entries], more, others=others)

    async def _put_back(self, ids: Sequence[str]) -> list[Entry]:
        """Those on the head that we have acked and others have made pending again since.

        For a while they look like those that the head shows only because it lags. Reading one by
        its id tells, and is worth it before the crawl ends for want of anything else to do.
        """
        before = time.monotonic() - self.consistency_delay
        shown = [id for id in ids if self._acked.get(id, before) < before]
        entries = await together(map(self.get, shown[:_FIRST_FETCH]))
        pending = [entry for entry in entries if entry is not None and _is_pending(entry)]
        for entry in pending:
            del self._acked[entry.id]
        return pending

    def _note_clients(self, several: bool) -> bool:
        """Whether somebody else has come; who was there before us may have left long ago."""
        came = several and self._alone is True
        self._alone = not several
        return came

    def _forget_acked(self) -> None:
        oldest = time.monotonic() - self.lag
        while self._acked:
            id = next(iter(self._acked))
            if self._acked[id] >= oldest:
                return
            del self._acked[id]

    def _first(self, ids: Sequence[str]) -> Sequence[str]:
        """Only so many that they can be fetched at once, at the start and while the head lags."""
        missing = [n for n, id in enumerate(ids) if id not in self._complete]
        if not self._is_head_fresh and len(missing) > _FIRST_FETCH:
            ids = ids[: missing[_FIRST_FETCH]]
        return ids

    async def _hydrate(self, ids: Sequence[str]) -> list[Entry]:
        """The complete entries, in this order; those not found yet, or handled, are left out."""
        missing = [id for id in ids if id not in self._complete]
        fits = self._listable and self._queue["pendingRequestCount"] <= LIST_LIMIT
        if len(missing) >= _LIST_FROM and fits:
            await self._list_pending()
            missing = [id for id in ids if id not in self._complete]
        fetched = dict(zip(missing, await together(map(self.get, missing)), strict=True))
        if missing:
            self._is_head_fresh = all(map(_is_pending, fetched.values()))
        now = time.monotonic()
        self._absent = {
            id: self._absent.get(id, now) for id, entry in fetched.items() if entry is None
        }
        entries: list[Entry] = []
        for n, id in enumerate(ids):
            entry = fetched.get(id)
            if entry is None and (text := self._complete.pop(id)) is not None:
                entry = Entry.from_json(id, text)
            if entry is not None and _is_pending(entry):
                entries.append(entry)
            if n % 100 == 99:
                await asyncio.sleep(0)
        return entries

    async def _list_pending(self) -> None:
        data = await self._call_queue(
            "requests_list",
            "GET",
            "/requests",
            rate=OTHER_RATE,
            query={"limit": LIST_LIMIT, "filter": "pending", "clientKey": self._client_key},
        )
        if data.get("nextCursor"):
            self._listable = False
        for n, item in enumerate(data["items"]):
            id = item["id"]
            # The list may lag: what we have of an entry is newer.
            if id in self._complete or id in self._acked:
                continue
            if not self._complete.keep(id, json.dumps(item).encode()):
                self._listable = False
            if n % 100 == 99:
                await asyncio.sleep(0)

    # Updating.

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[bool]:
        self._fresh = False
        if len(entries) == 1:  # as the frontier has it; a task costs more than the rest
            return [await self._put(entries[0], forefront)]
        return await together(self._put(entry, forefront) for entry in entries)

    async def _put(self, entry: Entry, forefront: bool) -> bool:
        text = _wire(entry)
        was_handled = False
        try:
            if len(text) > PAYLOAD_LIMIT:  # a server may cut the connection instead of saying so
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
        else:
            self._refused.discard(entry.id)
            was_handled = answer.data["wasAlreadyHandled"] and not answer.maybe_repeated
        self._acked.pop(entry.id, None)  # so that the oldest stay in front
        if entry.handled_at is None:
            self._complete.keep(entry.id, _with_id(entry.id, text))
        else:
            self._complete.pop(entry.id)
            self._acked[entry.id] = time.monotonic()
        return was_handled

    def _note_refused(self, entry: Entry, error: Refused) -> None:
        """The entry stays in the queue as it was, and this crawl goes on without it."""
        if error.status not in _ABOUT_ENTRIES:
            raise self._fatal(error) from None
        self._refused.add(entry.id)
        self._count("apify_rq/api/refused")
        logger.error(
            "The API refuses the update of entry %s (%s): %s. It stays pending and is crawled again"
            " by the next run",
            entry.id,
            entry.url[:500],
            error,
        )
        if len(self._refused) > _REFUSED_LIMIT:
            raise BackendError(
                f"The API has refused {len(self._refused)} updates, last: {error}. The log names"
                " the entries."
            )

    # Leases.

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        leases = await together(map(self._prolong, ids))
        return {id: lease for id, lease in zip(ids, leases, strict=True) if lease is not None}

    async def _prolong(self, id: str) -> float | None:
        asked_at = time.time()
        secs = self.lock_secs or 0
        return asked_at + secs if await self._call_lock("PUT", id, lockSecs=secs) else None

    async def _call_lock(self, method: str, id: str, **query: int) -> bool:
        """False if the lock is not ours (any more)."""
        try:
            await self._client.call(
                f"lock_{method.lower()}",
                method,
                f"{self._path}/requests/{quote(id, safe='')}/lock",
                rate=CRUD_RATE,
                query={**query, "clientKey": self._client_key},
            )
        except Refused as error:
            if error.status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND):
                raise self._fatal(error) from None
            return False
        return True

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        query = {"clientKey": self._client_key}
        if ids is None:
            path = "/requests/unlock"
            await self._call_queue("unlock", "POST", path, rate=OTHER_RATE, query=query)
        else:
            await together(self._call_lock("DELETE", id) for id in ids)

    # For the tools.

    async def find(self) -> bool:
        self._client.open()
        path = f"request-queues/{quote(self._id or f'~{self._name}', safe='~')}"
        try:
            answer = await self._client.call("queue_get", "GET", path, rate=OTHER_RATE)
        except Refused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise self._fatal(error) from None
        self._use(answer.data)
        return True

    async def names(self) -> Sequence[str]:
        query = {"limit": 50, "desc": "true"}
        path = "request-queues"
        data = await self._call("queues_list", "GET", path, rate=OTHER_RATE, query=query)
        return [queue["name"] for queue in data["items"] if queue.get("name")]

    async def purge(self) -> None:
        """The API cannot empty a queue: one that we go to by its name is deleted and made anew."""
        if self._name is None or self._id is not None:
            await self.delete([entry.id async for entry in self.list()])
        else:
            await self._delete_queue()
            await self._open_by_name(self._name)
        self._forget()

    async def _delete_queue(self) -> None:
        try:
            await self._client.call("queue_delete", "DELETE", self._path, rate=OTHER_RATE)
        except Refused as error:
            if error.status != HTTPStatus.NOT_FOUND:  # gone by a call whose answer was lost
                raise self._fatal(error) from None

    async def get(self, id: str) -> Entry | None:
        data = await self._get(id)
        return None if data is None else Entry.from_json(id, json.dumps(data))

    async def _get(self, id: str) -> Any:
        try:
            answer = await self._client.call(
                "request_get",
                "GET",
                f"{self._path}/requests/{quote(id, safe='')}",
                rate=CRUD_RATE,
            )
        except Refused as error:
            if error.status == HTTPStatus.NOT_FOUND:  # on the head, but not readable yet
                return None
            raise self._fatal(error) from None
        return answer.data

    async def list(self, state: State | None = None) -> AsyncIterator[Entry]:
        query: dict[str, Any] = {"limit": _FIRST_PAGE, "clientKey": self._client_key}
        if state in ("pending", "locked"):
            # The platform's "pending" leaves out what is locked, ours does not.
            query["filter"] = "pending,locked" if state == "pending" else "locked"
        while True:
            data = await self._call_queue(
                "requests_list", "GET", "/requests", rate=OTHER_RATE, query=query
            )
            for item in data["items"]:
                entry = Entry.from_json(item["id"], json.dumps(item))
                if _is_in(entry, state):
                    yield entry
            if not data.get("nextCursor"):
                return
            query |= {"cursor": data["nextCursor"], "limit": LIST_LIMIT}

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
        still = expires_at > datetime.now(timezone.utc)
        return Lock(data.get("lockByClient"), expires_at) if still else None

    async def delete(self, ids: Collection[str]) -> None:
        self._fresh = False
        left = list(dict.fromkeys(ids))
        while left:
            batch, left = left[:MAX_BATCH], left[MAX_BATCH:]
            await self._delete_batch(batch)
            for id in batch:
                self._complete.pop(id)

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
            problem = Passing(f"{len(batch)} entries unprocessed", maybe_done=True)
            await self._client.back_off("requests_batch_delete", problem, attempt, since)
            attempt += 1


def _wire(entry: Entry) -> bytes:
    """As sent: without the id, which the API derives and refuses to be told."""
    return entry.to_json(with_id=False).encode()


def _is_pending(entry: Entry | None) -> bool:
    return entry is not None and entry.handled_at is None


def _with_id(id: str, text: bytes) -> bytes:
    """As stored, from what was sent."""
    return b'{"id":"%s",%s' % (id.encode(), text[1:])


def _content(entry: Entry) -> Any:
    return json.loads(_wire(entry))


def _refusal(id: str, why: str) -> Added:
    return Added(id, False, False, refused=why)


def _second(entry: Entry, answer: Added) -> Added:
    """What an entry finds that comes twice in one call."""
    if answer.refused:
        return answer
    return Added(entry.id, True, answer.was_already_handled or entry.handled_at is not None)


def _added(items: Sequence[Any], sent: Sequence[Entry]) -> list[tuple[Entry, Added]]:
    """What the API says of the entries sent, each with its own."""
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
    """Cut into batches that the API takes, by the bytes that are sent."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        length = len(texts[entry.id]) + 1
        if batch and (size + length > PAYLOAD_LIMIT or len(batch) == MAX_BATCH):
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
