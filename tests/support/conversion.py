"""Requests, written as entries and read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scrapy import Request

from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import CodecError
from tests.support.codec_classes import SPIDER
from tests.support.exact_values import HERE, describe

URL = "https://example.com/page"
KEY = "key"


def converter(**options: Any) -> RequestConverter:
    return RequestConverter(SPIDER, **{"trusted": [HERE], **options})


def encoded(request: Request, by: RequestConverter | None = None, **options: Any) -> Entry:
    """Its entry as the next process reads it."""
    entry = (by or converter()).encode(request, KEY, **options)
    again = Entry.from_json(entry.id, entry.to_json())
    assert again.broken is None
    assert again == entry
    return again


def restarted(request: Request) -> Any:
    """The request after three restarts, each time the same."""
    before = describe(request)
    entry = encoded(request)
    assert describe(request) == before
    first = entry.to_json()
    for _ in range(3):
        again = converter().decode(entry)
        assert describe(again) == before
        entry = encoded(again, replaced=entry)
        assert entry.to_json() == first
    return again


def foreign(**values: Any) -> Entry:
    """An entry that another program wrote."""
    return Entry(**{"id": request_id(KEY), "unique_key": KEY, "url": URL, **values})


def own(blob: Any, **values: Any) -> Entry:
    """An entry with this ``userData.scrapy``."""
    return foreign(user_data={"scrapy": blob}, **values)


def apify_text(text: object) -> Entry:
    return foreign(user_data={"page": 3, "scrapy_request": text})


def apify(**changes: Any) -> Entry:
    """What ``apify.scrapy`` 4.1.0 writes."""
    parts = {
        "url": URL,
        "callback": "parse_page",
        "errback": None,
        "method": "POST",
        "body": "YT0x",
    }
    parts |= {"headers": {"Accept": ["Ki8q"], "X-Two": ["MQ==", "Mg=="]}, "cookies": {"a": "b"}}
    parts |= {"meta": {"depth": 2}, "cb_kwargs": {"k": [1]}, "flags": [], "dont_filter": False}
    entry = apify_text(json.dumps({**parts, "encoding": "utf-8", "priority": 5, **changes}))
    update = {"method": "POST", "payload": "a=1", "headers": {"accept": "*/*", "x-two": "1,2"}}
    return entry.model_copy(update=update)


def refusal(entry: Entry, **options: Any) -> str:
    """Why this entry is not read."""
    with pytest.raises(CodecError) as error:
        converter(**options).decode(entry)
    assert 0 < len(str(error.value)) <= 1000
    return str(error.value)
