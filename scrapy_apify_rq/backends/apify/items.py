"""The saved items of a queue: those in one or more datasets that name it.

They are pushed to the dataset of the settings, of the run, or one with the queue's name. A record
for each dataset says that items of the queue are in it, and from where on:

    dataset/{id}   {"first": offset, "since": Unix time, "made": whether we have made it}

The number of an item tells its dataset, in the order in which they came, and its place in it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final

from pydantic import BaseModel, JsonValue, ValidationError

from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.feed_notes import FeedNotes
from scrapy_apify_rq.backends.apify.http import AnswerTooLong, Refused
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.apify.pushes import Pushes
from scrapy_apify_rq.backends.apify.records import Records
from scrapy_apify_rq.backends.apify.storages import Datasets, ItemPage
from scrapy_apify_rq.backends.apify.valid_items import ValidItems
from scrapy_apify_rq.backends.apify.wire import too_long
from scrapy_apify_rq.backends.base import EntryItems, LooseItems, SavedItem
from scrapy_apify_rq.entries.dataset_form import (
    FIELD,
    About,
    about_item,
    from_dataset,
    make_valid,
    to_dataset,
    turn_name,
    valid_turns,
)
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.records import owner_of
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import is_id

logger = logging.getLogger(__name__)

_RECORD: Final = "dataset/"
# Items of one page of a list: at first, and at most; characters that it should have.
_FIRST_PAGE: Final = 100
_LONGEST_PAGE: Final = 1000
_PAGE_SIZE: Final = 512 * 1024
# Seconds for which items may be read before other work gets its turn.
_TURN: Final = 0.005
# Entries that are looked at together.
_PARALLEL: Final = 64
# A dataset's index in the number of an item, above the place in it.
_PLACE_BITS: Final = 40


class _Part(BaseModel):
    """A dataset."""

    id: str = ""
    first: int = 0
    since: float
    made: bool = False


class _Turns:
    """The visits whose items are saved and whose updates are not confirmed, numbered."""

    def __init__(self) -> None:
        self._made = 0
        self._open: dict[int, None] = {}
        self._of_entry: dict[str, tuple[int, str | None, int]] = {}
        """Of each entry its turn, its spill, and how many of its items were sent."""

    def place(self, entry: str, spill: str | None, count: int) -> tuple[int, int]:
        """Return the turn of these items of an entry, and how many it has had before."""
        turn, of_spill, before = self._of_entry.get(entry, (0, None, 0))
        if spill is None or spill != of_spill:
            self._made += 1
            turn, before = self._made, 0
            self._open[turn] = None
        self._of_entry[entry] = turn, spill, before + count
        return turn, before

    def end(self, entry: str) -> None:
        """The update of the entry is confirmed."""
        if (place := self._of_entry.pop(entry, None)) is not None:
            self._open.pop(place[0], None)

    @property
    def done(self) -> int:
        """The first turn whose update is not confirmed."""
        return next(iter(self._open), self._made + 1)


class DatasetItems(FeedNotes):
    """``ItemStore`` says what each public method promises.

    ``wanted`` is the id or name of a dataset. ``client`` is None in single access.
    """

    def __init__(
        self,
        datasets: Datasets,
        records: Records,
        api: Endpoints,
        *,
        wanted: str | None,
        client: str | None,
        inc_stat: Callable[[str], None],
    ) -> None:
        super().__init__(records, client or "")
        self._client = owner_of(client) if client else ""
        self._datasets = datasets
        self._records = records
        self._api = api
        self._wanted = wanted
        self._inc_stat = inc_stat
        self._run = secrets.token_hex(6)
        self._turns = _Turns()
        self._pushes = Pushes(self._push)
        self._opening = asyncio.Lock()
        self._dataset: str | None = None
        """The id of the one that we push to, once we have."""
        self._known = 0
        """How many items it holds that may be ours."""
        self._has_logged_refusal = False
        self._index: tuple[int, ValidItems] | None = None

    def close(self) -> None:
        if self._index is not None:
            self._index[1].close()
            self._index = None

    # Saving.

    async def add(self, entries: Sequence[Entry], items: Mapping[str, EntryItems]) -> None:
        """Save the items of requests before they are updated, which makes them valid."""
        lines: list[bytes] = []
        for entry in entries:
            if (found := items.get(entry.id)) is not None:
                turn, before = self._turns.place(entry.id, found.spill, len(found.texts))
                # A requeue has counted the try already.
                retry = entry.retry_count - (not entry.is_handled)
                make_valid(entry, retry, turn_name(self._run, turn))
                lines += self._lines(
                    found.texts, entry=entry.id, retry=retry, turn=turn, number=before
                )
        if lines:
            await self._pushes.push(lines)

    def confirm(self, ids: Iterable[str]) -> None:
        """The updates of these entries, with their items, are confirmed."""
        for id in ids:
            self._turns.end(id)

    async def save(self, batches: Sequence[LooseItems]) -> None:
        lines: list[bytes] = []
        for texts, key, entry, retry in batches:
            if entry is None:
                lines += self._lines(texts, key=key, number=0)
            else:
                turn, before = self._turns.place(entry, key, len(texts))
                lines += self._lines(texts, entry=entry, retry=retry, turn=turn, number=before)
        if lines:
            await self._pushes.push(lines)

    def _lines(self, texts: Sequence[str], *, number: int, **about: Any) -> Iterator[bytes]:
        done = self._turns.done if "turn" in about else 0
        about |= {"queue": self._api.queue.id, "run": self._run, "client": self._client}
        for text in texts:
            yield to_dataset(text, About(done=done, number=number, **about))
            number += 1

    async def _push(self, items: Sequence[bytes]) -> None:
        dataset = await self._open()
        try:
            if len(items) == 1 and (why := too_long(items[0])):
                raise Refused(413, why)
            await self._datasets.push(dataset, items)
        except Refused as error:
            if len(items) == 1:
                self._note_refused(error)
                return
            middle = len(items) // 2
            await self._push(items[:middle])
            await self._push(items[middle:])
        else:
            self._known += len(items)

    def _note_refused(self, error: Refused) -> None:
        self._inc_stat("apify_rq/items_unsaved")
        if not self._has_logged_refusal:
            self._has_logged_refusal = True
            logger.warning(
                "The dataset does not take an item: %s. It is exported as ever, but a kill may lose"
                " it. If the dataset has a schema, that must allow the field %s. No more of these"
                " are logged; see the stat apify_rq/items_unsaved",
                error,
                FIELD,
            )

    async def _open(self) -> str:
        """Get or create the dataset to push to, and note it. Return its id."""
        async with self._opening:
            if self._dataset is None:
                found, made = await self._get_or_create()
                name = _RECORD + found.id
                known = (await self._records.load(name)).get(name)
                part = _part(name, known) if known else _Part(since=time.time(), made=made)
                if known is None:
                    await self._records.save({name: part.model_dump_json(exclude={"id"}).encode()})
                self._known += max(found.item_count - part.first, 0)
                self._dataset = found.id
        return self._dataset

    async def _get_or_create(self) -> tuple[Any, bool]:
        """The dataset, and whether it is one that only we use."""
        wanted = self._wanted
        if wanted is None:
            name = self._api.queue.name or self._api.queue.id
            found = await self._datasets.find(f"~{name}")
            return found or await self._datasets.get_or_create(name), found is None
        if "~" in wanted or is_id(wanted):
            found = await self._datasets.find(wanted)
            if found is not None:
                return found, False
            if "~" in wanted:
                raise BackendError(
                    f"APIFY_RQ_DATASET is {wanted!r}, which does not exist. Create it, or set a"
                    " name without ~: that dataset is created when it is needed.",
                    "apify_rq_items",
                )
        return await self._datasets.get_or_create(wanted), False

    # Reading.

    async def _parts(self) -> list[_Part]:
        notes = await self._records.load(_RECORD)
        return sorted((_part(*note) for note in notes.items()), key=lambda part: part.since)

    async def read(self, after: int = 0, *, own: bool = False) -> AsyncIterator[SavedItem]:
        """With ``own`` only those of earlier runs."""
        valid = await self._scan(after)
        self._index = None
        try:
            valid.settle(await self._valid_turns(valid.open_entries()))
            async for number, item, about in self._list(after, brief=False):
                is_wanted = not own or (about.run != self._run and about.client == self._client)
                if is_wanted and valid.counts(about):
                    key = about.key or f"{about.entry}:{about.retry}"
                    text = from_dataset(item, about)
                    yield SavedItem(number, about.entry, f"{key}:{about.number}", text)
        finally:
            valid.close()

    async def _scan(self, after: int) -> ValidItems:
        if self._index is not None and self._index[0] == after:
            return self._index[1]
        valid = ValidItems()
        async for _, _, about in self._list(after, brief=True):
            valid.note(about)
        self.close()
        self._index = after, valid
        return valid

    async def _valid_turns(self, ids: Collection[str]) -> dict[str, dict[str, str] | None]:
        """What these entries name, None for one that does not exist. Read one by one: a list may
        lag.
        """
        left, found = list(ids), dict[str, dict[str, str] | None]()
        for start in range(0, len(left), _PARALLEL):
            part = left[start : start + _PARALLEL]
            entries = await run_all(map(self._api.get_request, part))
            for id, entry in zip(part, entries, strict=True):
                found[id] = None if entry is None else valid_turns(entry)
        return found

    async def _list(
        self, after: int, *, brief: bool
    ) -> AsyncIterator[tuple[int, Mapping[str, JsonValue], About]]:
        """Yield the items of this queue, in the order of their numbers."""
        queue, turn_ends = self._api.queue.id, time.monotonic() + _TURN
        for index, part in enumerate(await self._parts()):
            base = index << _PLACE_BITS
            place = max(part.first, after - base)
            limit = _LONGEST_PAGE if brief else _FIRST_PAGE
            while (page := await self._page(part.id, place, limit, brief=brief)).items:
                for item in page.items:
                    place += 1
                    about = about_item(item)
                    if about is not None and about.queue == queue:
                        yield base + place, item, about
                    if time.monotonic() > turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = time.monotonic() + _TURN
                fitting = _PAGE_SIZE * len(page.items) // page.size
                limit = min(max(fitting, 1), _LONGEST_PAGE)

    async def _page(self, id: str, place: int, limit: int, *, brief: bool) -> ItemPage:
        while True:
            try:
                return await self._datasets.page(id, place, limit, brief=brief)
            except AnswerTooLong as error:
                if limit == 1:
                    raise BackendError(f"datasets/{id}: {error}.", "apify_rq_items") from None
                limit = max(limit // 10, 1)

    async def count(self) -> int:
        """How many there are, with those that are there twice, and those of others."""
        total = 0
        for part in await self._parts():
            if part.id == self._dataset and not self._client:
                total += self._known
            elif (found := await self._datasets.find(part.id)) is not None:
                total += max(found.item_count - part.first, 0)
        return total

    async def last(self) -> int:
        parts = await self._parts()
        return ((len(parts) - 1) << _PLACE_BITS) + await self._length(parts[-1]) if parts else 0

    async def _length(self, part: _Part) -> int:
        found = await self._datasets.find(part.id)
        length = part.first if found is None else max(found.item_count, part.first)
        # The count lags.
        while page := (await self._page(part.id, length, _LONGEST_PAGE, brief=True)).items:
            length += len(page)
        return length

    async def keys(self, after: int) -> set[str]:
        return (await self._scan(after)).keys

    async def discard_spilled(self) -> None:
        pass  # what was sent ahead counts only if the queue says so

    # The end of all of them.

    async def forget(self) -> dict[str, bytes]:
        """Delete the datasets that only we have used. Return what has to be noted about others:
        that their items are not the queue's any more.
        """
        notes: dict[str, bytes] = {}
        for part in await self._parts():
            if part.made:
                await self._datasets.delete(part.id)
            else:
                rest = part.model_copy(update={"first": await self._length(part)})
                notes[_RECORD + part.id] = rest.model_dump_json(exclude={"id"}).encode()
        self._dataset, self._known = None, 0
        return notes


def _part(name: str, text: bytes) -> _Part:
    id = name.removeprefix(_RECORD)
    try:
        return _Part.model_validate_json(text).model_copy(update={"id": id})
    except ValidationError as error:
        raise BackendError(f"The record {name} is not ours: {error}") from error
