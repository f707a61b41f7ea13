"""Reads the API's answers: their form, and entries that nobody can read beside good ones.

What is not of the form asked for raises ValueError, and the call is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

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
    model_config = ConfigDict(defer_build=True)

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
_lock: Final = reading(Lock)


def entry(body: bytearray) -> Entry:
    try:
        return _entry(body)
    except ValueError:
        return _odd_page(body, _DATA, lambda data: [data]).items[0]


def page(body: bytearray) -> Page:
    try:
        return _Answer[Page].model_validate_json(body).data
    except ValidationError:
        return _odd_page(body, _ITEMS, itemgetter("items"))


def lock(body: bytearray) -> Lock:
    try:
        return _lock(body)
    except ValueError:
        return Lock.model_validate(texts_at(body.decode(), _DATA))


def _odd_page(
    body: bytearray, depth: int, objects: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> Page:
    """Read entries of which some do not follow the schema: these ``objects`` of the data, which
    are at this depth of the JSON.
    """
    try:
        data = json.loads(body)["data"]
        cursor = data.get("nextCursor")
        texts = {one["id"]: json.dumps(one) for one in objects(data)}
    except json.JSONDecodeError:
        raise
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not an answer with entries: {error!r}") from None
    except (ValueError, RecursionError):  # one of them is more than Python reads
        text = body.decode()
        cursor = texts_at(text, _DATA).get("nextCursor")
        texts = {texts_at(one, 1).get("id"): one for one in objects_at(text, depth)}
    if not texts or not all(isinstance(id, str) for id in texts):
        raise ValueError("an entry without an id")
    entries = [Entry.from_json(id, one) for id, one in texts.items()]
    return Page(items=entries, next_cursor=cursor)
