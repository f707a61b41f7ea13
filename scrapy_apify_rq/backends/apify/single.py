"""Access without leases, for the only client of a queue: reads the head of the API's queue.

The head lists ids in the queue's order. It may be seconds behind our writes and says little about
an entry. So this module remembers pending entries in full, which saves a call for each, and which
entries were acked lately, which the head may still show as pending.

The head shows 1,000 entries, which may all be of one host. Then hosts are chosen among the entries
that are remembered, too.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from scrapy_apify_rq.backends.apify.backlog import Backlog
from scrapy_apify_rq.backends.apify.endpoints import HEAD_LIMIT, Endpoints
from scrapy_apify_rq.backends.apify.reader import Reader
from scrapy_apify_rq.backends.base import Claim, Claimed
from scrapy_apify_rq.backends.fairness import choose_fairly
from scrapy_apify_rq.entries.hosts import host, host_of
from scrapy_apify_rq.entries.models import Entry

# The most entries that the first claim fetches. The first pages then need not wait for a long list,
# and we learn whether the head lags: a GET by id does not, and a list may lag like the head.
_FIRST_FETCH: Final = 16


@dataclass(slots=True)
class _View:
    """What the API shows of the queue."""

    ids: list[str]
    """The head."""
    wanted: list[str]
    """Pending entries that can be claimed."""
    hosts: dict[str, str]
    more: bool
    """Others are pending."""
    others: bool
    """Another client has come."""
    listed: dict[str, Entry] = field(default_factory=dict)
    """Wanted entries that are here already."""


class SingleAccess:
    """Claims entries without leases. ``Backend`` says what lag and consistency delay are.

    ``memory`` is how many bytes of entries are kept complete.
    """

    def __init__(
        self, api: Endpoints, memory: int, *, lag: float, consistency_delay: float
    ) -> None:
        self._api = api
        self._reader = reader = Reader(api, memory)
        self._lag = lag
        self._consistency_delay = consistency_delay
        self._complete = reader.complete
        self._backlog = Backlog(reader)
        self._hosts: dict[str, str] = {}
        """By id, of the entries that the last claim could choose from, and of those it knew."""
        self._is_fresh = False
        """Whether the entries fetched last were pending, as the head said."""
        self._acked: OrderedDict[str, float] = OrderedDict()
        """When recent acks were confirmed, or seen. A head that lags still lists these entries."""
        self._stale = 0
        """How many recently acked entries the last head listed."""
        self._absent: dict[str, float] = {}
        """Since when the head has listed ids that do not exist."""
        self._alone: bool | None = None
        """Whether the API knows of no other client; None before the first answer."""

    def leave(self, id: str) -> None: ...

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        return {}  # we take no leases

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        if ids is None:  # a run in shared access may have left some in our name
            await self._api.unlock_requests()

    def wrote(self, entry: Entry, text: bytes) -> None:
        self._acked.pop(entry.id, None)
        self._complete.keep(entry, text)

    def acked(self, id: str) -> None:
        self._complete.drop(id)
        self._acked[id] = time.monotonic()
        self._acked.move_to_end(id)
        self._forget_acked()  # here too: a small queue may never be claimed from again

    def deleted(self, ids: Iterable[str]) -> None:
        for id in ids:
            self._complete.drop(id)

    async def claim(
        self,
        limit: int,
        known: Collection[str],
        left: Collection[str],
        size: int,
        share: int | None,
    ) -> Claim:
        self._forget_acked()
        view = await self._look(limit, known, left, size)
        chosen = view.wanted[:limit]
        if share is not None:
            chosen = self._choose(view, limit, known, {*left}, share)
        first = self._first(chosen)
        if first:
            fitting = first[: self._reader.fit(size, unknown=limit)]
            view.listed |= await self._backlog.read(fitting, view.ids, set(view.wanted))
            entries, is_cut = await self._read(first, size, view.listed)
        else:
            # With nothing known the crawl would end, so its latest acks are worth a look, too.
            age = self._consistency_delay if known else 0
            entries, is_cut = await self._requeued_by_others(view.ids, age, size)
        is_expected = any(map(self._may_exist, self._absent))
        self._hosts |= {entry.id: host_of(entry) for entry in entries}
        return Claim(
            [Claimed(entry, None) for entry in entries],
            view.more or len(first) < len(view.wanted) or is_cut or is_expected,
            others=view.others,
            alone=self._alone is True,
        )

    async def _look(
        self, limit: int, known: Collection[str], left: Collection[str], size: int
    ) -> _View:
        unwanted = {*known, *left} - self._acked.keys()
        # One more than wanted, to know whether there are more.
        asked = min(limit + len(unwanted) + 2 * self._stale + 1, HEAD_LIMIT)
        head = await self._api.get_head(asked)
        ids = [item.id for item in head.items]
        self._stale = sum(id in self._acked for id in ids)
        wanted = [id for id in ids if id not in unwanted and id not in self._acked]
        if self._absent:
            # What is not there comes last, or much of it would hide the rest.
            self._absent = {id: self._absent[id] for id in wanted if id in self._absent}
            wanted = sorted(filter(self._may_exist, wanted), key=self._absent.__contains__)
        view = _View(
            ids,
            wanted=wanted,
            hosts={item.id: host(item.url, None) for item in head.items},
            more=len(ids) >= asked,
            others=self._note_clients(head.had_multiple_clients),
        )
        if left and not view.wanted and len(ids) == HEAD_LIMIT:
            view.listed = await self._beyond_the_head(limit + 1, size, unwanted)
            view.hosts = {id: host_of(entry) for id, entry in view.listed.items()}
            view.wanted = [*view.listed]
            view.more = False  # the list says how many there are
        return view

    async def _beyond_the_head(
        self, most: int, size: int, unwanted: Collection[str]
    ) -> dict[str, Entry]:
        """Find pending entries behind so many unwanted ones that the head shows nothing else.

        Return them by their ids, in order, and one more than fits if there is one.
        """
        found: dict[str, Entry] = {}
        async with aclosing(self._reader.list("pending")) as stored:
            async for entry in stored:
                if entry.id not in unwanted and entry.id not in self._acked:
                    found[entry.id] = entry
                    size -= entry.size
                    if len(found) == most or (size < 0 and len(found) > 1):
                        break
        return found

    def _choose(
        self,
        view: _View,
        limit: int,
        known: Collection[str],
        left: Collection[str],
        share: int,
    ) -> list[str]:
        """Choose by host, and return the chosen ones in the order of the candidates."""
        # A head that is not full shows all there is.
        candidates = [*view.wanted, *self._complete.hosts] if view.more else view.wanted
        # Remember the hosts of what is known or can be claimed, and no others.
        known_hosts = {id: self._hosts[id] for id in known if id in self._hosts}
        self._hosts = {**view.hosts, **known_hosts, **self._complete.hosts}
        lines: defaultdict[str, dict[str, None]] = defaultdict(dict)  # a set that keeps its order
        for id in known:
            if id in self._hosts:
                lines[self._hosts[id]][id] = None
        places: dict[str, int] = {}
        for id in candidates:
            if id not in left and id not in self._acked:
                lines[self._hosts[id]][id] = None
                places.setdefault(id, len(places))
        chosen, _ = choose_fairly(
            map(iter, lines.values()), limit, share, lambda id: id not in known
        )
        return sorted(chosen, key=places.__getitem__)

    def _forget_acked(self) -> None:
        """Drop ids whose ack is older than the lag."""
        oldest = time.monotonic() - self._lag
        while self._acked and self._acked[id := next(iter(self._acked))] < oldest:
            del self._acked[id]

    def _may_exist(self, id: str) -> bool:
        """Whether it is not known to be deleted: one that does not exist yet may be a new one."""
        return time.monotonic() - self._absent.get(id, math.inf) < self._lag

    def _note_clients(self, several: bool) -> bool:
        """Return True if another client has come. One that was there before us may have left."""
        has_come = several and self._alone is True
        self._alone = not several
        return has_come

    async def _requeued_by_others(
        self, ids: Sequence[str], age: float, size: int
    ) -> tuple[list[Entry], bool]:
        """Read entries that we acked ``age`` seconds ago and that others have made pending again.

        The head lists them like those that it lists only because it lags. A GET tells them apart.
        """
        before = time.monotonic() - age
        listed = [id for id in ids if self._acked.get(id, before) < before]
        read = await self._reader.read(listed[:_FIRST_FETCH], size)
        for entry in read.entries:
            self._acked.pop(entry.id, None)
        return read.entries, bool(read.rest)

    def _first(self, ids: Sequence[str]) -> Sequence[str]:
        """At the start and while the head lags: no more than can be fetched at once."""
        missing = [n for n, id in enumerate(ids) if id not in self._complete]
        if not self._is_fresh and len(missing) > _FIRST_FETCH:
            ids = ids[: missing[_FIRST_FETCH]]
        return ids

    async def _read(
        self, ids: Sequence[str], size: int, listed: Mapping[str, Entry]
    ) -> tuple[list[Entry], bool]:
        """Read the pending ones of these entries; True if there was no room for all of them."""
        read = await self._reader.read(ids, size, listed)
        for id in read.rest:
            if id in listed:
                self._complete.keep(listed[id])
        if read.fetched:
            self._is_fresh = not (read.absent or read.handled)
        now = time.monotonic()
        self._acked |= dict.fromkeys(read.handled, now)
        for id in [entry.id for entry in read.entries] + read.handled:
            self._absent.pop(id, None)
        for id in read.absent:
            self._absent.setdefault(id, now)
        return read.entries, bool(read.rest)
