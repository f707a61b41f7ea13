"""Entries as the API writes and reads them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

from scrapy_apify_rq.entries.models import Entry


def test_null_means_absent() -> None:
    nulls = dict.fromkeys(["method", "userData", "retryCount", "errorMessages", "handledAt"])
    text = json.dumps({"id": "i", "uniqueKey": "k", "url": "u", **nulls})
    entry = Entry.from_json("i", text)
    assert entry.broken is None
    assert entry == Entry(id="i", unique_key="k", url="u")


def test_nulls_are_not_written() -> None:
    text = Entry(id="i", unique_key="k", url="u").to_json()
    assert None not in json.loads(text).values()


def test_dates_are_written_in_utc_with_milliseconds() -> None:
    tokyo = timezone(timedelta(hours=9))
    handled_at = datetime(2026, 11, 23, 4, 5, 6, 789_999, tokyo)
    text = Entry(id="i", unique_key="k", url="u", handled_at=handled_at).to_json()
    assert json.loads(text)["handledAt"] == "2026-11-22T19:05:06.789Z"


def test_failed_is_one_error_more_than_retries() -> None:
    now = datetime.now(UTC)
    entry = Entry(id="i", unique_key="k", url="u", retry_count=1, error_messages=["a", "b"])
    assert not entry.failed
    assert entry.model_copy(update={"handled_at": now}).failed
    assert not entry.model_copy(update={"handled_at": now, "retry_count": 2}).failed
