"""Access with leases, for several clients at one queue: the API locks the entries that we claim.

Nothing of an entry is kept here: another client may change every entry that we have no lease on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.api_models import LockedHead
from scrapy_apify_rq.backends.apify.endpoints import Endpoints
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.apify.reader import Reader
from scrapy_apify_rq.backends.base import Claim, Claimed
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.limits import MAX_BATCH


class SharedAccess:
    """Claims entries with leases of ``lock_secs``, prolongs the leases and ends them."""

    def __init__(self, api: Endpoints, *, lock_secs: int) -> None:
        self._api = api
        self._reader = Reader(api, memory=0)
        self._lock_secs = lock_secs
        self._kept: set[str] = set()
        """Entries that are left to others and that we hold all the same, so that a claim gets past
        them. They are given back as soon as nothing else is there.
        """
        self._has_strays = False
        """Whether an answer was lost, so that we may hold leases that we do not know about."""

    async def claim(
        self,
        limit: int,
        known: Collection[str],
        left: Collection[str],
        size: int,
        share: int | None,
    ) -> Claim:
        # The API locks the head of the queue: there is no choice among hosts.
        if self._has_strays and not known:
            await self.unlock()
            self._has_strays = False
        # Claim fewer than asked for if only these fit.
        limit = min(limit, max(self._reader.fit(size, unknown=limit), 1))
        # By our own clock, taken before the call: not later than the API's.
        asked_at = clock.now()
        heads = await self._lock_heads(limit)
        found = _ids(heads)
        while found and left and not (set(found) - set(left) or self._kept.issuperset(found)):
            # Kept locked for now, entries that are left to others do not come up again.
            self._kept.update(found)
            heads = await self._lock_heads(limit)
            found = _ids(heads)
        self._kept.update(id for id in found if id in left)
        ids = [id for id in found if id not in left]
        # A head may lag, and another client may have changed an entry since. A GET is exact.
        read = await self._reader.read(ids, size)
        if read.rest:
            await self.unlock(read.rest)
        kept = len(self._kept)
        if kept and not (known or ids):
            await self.unlock()
        lease = asked_at + min(self._lock_secs, *(head.lock_secs for head in heads))
        return Claim(
            [Claimed(entry, lease) for entry in read.entries],
            more=len(ids) >= limit or bool(read.rest),
            # While we keep some, nothing tells whether others hold any.
            leased=bool(ids) or (not kept and await self._is_any_leased(heads[0])),
            left=kept,
        )

    async def _lock_heads(self, limit: int) -> list[LockedHead]:
        return await run_all(
            self._lock_head(min(MAX_BATCH, limit - start)) for start in range(0, limit, MAX_BATCH)
        )

    async def _lock_head(self, limit: int) -> LockedHead:
        answer = await self._api.lock_head(limit, self._lock_secs)
        self._has_strays = self._has_strays or answer.maybe_repeated
        return answer.data

    async def _is_any_leased(self, empty_head: LockedHead) -> bool:
        if empty_head.queue_has_locked_requests is not None:
            return empty_head.queue_has_locked_requests
        await self._api.get_queue()
        return self._api.queue.pending_request_count > 0

    def leave(self, id: str) -> None:
        self._kept.add(id)

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        leases = await run_all(map(self._prolong, ids))
        return {id: lease for id, lease in zip(ids, leases, strict=True) if lease is not None}

    async def _prolong(self, id: str) -> float | None:
        lease = clock.now() + self._lock_secs
        return lease if await self._api.put_lock(id, self._lock_secs) else None

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        if ids is None:
            self._kept.clear()
            await self._api.unlock_requests()
        else:
            await run_all(map(self._api.delete_lock, ids))

    # The API itself ends the lease of an entry that is written or deleted.

    def wrote(self, entry: Entry, text: bytes) -> None: ...

    def acked(self, id: str) -> None: ...

    def deleted(self, ids: Iterable[str]) -> None: ...


def _ids(heads: list[LockedHead]) -> list[str]:
    return [item.id for head in heads for item in head.items]
