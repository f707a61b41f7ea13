"""What the API says about queues, as pydantic models: the client reads what our server writes.

A model requires only what the client cannot do without: an answer that lacks it is not the API's.
Anything else may be missing or of another type, and then counts as absent.
Source: https://docs.apify.com/api/v2/storage-request-queues
"""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.alias_generators import to_camel

from scrapy_apify_rq.entries.models import Date, Entry

T = TypeVar("T")


def _if_readable(value: object, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


IfReadable = Annotated[T | None, WrapValidator(_if_readable)]


class Model(BaseModel):
    """By itself: any object."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        defer_build=True,  # a crawl uses few of them
    )


class Operations(Model):
    read_count: int = 0
    write_count: int = 0


class Queue(Model):
    """A queue itself. The counts lag, each by its own time; the pending ones can be negative."""

    id: str
    name: IfReadable[str] = None
    title: IfReadable[str] = None
    modified_at: IfReadable[Date] = None
    total_request_count: int
    handled_request_count: int
    pending_request_count: int
    console_url: IfReadable[str] = None
    act_run_id: IfReadable[str] = None
    """Of the run of an Actor whose default queue it is."""
    stats: IfReadable[Operations] = None


class QueueList(Model):
    items: list[Queue]


class HeadItem(Model):
    id: str
    url: str = ""
    """Perhaps cut."""


class Head(Model):
    items: list[HeadItem]
    had_multiple_clients: bool = True
    """Where nothing is said, there may have been others."""


class LockedHead(Model):
    items: list[HeadItem]
    lock_secs: float = math.inf
    """As long as asked for, where nothing is said."""
    queue_has_locked_requests: IfReadable[bool] = None


class Registered(Model):
    """What became of one entry that was added or replaced: how the queue was before."""

    request_id: str
    was_already_present: bool
    was_already_handled: bool


class AddedBatch(Model):
    processed_requests: list[Registered]


class Unprocessed(Model):
    """It is named by its id, its key, or both."""

    id: IfReadable[str] = None
    unique_key: IfReadable[str] = None


class DeletedBatch(Model):
    unprocessed_requests: list[Unprocessed]


class Lock(Model):
    """The lock that the API shows in an entry."""

    lock_expires_at: IfReadable[Date] = None
    lock_by_client: IfReadable[str] = None


class Page(Model):
    """A part of the list of entries."""

    items: list[Entry]
    next_cursor: str | None = None
