"""The form of the server's answers, in which Apify's reference describes them.

As in ``application``, "Choice:" marks what the reference leaves open.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from scrapy_apify_rq.backends.api_models import HeadItem, Model, Registered
from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.backends.sqlite.table import Row
from scrapy_apify_rq.entries.models import Entry, wire_date
from scrapy_apify_rq.server.errors import ApiError

_CUT: Final = "...[truncated]"
_CUT_LENGTH: Final = 128


def answer(data: object, status: int = 200, **headers: str) -> web.Response:
    if isinstance(data, Model):
        return raw_answer(data.model_dump_json(by_alias=True), status, **headers)
    return raw_answer(json.dumps(data, ensure_ascii=False), status, **headers)


def raw_answer(data: str, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        text=f'{{"data":{data}}}', status=status, content_type="application/json", headers=headers
    )


@asynccontextmanager
async def body_of(answer: web.StreamResponse, request: web.Request) -> AsyncIterator[None]:
    """Write the body of an answer piece by piece within this, and to its end."""
    await answer.prepare(request)
    try:
        yield
        await answer.write_eof()
    except ConnectionError:
        pass  # the caller has hung up
    except BaseException:
        # It is too late for another status. The caller must not take a part for all of it.
        if request.transport is not None:
            request.transport.abort()
        raise


def error_answer(error: ApiError) -> web.Response:
    return web.json_response(
        {"error": {"type": error.type, "message": str(error)}}, status=error.status
    )


def date(timestamp: float) -> str:
    return wire_date(datetime.fromtimestamp(timestamp, UTC))


def registration(added: Added) -> Registered:
    return Registered(
        request_id=added.id,
        was_already_present=added.was_already_present,
        was_already_handled=added.was_already_handled,
    )


class _HeadItem(HeadItem):
    """What the head shows. The rest of an entry is skipped, which is faster than reading it."""

    model_config = ConfigDict(from_attributes=True)

    unique_key: str
    url: str
    method: str
    retry_count: int


def head_item(id: str, text: bytes) -> dict[str, Any]:
    """An entry as the head shows it. Choice: POST head/lock cuts long texts as GET head does."""
    try:
        shown = _HeadItem.model_validate_json(text)
    except ValidationError:  # another program wrote it
        shown = _HeadItem.model_validate(Entry.from_json(id, text))
    item = shown.model_dump(by_alias=True)
    for name in ("uniqueKey", "url"):
        if len(item[name]) > _CUT_LENGTH:
            item[name] = item[name][: _CUT_LENGTH - len(_CUT)] + _CUT
    return {**item, "id": id}


class _Object(BaseModel):
    """Any JSON object."""


def full(row: Row) -> str:
    """The JSON of an entry, with its lock if it is locked.

    Choice: an expired lock does not show; lists show the same as a GET by id.
    """
    text = _text(row)
    if not row.is_leased or row.lock_expires_at is None:
        return text
    lock = {"lockExpiresAt": date(row.lock_expires_at)}
    if row.lock_by:
        lock["lockByClient"] = row.lock_by
    return f"{text[:-1]},{json.dumps(lock)[1:]}"


def _text(row: Row) -> str:
    try:
        _Object.model_validate_json(row.json)
        return row.json.decode()
    except ValueError:  # not UTF-8, no JSON, or not of an object: another program wrote it
        return Entry.from_json(row.id, row.json).to_json()
