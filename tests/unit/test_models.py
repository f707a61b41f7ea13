"""The size of an entry is about that of its JSON."""

from __future__ import annotations

from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry

URL = "https://example.com/page"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"payload": "x" * 1_000_000},
        {"payload": "é" * 1_000_000},
        {"payload": {"a": ["x" * 1_000_000]}},
        {"headers": {"Cookie": "x" * 100_000, "A": "b"}},
        {"url": f"{URL}/{'x' * 100_000}"},
        {"unique_key": "x" * 100_000},
        {"error_messages": ["x" * 50_000, "y" * 50_000]},
        {"user_data": {"scrapy": {"v": 1, "meta": {"a": {"b": [{"c": "x" * 1_000_000}]}}}}},
        {"user_data": {"x" * 100_000: 1}},
        {"user_data": {"numbers": list(range(100_000))}},
        {"user_data": {"lists": [[], [], {"a": None}] * 1000}},
        {"user_data": {"texts": ["four"] * 100_000}},
    ],
)
def test_size_is_about_that_of_the_json(fields: dict[str, Any]) -> None:
    entry = Entry(**{"id": "LHDhK3oGRvkiefQ", "unique_key": "key", "url": URL, **fields})
    length = len(entry.to_json().encode())
    assert length * 0.6 <= entry.size <= length * 1.8


def test_size_follows_changes() -> None:
    entry = Entry(id="i", unique_key="k", url=URL)
    before = entry.size
    entry.error_messages.append("x" * 1000)
    assert entry.size >= before + 1000
