"""Entries as the API writes and reads them, and about how large they are."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from scrapy_apify_rq.entries.deep_json import texts_at
from scrapy_apify_rq.entries.mending import strict_json, without_words
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.conversion import URL, foreign


def test_null_means_absent() -> None:
    nulls = dict.fromkeys(["method", "userData", "retryCount", "errorMessages", "handledAt"])
    entry = Entry.from_json("i", json.dumps({"id": "i", "uniqueKey": "k", "url": "u", **nulls}))
    assert entry.broken is None
    assert entry == Entry(id="i", unique_key="k", url="u")
    assert None not in json.loads(entry.to_json()).values()


def read(**fields: Any) -> Entry:
    """As another program wrote it, and as the next process reads what we write of it."""
    entry = Entry.from_json("i", json.dumps({"uniqueKey": "k", "url": URL, **fields}))
    assert Entry.from_json("i", entry.to_json()) == entry
    return entry


HEADERS = {"n": 5, "b": True, "list": ["x", 2, None], "Cookie": ["a=1", "b=2"], "none": None}
HEADERS |= {"nothing": [None], "object": {"x": 1}, "text": "é"}
TEXTS = {"n": "5", "b": "true", "list": "x, 2", "Cookie": "a=1; b=2", "object": '{"x": 1}'}
PLAIN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"headers": HEADERS}, {"headers": {**TEXTS, "text": "é"}}),
    ({"payload": [1, "é"]}, {"payload": '[1, "é"]'}),
    ({"payload": 5}, {"payload": "5"}),
    ({"errorMessages": "one"}, {"error_messages": ["one"]}),
    ({"errorMessages": ["a", 5, None]}, {"error_messages": ["a", "5", "null"]}),
    ({"errorMessages": {}}, {"error_messages": []}),
    ({"retryCount": "3", "noRetry": 1}, {"retry_count": 3, "no_retry": True}),
    ({"handledAt": "2026-01-02T03:04:05"}, {"handled_at": datetime(2026, 1, 2, 3, 4, 5, 0, UTC)}),
    ({"url": f"{URL}\ud800"}, {"url": f"{URL}\ufffd"}),
    ({"headers": {"\ud800": "\udc00"}}, {"headers": {"\ufffd": "\ufffd"}}),
    ({"payload": "\ud800x"}, {"payload": "\ufffdx"}),
    ({"uniqueKey": "k\ud83d"}, {"unique_key": "k\ufffd"}),
    ({"userData": {"a": ["\ud800"]}}, {"user_data": {"a": ["\ufffd"]}}),
    ({"errorMessages": ["\ud800"]}, {"error_messages": ["\ufffd"]}),
]


@pytest.mark.parametrize(("odd", "expected"), PLAIN)
def test_odd_values_whose_meaning_is_plain(odd: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(**odd) == foreign(**{"id": "i", "unique_key": "k", **expected})


ABSENT: list[tuple[str, Any]] = [("retryCount", "many"), ("retryCount", 2.5), ("retryCount", {})]
ABSENT += [("retryCount", -(10**20)), ("retryCount", 10**20)]
ABSENT += [("handledAt", "yesterday"), ("handledAt", "9999-12-31T23:59:59-05:00")]
ABSENT += [("noRetry", "perhaps"), ("loadedUrl", 5), ("method", 5), ("userData", "text")]


@pytest.mark.parametrize(("name", "value"), ABSENT)
def test_other_odd_values_count_as_absent_and_are_kept(name: str, value: Any) -> None:
    entry = read(**{name: value})
    kept = entry.user_data.pop("scrapy_unreadable")
    assert json.loads(kept.pop("original")) == {name: value}
    assert (kept, entry) == ({}, foreign(id="i", unique_key="k"))


def test_a_broken_entry_stays_broken() -> None:
    """Even if a value that can be read is written in the place of another, later."""
    entry = read(headers=5, url=f"{URL}\ud800")
    assert entry.broken == "headers: Input should be a valid dictionary"
    later = read(**{**json.loads(entry.to_json()), "retryCount": "many"})
    assert later.broken == entry.broken
    texts = later.user_data["scrapy_unreadable"]["original"].split("\n")
    assert [json.loads(text) for text in texts] == [{"headers": 5}, {"retryCount": "many"}]


def test_a_number_beyond_pythons_stays_one() -> None:
    """JSON knows no infinity, but 1e999; JavaScript and Python read it as infinity."""
    user_data = '{"a":1e999,"b":[-1e999],"c":"-Infinity, \\"NaN\\"","Infinity":1.5}'
    text = f'{{"id":"i","uniqueKey":"k","url":"u","userData":{user_data}}}'
    entry = Entry.from_json("i", text)
    assert entry.user_data["a"] == -entry.user_data["b"][0] == math.inf
    assert f'"userData":{user_data},' in entry.to_json()
    assert read(headers={"n": math.inf}, payload=[math.inf]).payload == "[1e999]"
    kept = read(retryCount=-math.inf).user_data["scrapy_unreadable"]["original"]
    assert kept == '{"retryCount": -1e999}'
    assert strict_json(b'{"n": 1e400}') == '{"n": 1e999}'
    for text, why in ((b"[NaN]", "NaN is not JSON"), (b"[" * 10**5 + b"]" * 10**5, "too deeply")):
        with pytest.raises(ValueError, match=why):  # NaN must not become null
            strict_json(text)


def test_memory_for_a_long_text_with_such_a_number() -> None:
    text = json.dumps({"text": "NaN " * 100_000, "number": math.inf})
    deep = f'{{"text":{text},"deep":{"[" * 100_000}{"]" * 100_000}}}'
    tracemalloc.start()
    try:
        assert without_words(text).endswith("1e999}")
        assert texts_at(deep, 2) == {"text": "NaN " * 100_000}
        assert tracemalloc.get_traced_memory()[1] < 20 * len(text)
    finally:
        tracemalloc.stop()


def test_nobody_but_us_says_that_an_entry_is_broken() -> None:
    assert read(broken="no").broken is None
    with pytest.raises(AttributeError):
        read().broken = "no"  # type: ignore[misc]


def test_lone_surrogates_are_not_written() -> None:
    entry = foreign(loaded_url="\ud800", error_messages=["\udc00"], url="é\ud800")
    assert json.loads(entry.to_json())["errorMessages"] == ["\ufffd"]
    assert request_id("k\ud800") == request_id("k\ufffd")


def test_dates_are_written_in_utc_with_milliseconds() -> None:
    tokyo = timezone(timedelta(hours=9))
    text = foreign(handled_at=datetime(2026, 11, 23, 4, 5, 6, 789_999, tokyo)).to_json()
    assert json.loads(text)["handledAt"] == "2026-11-22T19:05:06.789Z"


def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        entry = read(handledAt="2026-01-02T03:04:05")
        made = foreign().model_copy(update={"handled_at": datetime(2026, 1, 2, 3, 4, 5)})
        for one in (entry, made):
            assert json.loads(one.to_json())["handledAt"] == "2026-01-02T03:04:05.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


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
