"""Entries as the API writes and reads them, and about how large they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry
from tests.support.conversion import URL, foreign


def test_null_means_absent() -> None:
    nulls = dict.fromkeys(["method", "userData", "retryCount", "errorMessages", "handledAt"])
    entry = Entry.from_json("i", json.dumps({"id": "i", "uniqueKey": "k", "url": "u", **nulls}))
    assert entry.broken is None
    assert entry == Entry(id="i", unique_key="k", url="u")
    assert None not in json.loads(entry.to_json()).values()


def test_dates_are_written_in_utc_with_milliseconds() -> None:
    tokyo = timezone(timedelta(hours=9))
    text = foreign(handled_at=datetime(2026, 11, 23, 4, 5, 6, 789_999, tokyo)).to_json()
    assert json.loads(text)["handledAt"] == "2026-11-22T19:05:06.789Z"


def test_failed_is_one_error_more_than_retries() -> None:
    now = datetime.now(UTC)
    entry = foreign(retry_count=1, error_messages=["a", "b"])
    assert not entry.failed
    assert entry.model_copy(update={"handled_at": now}).failed
    assert not entry.model_copy(update={"handled_at": now, "retry_count": 2}).failed


LONG, LONGER = "x" * 100_000, "x" * 1_000_000
SIZES: list[Any] = [{}, {"payload": LONGER}, {"payload": "é" * 1_000_000}, {"unique_key": LONG}]
SIZES += [{"payload": {"a": [LONGER]}}, {"headers": {"Cookie": LONG, "A": "b"}}]
SIZES += [{"url": f"{URL}/{LONG}"}, {"error_messages": [LONG, LONG]}, {"user_data": {LONG: 1}}]
SIZES += [{"user_data": {"scrapy": {"v": 1, "meta": {"a": {"b": [{"c": LONGER}]}}}}}]
SIZES += [{"user_data": {"lists": [[], [], {"a": None}] * 1000}}]
SIZES += [{"user_data": {"a": value}} for value in (list(range(100_000)), ["four"] * 100_000)]


@pytest.mark.parametrize("fields", SIZES, ids=range(13))
def test_size_is_about_that_of_the_json(fields: dict[str, Any]) -> None:
    entry = foreign(**fields)
    length = len(entry.to_json().encode())
    assert length * 0.6 <= entry.size <= length * 1.8
    before = entry.size
    entry.error_messages.append("x" * 1000)
    assert entry.size >= before + 1000
