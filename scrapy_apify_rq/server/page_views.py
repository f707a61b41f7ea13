"""What the page shows of a queue: numbers, a history, lists, failures, an entry, an export."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Final

from aiohttp import hdrs, web

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.item_lines import line
from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.backends.sqlite.survey import Survey
from scrapy_apify_rq.entries.models import Entry, in_utc
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.server.answers import answer, body_of, date, full
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.errors import not_found
from scrapy_apify_rq.server.parameters import Count, Parameters, up_to
from scrapy_apify_rq.server.project import Project
from scrapy_apify_rq.server.search import Filter, Place, Shown, Slice, as_listed

_MOST_WORKERS: Final = 200
# Entries from which the history of a queue is estimated, and points of the curve.
_SAMPLE: Final = 2000
_POINTS: Final = 120
# Seconds of reading for it: an entry can have 9 MB.
_PATIENCE: Final = 0.1
# Messages that contain their page's URL are all different. The page adds up slices.
_MOST_GROUPS: Final = 200
# Items that an entry shows.
_MOST_ITEMS: Final = 50
_ENTRIES_PER_TURN: Final = 100


class _Search(Filter, Parameters):
    limit: Annotated[Count, up_to(100)] = 50


class _After(Parameters):
    after: Place | None = None


class Views:
    def __init__(self, store: Store, project: Project) -> None:
        self._store = store
        self._project = project

    async def overview(self, call: Call) -> web.Response:
        numbers = await self._store.read(lambda survey: survey.numbers(call.key))
        workers = await self._store.read(lambda survey: survey.workers(call.key, _MOST_WORKERS))
        record = await self._store.get(call.key)
        occupant = await self._store.occupant(call.key)
        return answer(
            {
                "id": record.id,
                "name": record.name,
                "title": record.title,
                "createdAt": date(record.created_at),
                "modifiedAt": date(record.modified_at),
                "now": date(clock.now()),
                "total": record.total,
                "handled": record.handled,
                "pending": record.total - record.handled,
                **numbers._asdict(),
                "lastCrawl": occupant
                and {"pid": occupant.pid, "host": occupant.host, "since": date(occupant.since)},
                "workers": [
                    {
                        "clientKey": worker.client_key,
                        "leases": worker.leases,
                        "takenAt": worker.taken_at and date(worker.taken_at),
                        "firstEnd": date(worker.first_end),
                        "lastEnd": date(worker.last_end),
                    }
                    for worker in workers
                ],
            }
        )

    async def history(self, call: Call) -> web.Response:
        """How many entries were handled, and how many failed, until when: of all entries of a
        small queue, and estimated from a sample of a large one.
        """
        record = await self._store.get(call.key)
        numbers = await self._store.read(lambda survey: survey.numbers(call.key))
        sample = await self._store.read(lambda survey: _times(survey, call.key, failed=False))
        failed = [at for at, is_failed in sample if is_failed]
        if numbers.failed <= _SAMPLE:
            await asyncio.sleep(0)
            all_failed = await self._store.read(
                lambda survey: _times(survey, call.key, failed=True)
            )
            failed = [at for at, _ in all_failed]
        return answer(
            {
                "handled": _curve([at for at, _ in sample], record.handled),
                "failed": _curve(failed, numbers.failed),
                "isEstimate": record.total > _SAMPLE,
            }
        )

    async def entries(self, call: Call) -> web.Response:
        asked = _Search.read(call.request)
        found: list[dict[str, Any]] = []
        part = Slice(self._store.survey, call.key, asked, asked.limit)

        def search(_: Survey) -> None:
            found.clear()
            part.run(lambda row, shown: found.append(as_listed(row, shown)))

        await self._store.read(search)
        return answer({"items": found, "scanned": part.scanned, "next": part.next})

    async def failures(self, call: Call) -> web.Response:
        """Some of the failed entries, grouped by their last messages."""
        groups: dict[str, dict[str, Any]] = {}
        wanted = Filter(state="failed", after=_After.read(call.request).after)
        part = Slice(self._store.survey, call.key, wanted, None)

        def group(row: Any, shown: Shown) -> None:
            message = shown.message
            known = len(groups) < _MOST_GROUPS or message in groups
            one = groups.setdefault(
                message if known else "",
                {"message": message if known else None, "count": 0, **_example(row, shown)},
            )
            one["count"] += 1

        def search(_: Survey) -> None:
            groups.clear()
            part.run(group)

        await self._store.read(search)
        return answer({"groups": list(groups.values()), "scanned": part.scanned, "next": part.next})

    async def entry(self, call: Call) -> web.Response:
        """The request that the spider would get, and the items of the entry."""
        row = await call.queue.row(call.id)
        if row is None:
            raise not_found("Request")
        data: dict[str, Any] = {"items": await self._items(call.key, call.id)}
        try:
            entry = Entry.from_json(row.id, row.json)
            data["request"] = self._project.as_request(call.record.name, entry)
        except CodecError as error:
            data["undecodable"] = str(error)
        return answer(data)

    async def _items(self, key: int, entry: str) -> list[str]:
        lines: list[str] = []
        after: int | None = 0
        while after is not None and len(lines) < _MOST_ITEMS:
            texts, after = await self._store.read(
                lambda survey, after=after: survey.items_of(key, entry, after)  # type: ignore[misc]
            )
            lines += [one for text in texts for one in text.split("\n")]
            await asyncio.sleep(0)
        return lines[:_MOST_ITEMS]

    async def export(self, call: Call) -> web.StreamResponse:
        """All entries and saved items, as ``scrapy rq export`` writes them."""
        response = web.StreamResponse(
            headers={hdrs.CONTENT_TYPE: "application/x-ndjson", "X-Content-Type-Options": "nosniff"}
        )
        async with body_of(response, call.request):
            after: int | None = 0
            while after is not None:
                texts, after = await self._store.read(
                    lambda survey, after=after: _exported(survey, call.key, after)  # type: ignore[misc]
                )
                await response.write("".join(f"{text}\n" for text in texts).encode())
            async for item in call.queue.items.read():
                await response.write(line(item))
        return response


def _times(survey: Survey, key: int, *, failed: bool) -> list[tuple[float, bool]]:
    """When the entries of a sample were handled, and whether they failed."""
    until = time.monotonic() + _PATIENCE
    times = []
    for row in survey.sample(key, _SAMPLE, failed):
        if row.position is None:
            shown = Shown.of(row)
            with suppress(ValueError):  # another program wrote it
                at = in_utc(datetime.fromisoformat(shown.handled_text or ""))
                times.append((at.timestamp(), shown.failed))
        if time.monotonic() > until:
            break
    return sorted(times)


def _curve(times: Sequence[float], total: int) -> list[tuple[float, int]]:
    """Unix times, and how many of ``total`` were done until then."""
    count = len(times)
    step = max(1, count // _POINTS)
    return [(times[n - 1], round(total * n / count)) for n in (*range(1, count, step), count) if n]


def _example(row: Any, shown: Shown) -> dict[str, Any]:
    listed = as_listed(row, shown)
    return {"id": listed["id"], "url": listed["url"]}


def _exported(survey: Survey, key: int, after: int) -> tuple[list[str], int | None]:
    steps = survey.walk(key, "all", after)
    chunk = list(islice(steps, _ENTRIES_PER_TURN))
    # Not the locks: whoever imports them has none.
    texts = [full(row._replace(is_leased=0)) for _, row in chunk if row is not None]
    return texts, chunk[-1].at if chunk else None
