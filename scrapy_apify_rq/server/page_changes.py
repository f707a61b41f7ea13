"""What the page changes in a queue: it retries and adds entries, and purges the queue."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from scrapy_apify_rq.backends.sqlite.store import Store
from scrapy_apify_rq.backends.sqlite.survey import Survey
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import CodecError, ConfigError
from scrapy_apify_rq.server.answers import answer
from scrapy_apify_rq.server.bodies import read_json
from scrapy_apify_rq.server.calls import Call
from scrapy_apify_rq.server.errors import ApiError, invalid
from scrapy_apify_rq.server.project import Project
from scrapy_apify_rq.server.search import Filter, Slice

_T = TypeVar("_T", bound=BaseModel)

# Entries that one transaction puts back: each is written anew.
_MOST_PUT_BACK: Final = 200


class _Ids(BaseModel):
    ids: Annotated[list[str], Field(max_length=_MOST_PUT_BACK)]


class _Lines(BaseModel):
    lines: Annotated[list[str], Field(max_length=1000)]


class _Finished(Filter):
    """Only handled entries can be retried."""

    state: Literal["handled", "failed"] = "failed"


class Changes:
    def __init__(self, store: Store, project: Project) -> None:
        self._store = store
        self._project = project

    async def count(self, call: Call) -> web.Response:
        """How many entries of a slice a retry would put back."""
        wanted = await _read(call, _Finished)
        part = Slice(self._store.survey, call.key, wanted, None)
        found: list[str] = []

        def search(_: Survey) -> None:
            found.clear()
            part.run(lambda row, _: found.append(row.id))

        await self._store.read(search)
        return answer({"count": len(found), "scanned": part.scanned, "next": part.next})

    async def retry(self, call: Call) -> web.Response:
        """Put entries back: those of the ids, or those of a slice that fit the filter."""
        raw = await read_json(call.request, dict)
        if "ids" in raw:
            ids = _valid(raw, _Ids).ids
            retried, _ = await call.queue.put_back(lambda: (self._of(call, ids), None))
            return answer({"retried": len(retried), "next": None})
        wanted = _valid(raw, _Finished)
        retried, after = await call.queue.put_back(lambda: self._fitting(call, wanted))
        return answer({"retried": len(retried), "next": after})

    def _of(self, call: Call, ids: list[str]) -> list[Entry]:
        rows = (self._store.survey.row(call.key, id) for id in dict.fromkeys(ids))
        return [
            self._renewed(call, row.id, row.json)
            for row in rows
            if row is not None and row.position is None
        ]

    def _fitting(self, call: Call, wanted: Filter) -> tuple[list[Entry], int | None]:
        entries: list[Entry] = []
        part = Slice(self._store.survey, call.key, wanted, _MOST_PUT_BACK)
        part.run(lambda row, _: entries.append(self._renewed(call, row.id, row.json)))
        return entries, part.next

    def _renewed(self, call: Call, id: str, json: bytes) -> Entry:
        entry = Entry.from_json(id, json)
        self._project.renew(call.record.name, entry)
        return entry

    async def add(self, call: Call) -> web.Response:
        """Add what the lines describe: each is a URL or, in JSON, an object."""
        entries, refused = [], []
        for number, text in enumerate((await _read(call, _Lines)).lines, 1):
            try:
                entries.append(self._project.new_entry(call.record.name, text.strip().encode()))
            except (CodecError, ValueError) as error:
                refused.append({"line": number, "reason": _reason(error)})
        added = await call.queue.add(entries, forefront=False)
        present = sum(one.was_already_present for one in added)
        return answer({"added": len(added) - present, "present": present, "refused": refused})

    async def purge(self, call: Call) -> web.Response:
        try:
            await self._store.purge(call.record)
        except ConfigError as error:
            raise ApiError(409, "queue-is-used", str(error)) from None
        return answer({})


async def _read(call: Call, kind: type[_T]) -> _T:
    return _valid(await read_json(call.request, dict), kind)


def _valid(raw: Any, kind: type[_T]) -> _T:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise invalid(_reason(error)) from None


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False)[0]
    return "".join(f"{part}: " for part in problem["loc"]) + problem["msg"]
