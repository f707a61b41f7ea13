"""How much the API's client reads at a time, of entries whose size it learns as it reads."""

from __future__ import annotations

from typing import Any

import pytest

from scrapy_apify_rq.backends.apify import http, reader
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Api, Call
from tests.support.backends import Apify, Queues, keys_of, numbered


async def test_a_backlog_of_large_entries_is_not_listed(api: Api, server: Queues) -> None:
    """Only as many are fetched as fit into the claim, once their size is known."""
    entries = numbered(80, payload="x" * 100_000)
    await server.store(*entries)
    async with server.open(memory=1_000_000) as client:
        seen: list[Entry] = []
        fetched: list[int] = []
        for _ in range(4):
            api.calls.clear()
            seen += await client.entries(known=seen, size=550_000)
            assert not api.of("GET", "/requests")
            fetched.append(len([call for call in api.calls if call.path != "/head"]))
        assert seen == entries[:20]
        # At first the size is unknown, so calls are made that are then of no use, and given up. The
        # server may see some of them later.
        assert fetched[0] + fetched[1] <= 16 + 2 * 5
        assert fetched[2:] == [5, 5]


async def test_few_large_entries_are_fetched_at_a_time(api: Api, server: Queues) -> None:
    entries = numbered(30, payload="x" * 100_000)
    async with server.open(lock_secs=60) as client:
        await server.store(*entries)
        assert await client.entries(30, size=350_000) == entries[:3]
        # The sizes were unknown: what did not fit is given back.
        methods = [call.method for call in api.calls]
        assert methods.count("DELETE") == 27
        assert methods.count("GET") <= 16 + 3
        api.calls.clear()
        assert await client.entries(30, size=350_000) == entries[3:6]
        (call,) = api.of("POST", "/head/lock")
        assert call.query["limit"] == "3"
        assert len(api.calls) == 4


async def test_the_pages_of_a_list_have_few_bytes(
    api: Api, server: Queues, client: Apify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_PAGE_BYTES", 200_000)
    pages: list[int] = []

    def after(call: Call, data: Any) -> Any:
        if call.is_("GET", "/requests"):
            pages.append(len(data["items"]))
        return data

    entries = numbered(400, user_data={"text": "x" * 1900})
    await server.store(*entries)
    api.after = after
    assert sorted(await client.listed()) == keys_of(entries)
    assert pages[0] == 10
    assert all(90 < size <= 100 for size in pages[1:-1])


async def test_a_page_that_is_too_long_is_asked_for_in_parts(
    api: Api, server: Queues, client: Apify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_LONGEST_ANSWER", 150_000)
    entries = [*numbered(10), *numbered(10, 10, payload="x" * 100_000)]
    entries.sort(key=lambda entry: entry.id)
    await server.store(*entries)
    assert [entry async for entry in client.list()] == entries
    monkeypatch.setattr(http, "_LONGEST_ANSWER", 90_000)
    with pytest.raises(BackendError, match="the answer is longer than 90,000 bytes"):
        await client.listed()
