"""Reads the API's answers: their form, and entries that nobody can read beside good ones.

What is not of the form asked for raises ValueError, and the call is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from scrapy_apify_rq.backends.api_models import Lock, Page
from scrapy_apify_rq.entries.deep_json import objects_at, texts_at
from scrapy_apify_rq.entries.mending import well_formed_json
from scrapy_apify_rq.entries.models import Entry

T = TypeVar("T")
Reading = Callable[[bytearray], T]

# {"data": {"items": [{
_DATA: Final = 2
_ITEMS: Final = 4


class _Answer(BaseModel, Generic[T]):
    data: T


def reading(form: type[T]) -> Reading[T]:
    """Return what reads an answer of this form."""
    answer = _Answer[form]  # type: ignore[valid-type]  # it is a value here

    def read(body: bytearray) -> T:
        try:
            return answer.model_validate_json(body).data
        except ValidationError:
            # It may have lone surrogates: a head cuts URLs where it likes.
            return answer.model_validate_json(_well_formed(body)).data

    return read


def _well_formed(body: bytearray) -> str:
    try:
        return well_formed_json(body)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def nothing(body: bytearray) -> None:
    """Read an answer that tells nothing."""
    if body:
        raise ValueError("not an empty answer")


_entry: Final = reading(Entry)
_page: Final = reading(Page)
_lock: Final = reading(Lock)


def entry(body: bytearray) -> Entry:
    try:
        return _entry(body)
    except ValueError:
        return _odd_entries(_checked(body), _DATA)[0]


def page(body: bytearray) -> Page:
    try:
        return _page(body)
    except ValueError:
        text = _checked(body)
        cursor = texts_at(text, _DATA).get("nextCursor")
        return Page(items=_odd_entries(text, _ITEMS), next_cursor=cursor)


def lock(body: bytearray) -> Lock:
    try:
        return _lock(body)
    except ValueError:  # nested too deeply
        return Lock.model_validate(texts_at(_checked(body), _DATA))


def _odd_entries(text: str, depth: int) -> list[Entry]:
    """Read the entries at this depth, some of which do not follow the schema."""
    items = list(objects_at(text, depth))
    ids = [texts_at(item, 1).get("id") for item in items]
    if not items or None in ids:
        raise ValueError("no entry, or one without an id")
    return [Entry.from_json(id, item) for id, item in zip(ids, items, strict=True) if id]


def _checked(body: bytearray) -> str:
    """Return JSON as text. It may be nested more deeply than Python reads."""
    text = body.decode()
    try:
        json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):  # too many digits, or too deep
        pass
    return text
