"""What the API answers, as pydantic models, and entries as the JSON that was stored.

An answer of any other form is not the API's: reading it raises ValueError, and the call is made
again. Entries come as text: one that nobody can read must not cost those beside it.
Source: https://docs.apify.com/api/v2/storage-request-queues
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

from scrapy_apify_rq.entries.deep_json import objects_at, texts_at
from scrapy_apify_rq.entries.hosts import host
from scrapy_apify_rq.entries.models import read_date

T = TypeVar("T")
# {"data": {"items": [{
_LOCK_FIELDS: Final = ("lockExpiresAt", "lockByClient")
_PAGE_DEPTH: Final = 2
_ITEM_DEPTH: Final = 4

Date = Annotated[datetime, BeforeValidator(read_date)]


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class Operations(Model):
    read_count: int = 0
    write_count: int = 0


class Queue(Model):
    """A queue itself. The counts lag, each by its own time."""

    id: str
    name: str | None = None
    title: str | None = None
    modified_at: Date
    total_request_count: int
    handled_request_count: int
    pending_request_count: int
    console_url: str | None = None
    act_run_id: str | None = None
    """Of the run of an Actor whose default queue it is."""
    stats: Operations | None = None


class QueueList(Model):
    items: list[Queue]


class HeadItem(Model):
    id: str
    url: str = ""
    """Perhaps cut."""


class Head(Model):
    items: list[HeadItem]
    had_multiple_clients: bool


class LockedHead(Model):
    items: list[HeadItem]
    lock_secs: int
    queue_has_locked_requests: bool | None = None
    """Optional in the API."""


class Registered(Model):
    """What became of one entry that was added or replaced."""

    request_id: str
    was_already_present: bool
    was_already_handled: bool


class Unprocessed(Model):
    id: str | None = None


class AddedBatch(Model):
    processed_requests: list[Registered]


class DeletedBatch(Model):
    unprocessed_requests: list[Unprocessed]


class EntryLock(Model):
    """The lock that the API shows in an entry."""

    lock_expires_at: Date | None = None
    lock_by_client: str | None = None

    @classmethod
    def of(cls, entry: bytes) -> EntryLock:
        found = texts_at(entry.decode(), 1)  # the entry itself may be one that nobody can read
        return cls.model_validate({name: found.get(name) for name in _LOCK_FIELDS})


class _Answer(BaseModel, Generic[T]):
    data: T


class Listed(NamedTuple):
    """An entry of a list."""

    id: str
    text: bytes
    """Its JSON."""
    host: str


class Page(NamedTuple):
    """A part of the list of entries."""

    items: list[Listed]
    next_cursor: str | None


Reading = Callable[[bytes | bytearray], T]


def reading(form: type[T]) -> Reading[T]:
    """Return what reads an answer of this form, or raises ValueError."""
    answer = _Answer[form]  # type: ignore[valid-type]  # it is a value here
    return lambda body: answer.model_validate_json(bytes(body)).data


def nothing(body: bytes | bytearray) -> None:
    """Read an answer that tells nothing."""


# Entries

_WHOLE: Final = re.compile(rb'\s*\{\s*"data"\s*:\s*(\{.*\})\s*\}\s*', re.DOTALL)


def entry(body: bytes | bytearray) -> bytes:
    """Return the JSON of the one entry that was asked for."""
    try:
        json.loads(body)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        pass  # it is JSON, but more than Python reads: ``Entry.from_json`` says so of the entry
    if (found := _WHOLE.fullmatch(body)) is None:
        raise ValueError("not an entry")
    return bytes(found[1])


def page(body: bytes | bytearray) -> Page:
    """Return the entries of a part of the list."""
    try:
        data = json.loads(body)["data"]
        items = [_listed(item, json.dumps(item)) for item in data["items"]]
        cursor = data.get("nextCursor")
    except json.JSONDecodeError:
        raise
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a list of entries: {error!r}") from None
    except (ValueError, RecursionError):  # one of them is more than Python reads
        text = body.decode()
        items = [_listed(texts_at(item, 1), item) for item in objects_at(text, _ITEM_DEPTH)]
        cursor = texts_at(text, _PAGE_DEPTH).get("nextCursor")
    if not isinstance(cursor, str | None):
        raise ValueError("not a list of entries")
    return Page(items, cursor)


def _listed(item: Mapping[str, Any], text: str) -> Listed:
    id, url = item.get("id"), item.get("url")
    if not isinstance(id, str):
        raise ValueError("an entry without an id")
    at = host(url, item.get("userData")) if isinstance(url, str) else ""
    return Listed(id, text.encode(), at)
