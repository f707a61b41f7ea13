"""Adds and deletes, which the API takes in batches and sometimes does only in part.

An answer can leave entries of a batch unprocessed, it can get lost, and one bad entry makes the API
refuse its whole batch. Here each entry of a batch gets an answer all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from typing import Final

from scrapy_apify_rq.backends.api_models import Registered
from scrapy_apify_rq.backends.apify import wire
from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.http import Refused
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.limits import MAX_BATCH

# Batches that are deleted at a time: enough for the rate at 0.4 seconds a call.
_PARALLEL: Final = 16
# Enough for a second, in which the next page of a list comes.
_BATCHES_AHEAD: Final = 40


class Adding:
    """One call of ``Backend.add``."""

    def __init__(
        self,
        api: Endpoints,
        entries: Sequence[Entry],
        *,
        forefront: bool,
        inc_stat: Callable[[str], None],
    ) -> None:
        self._api = api
        self._entries = entries
        self._forefront = forefront
        self._inc_stat = inc_stat
        self._first: dict[str, Entry] = {}
        """The entries to send: the first of each id."""
        for entry in entries:
            self._first.setdefault(entry.id, entry)
        self._texts = {id: wire.to_send(entry) for id, entry in self._first.items()}
        self._answers: dict[str, Added] = {}

    async def run(self) -> list[Added]:
        """Send the entries, and return an answer for each in the same order."""
        for id, text in self._texts.items():
            if why := wire.too_long(text):
                self._answers[id] = _refusal(id, why)
        for batch in self._batches():
            await self._send(batch)
        return [self._answer(entry) for entry in self._entries]

    def new(self) -> Iterator[tuple[Entry, bytes]]:
        """The stored JSON of each pending entry that the queue did not have before."""
        for id, answer in self._answers.items():
            is_new = not (answer.was_already_present or answer.refused)
            if is_new and not self._first[id].is_handled:
                yield self._first[id], wire.as_stored(id, self._texts[id])

    def _answer(self, entry: Entry) -> Added:
        answer = self._answers[entry.id]
        if entry is self._first[entry.id] or answer.refused:
            return answer
        # Its id came before in the same call.
        return Added(entry.id, True, answer.was_already_handled or entry.is_handled)

    def _batches(self) -> Iterator[Sequence[Entry]]:
        """Cut the entries into batches of no more bytes than the API takes."""
        batch: list[Entry] = []
        size = 0
        for entry in self._first.values():
            if entry.id in self._answers:
                continue
            length = len(self._texts[entry.id]) + 1
            if batch and size + length > wire.PAYLOAD_LIMIT:
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += length
        if batch:
            yield batch

    async def _send(self, batch: Sequence[Entry]) -> None:
        """Send the batch, and the unprocessed entries again until each one is answered."""
        attempt = 0
        since = time.monotonic()
        while left := [entry for entry in batch if entry.id not in self._answers]:
            if attempt:
                self._inc_stat("apify_rq/api/unprocessed")
                await self._api.wait_for_unprocessed(
                    "requests_batch_add", len(left), attempt - 1, since
                )
            texts = (self._texts[entry.id] for entry in left)
            try:
                added, maybe_repeated = await self._api.add_requests(
                    texts, forefront=self._forefront
                )
            except Refused as error:
                await self._send_halves(left, error)
                return
            pairs = _processed(left, added.processed_requests)
            if attempt or maybe_repeated:
                processed = await run_all(self._recognized(*pair) for pair in pairs)
            else:
                processed = [answer for _, answer in pairs]
            self._answers |= {answer.id: answer for answer in processed}
            attempt += 1

    async def _send_halves(self, batch: Sequence[Entry], error: Refused) -> None:
        """Find the entry for which the API refuses the whole batch, and add the others."""
        if len(batch) == 1:
            id = batch[0].id
            self._answers[id] = _refusal(id, f"the API refuses it: {error}")
            return
        middle = len(batch) // 2
        await self._send(batch[:middle])
        await self._send(batch[middle:])

    async def _recognized(self, entry: Entry, answer: Added) -> Added:
        """Find out whether an entry that we sent more than once was there before.

        If the stored entry is exactly the one we sent, then a call stored it whose answer was lost.
        (Or an earlier run stored the same entry. Taking that one for new loses nothing.)
        """
        if not answer.was_already_present or answer.was_already_handled:
            return answer
        stored = await self._api.get_request(entry.id)
        if stored is None:
            return answer
        return answer._replace(was_already_present=wire.content(stored) != wire.content(entry))


async def delete_all(api: Endpoints, ids: AsyncIterable[str]) -> None:
    """Delete these entries. The next ids are read while batches are on their way."""
    batches: asyncio.Queue[list[str]] = asyncio.Queue(_BATCHES_AHEAD)

    async def read() -> None:
        batch: list[str] = []
        async for id in ids:
            batch.append(id)
            if len(batch) == MAX_BATCH:
                await batches.put(batch)
                batch = []
        if batch:
            await batches.put(batch)
        for _ in range(_PARALLEL):
            await batches.put([])

    async def delete() -> None:
        while batch := await batches.get():
            await _delete_batch(api, batch)

    await run_all([read(), *(delete() for _ in range(_PARALLEL))])


async def _delete_batch(api: Endpoints, ids: Sequence[str]) -> None:
    """Delete the entries, and the unprocessed ones again until none is left."""
    attempt = 0
    since = time.monotonic()
    while True:
        deleted = await api.delete_requests(ids)
        unprocessed = {
            item.id or request_id(item.unique_key or "") for item in deleted.unprocessed_requests
        }
        ids = [id for id in ids if id in unprocessed]
        if not ids:
            return
        await api.wait_for_unprocessed("requests_batch_delete", len(ids), attempt, since)
        attempt += 1


def _refusal(id: str, why: str) -> Added:
    return Added(id, False, False, refused=why)


def _processed(sent: Sequence[Entry], answers: Sequence[Registered]) -> list[tuple[Entry, Added]]:
    """Pair the entries that the API has processed with its answers."""
    by_id = {answer.request_id: answer for answer in answers}
    return [
        (entry, Added(entry.id, answer.was_already_present, answer.was_already_handled))
        for entry in sent
        if (answer := by_id.get(entry.id)) is not None
    ]
