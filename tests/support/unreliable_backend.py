"""The embedded queue behind a bad network: it lags, refuses, loses answers and fails.

What is stored, in which order and by whom it is leased is the embedded queue's business. Here is
only how a client comes to see it, within what the ``Backend`` protocol allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from scrapy_apify_rq.backends.base import Added, Claim, Claimed, Info, Updated
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from tests.support.virtual_time import Clock

if TYPE_CHECKING:
    from tests.support.frontier_model import Model

Trouble = Literal["lose add", "lose update", "refuse add", "refuse update", "delay prolong"]
# Seconds, more than a lease of the tests lasts.
SLOW = 15.0


@dataclass
class Weather:
    """What happens to the next calls."""

    delays: list[float] = field(default_factory=lambda: [0.0])
    """Seconds on the way there and back, one after the other and over again."""
    lag: float = 0.0
    """How old the queue is that a claim shows."""
    troubles: set[Trouble] = field(default_factory=set)
    """Each happens once, to the next call that it fits."""
    failure: BaseException | None = None
    """What all calls raise."""
    hangs: bool = False
    """No call is answered."""

    async def pass_through(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        self.delays.append(self.delays.pop(0))
        if self.delays[-1]:
            await asyncio.sleep(self.delays[-1])

    def strikes(self, trouble: Trouble) -> bool:
        if trouble not in self.troubles:
            return False
        self.troubles.remove(trouble)
        return True


class History:
    """What was pending, and when."""

    def __init__(self, queue: SqliteBackend, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._past: list[tuple[float, dict[str, Entry]]] = [(0.0, {})]
        self.turn = asyncio.Lock()
        """Held by those who change the queue, and by those who look at it."""

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Change the queue within."""
        async with self.turn:
            yield
            await self.note()

    async def note(self) -> None:
        claim = await self._queue.claim(10_000, (), 2**40)
        self._past.append((self._clock.now, {entry.id: entry for entry, _ in claim.entries}))

    @property
    def now(self) -> dict[str, Entry]:
        return self._past[-1][1]

    def before(self, lag: float) -> dict[str, Entry]:
        """By id, the pending entries of so many seconds ago, in the queue's order."""
        if not lag:
            return self.now
        return next(old for at, old in reversed(self._past) if at <= self._clock.now - lag)


class UnreliableBackend(SqliteBackend):
    """One client of the queue.

    ``lags`` are the longest that the weather may bring, and for how long at most it hides what
    others have written, or an earlier run. ``batches`` are sizes and numbers of parallel calls, of
    adds and updates.
    """

    linger = 0.1

    def __init__(
        self,
        *args: Any,
        history: History,
        weather: Weather,
        model: Model,
        lags: tuple[float, float],
        batches: tuple[int, int, int, int],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.client_key = options["client_key"]
        self._history = history
        self._weather = weather
        self._model = model
        self.lag, self.consistency_delay = lags
        self.batch, self.parallel, self.update_batch, self.update_parallel = batches
        self.has_company = False
        """Other clients have used the queue."""
        self.refused: set[str] = set()
        """Ids of entries whose last update was refused."""
        self._ours: set[str] = set()
        """Ids of entries that this client has written."""

    @property
    def is_healthy(self) -> bool:
        """It answers, sooner or later."""
        return self._weather.failure is None and not self._weather.hangs

    async def info(self) -> Info:
        await self._weather.pass_through()
        pending = len(self._history.before(self._weather.lag))
        return (await super().info())._replace(pending=pending)

    async def get(self, id: str) -> Entry | None:
        await self._weather.pass_through()
        return await super().get(id)

    # Writing.

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        await self._weather.pass_through()
        refused = {entry.id for entry in entries if self._weather.strikes("refuse add")}
        kept = [entry for entry in entries if entry.id not in refused]
        answers = await self._store(kept, forefront=forefront)
        if self._weather.strikes("lose add"):
            await self._weather.pass_through()
            again = await self._store(kept, forefront=forefront)
            answers = [await self._recognize(*pair) for pair in zip(kept, again, strict=True)]
        await self._weather.pass_through()
        answers += [Added(id, False, False, refused="too large") for id in refused]
        by_id = {answer.id: answer for answer in answers}
        for id, answer in by_id.items():
            self._model.answered_add(id, is_refused=answer.refused is not None)
        return [by_id[entry.id] for entry in entries]

    async def _store(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        async with self._history.change():
            answers = await super().add(entries, forefront=forefront)
            for entry, answer in zip(entries, answers, strict=True):
                if not answer.was_already_present:
                    self._ours.add(entry.id)
                    self._model.put(entry.id, is_handled=False)
        return answers

    async def _recognize(self, entry: Entry, answer: Added) -> Added:
        """Of an entry sent twice: if it is there as it was sent, the first call has stored it."""
        if answer.was_already_handled:
            return answer
        return answer._replace(was_already_present=await super().get(entry.id) != entry)

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        for entry in entries:
            self._model.sends_update(entry.id)
        await self._weather.pass_through()
        refused = {entry.id for entry in entries if self._weather.strikes("refuse update")}
        self.refused = (self.refused - {entry.id for entry in entries}) | refused
        kept = [entry for entry in entries if entry.id not in refused]
        answers = await self._replace(kept, forefront=forefront)
        await self._weather.pass_through()
        by_id = {entry.id: answer for entry, answer in zip(kept, answers, strict=True)}
        by_id |= {id: Updated(was_handled=False, refused=True) for id in refused}
        for id in by_id:
            del self._model.unsaved_updates[id]
        return [by_id[entry.id] for entry in entries]

    async def _replace(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        async with self._history.change():
            answers = await super().update(entries, forefront=forefront)
            if self._weather.strikes("lose update"):
                # At once: a repeated update would end a lease that was given meanwhile, and the
                # entry would be crawled twice. Nobody can help that.
                await super().update(entries, forefront=forefront)
                answers = [Updated(was_handled=False) for _ in entries]
            for entry in entries:
                self._ours.add(entry.id)
                self._model.put(entry.id, is_handled=entry.is_handled)
        return answers

    # Claiming.

    async def claim(
        self, limit: int, known: Collection[str], size: int, share: int | None = None
    ) -> Claim:
        await self._weather.pass_through()
        async with self._history.turn:
            shown = self._shown()
            if self.lock_secs is None:
                claim = _cut([shown[id] for id in shown if id not in known], limit, size)
            else:
                # What it knows may come all the same.
                unseen = (self._history.now.keys() - shown.keys()) | self.refused
                claim = await super().claim(limit, unseen, size, share)
        await self._weather.pass_through()
        return claim._replace(others=self.has_company, alone=not self.has_company)

    def _shown(self) -> dict[str, Entry]:
        """The pending entries. What we have written may be shown as it was before."""
        now = self._history.now
        ours = self._history.before(self._weather.lag)
        others = self._history.before(min(self._weather.lag, self.consistency_delay))
        return {
            id: (ours if id in self._ours else now)[id].model_copy(deep=True)
            for id in ours | others
            if id in (ours if id in self._ours else now.keys() & others.keys())
            if id not in self.refused
        }

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        await self._weather.pass_through()
        if self._weather.strikes("delay prolong"):
            await asyncio.sleep(SLOW)
        leases = await super().prolong(ids)
        await self._weather.pass_through()
        return leases

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        await self._weather.pass_through()
        await super().unlock(ids)
        await self._weather.pass_through()


def _cut(entries: Sequence[Entry], limit: int, size: int) -> Claim:
    claimed: list[Claimed] = []
    for entry in entries[:limit]:
        size -= entry.size
        if claimed and size < 0:
            break
        claimed.append(Claimed(entry, None))
    return Claim(claimed, more=len(claimed) < len(entries))
