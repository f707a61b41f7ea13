"""Claims over the API: what each access reads and keeps, when the head lags, and who is there."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from operator import itemgetter
from typing import Any

import pytest

from scrapy_apify_rq.backends.apify import single
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.backends.base import Claim
from tests.support.api_calls import Api, Call, error
from tests.support.backends import Apify, Queues, entry, handled, ids, keys_of, numbered


def kinds(api: Api) -> Counter[str]:
    """How many calls of each kind were made, and forget them."""
    found = Counter(call.path[:10] for call in api.calls)
    api.calls.clear()
    return found


async def test_long_keys_and_urls_survive_a_cycle(api: Api, server: Queues, client: Apify) -> None:
    long = entry("k" * 300, url="https://example.com/" + "u" * 3000)
    await server.store(long)
    keys_on_head: list[str] = []

    def after(call: Call, data: Any) -> Any:
        if call.is_("GET", "/head"):
            keys_on_head.extend(item["uniqueKey"] for item in data["items"])
        return data

    api.after = after
    assert await client.entries() == [long]
    assert [len(key) for key in keys_on_head] == [128]
    acked = long.model_copy(update={"handled_at": handled("a").handled_at})
    await client.put(acked)
    assert await client.get(long.id) == acked
    assert (await client.info()).pending == 0


async def test_what_is_on_the_head_but_not_there_is_asked_for_again(
    api: Api, server: Queues, client: Apify
) -> None:
    await server.store(*map(entry, "abc"))
    answers = [error(404)]
    api.before = lambda call: answers.pop() if answers and call.path.endswith(ids("b")[0]) else None
    claim = await client.take()
    assert keys_of(one.entry for one in claim.entries) == ["a", "c"]
    assert claim.more  # so that a queue with nothing else is not taken for empty
    claim = await client.take(known=["a", "c"])
    assert keys_of(one.entry for one in claim.entries) == ["b"]
    assert not claim.more


async def test_an_entry_that_is_gone_does_not_keep_the_crawl_up(
    api: Api, server: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "lag", 0.05)
    await server.store(entry("a"))
    api.before = lambda call: error(404) if call.path.startswith("/requests/") else None
    async with server.open() as client:
        assert (await client.take()).more
        await asyncio.sleep(0.1)
        assert await client.take() == Claim([], False, alone=True)


def hold_the_head(api: Api) -> None:
    """From its first answer on, the head stays as it is."""
    heads: list[Any] = []

    def after(call: Call, data: Any) -> Any:
        if call.is_("GET", "/head"):
            heads.append(data["items"])
            data["items"] = heads[0]
        return data

    api.after = after


async def test_handled_entries_on_a_late_head_are_skipped(
    api: Api, server: Queues, client: Apify
) -> None:
    await server.store(*map(entry, "abcd"))
    hold_the_head(api)
    assert await client.keys() == list("abcd")
    async with server.open() as other:
        await other.ack("a")
    await client.ack("b")
    api.calls.clear()
    assert await client.keys() == ["c", "d"]
    # What we have handled ourselves need not be fetched to know.
    assert f"/requests/{ids('b')[0]}" not in [call.path for call in api.calls]


@pytest.mark.parametrize("became", ["handled", "deleted"])
async def test_what_a_late_head_shows_in_vain_hides_nothing(
    api: Api, server: Queues, client: Apify, became: str
) -> None:
    """However much of it stands before the rest."""
    await server.store(*numbered(45))
    hold_the_head(api)
    async with server.open() as other:
        await other.take()
        gone = keys_of(numbered(40))
        await (other.ack(*gone) if became == "handled" else other.delete(ids(*gone)))
    found = [key for _ in range(5) for key in await client.keys()]
    assert {*found} == {*keys_of(numbered(5, 40))}


async def test_what_others_put_back_is_claimed_though_we_acked_it(api: Api, server: Queues) -> None:
    async with server.open() as ours, server.open() as tool:
        await ours.fill("a", "b", "c")
        assert await ours.keys() == ["a", "b", "c"]
        await ours.ack("a", "b", "c")
        await tool.put("b", forefront=True)
        # While there is other work, it is most probably a late head that shows it.
        assert await ours.keys(known=["a"]) == []
        # Before the crawl would end, it is worth a look.
        assert await ours.keys() == ["b"]
        assert len(api.of("GET", f"/requests/{ids('b')[0]}")) == 1


async def test_our_own_entries_need_no_call(api: Api, client: Apify) -> None:
    entries = numbered(100)
    await client.fill(*entries)
    entries[5].retry_count = 1
    await client.put(entries[5], forefront=True)
    api.calls.clear()
    assert await client.entries(200) == [entries[5], *entries[:5], *entries[6:]]
    assert kinds(api) == {"/head": 1}


async def test_a_backlog_is_listed_from_where_the_last_claim_stopped(
    api: Api, server: Queues
) -> None:
    await server.store(*numbered(400))
    api.after = lambda call, data: (  # too many to be kept in memory
        {**data, "pendingRequestCount": 1_000_000} if call.method == "POST" else data
    )
    async with server.open() as client:
        api.calls.clear()
        seen = await client.entries(150)
        assert kinds(api) == {"/head": 1, "/requests/": 16}  # the first do not wait for the list
        assert seen == numbered(16)
        for limit in (134, 100):
            seen += await client.entries(limit, seen)
        assert seen == numbered(250)
        async with server.open() as tool:
            await tool.put("front", forefront=True)
        expected = [entry("front"), *numbered(99, 250)]
        assert await client.entries(100, seen) == expected
        paths = [call.path for call in api.calls if call.is_about_queue and call.method == "GET"]
        listing = ["/head", "/requests"]
        assert paths == [*listing * 3, f"/requests/{ids('front')[0]}"]
        limits = [int(call.query["limit"]) for call in api.of("GET", "/requests")]
        assert limits == [150, 100, 100]
        # What was read ahead is kept.
        api.calls.clear()
        seen += expected
        assert await client.entries(10, seen) == numbered(10, 349)
        assert kinds(api)["/requests/"] == 9


async def test_a_list_in_another_order_than_the_queues_is_of_no_use(
    api: Api, server: Queues
) -> None:
    entries = numbered(400)
    await server.store(*entries)
    by_id = sorted((json.loads(one.to_json()) for one in entries), key=itemgetter("id"))

    def after(call: Call, data: Any) -> Any:
        if call.is_("GET", "/requests"):
            data["items"] = by_id[: int(call.query["limit"])]
        return data

    api.after = after
    async with server.open() as client:
        seen = await client.entries()
        for _ in range(2):
            seen += await client.entries(60, seen)
        assert seen == numbered(136)
        assert len(api.of("GET", "/requests")) == 1


async def test_a_late_list_does_not_undo_what_we_have_put(api: Api, server: Queues) -> None:
    entries = numbered(100)
    await server.store(*entries)
    retried = entry("00099", retry_count=1)
    stored = [{"id": one.id, "uniqueKey": one.unique_key, "url": one.url} for one in entries]
    async with server.open() as client:
        await client.put(retried)
        await client.ack("00098")
        api.after = lambda call, data: (
            {**data, "items": stored} if call.is_("GET", "/requests") else data
        )
        seen = await client.entries()
        seen += await client.entries(known=seen)
        assert seen == [*entries[:98], retried]
        assert len(api.of("GET", "/requests")) == 1


async def test_what_is_claimed_is_listed_whatever_the_memory(api: Api, server: Queues) -> None:
    """Also where small entries promise that more would fit, and then come large ones."""
    entries = [*numbered(20), *numbered(1580, 20, user_data={"text": "x" * 900})]
    async with server.open(memory=300_000) as client:
        await server.store(*entries)
        seen = await client.entries()
        for limit, expected in ((300, 316), (100, 416)):
            seen += await client.entries(limit, seen)
            assert seen == entries[:expected]
        assert client.stats["calls/request_get"] == 16
        assert client.stats["calls/requests_list"] == 3
        assert len(await client.listed("pending")) == 1600


def ids_kept(backend: Apify) -> set[str]:
    """All ids of entries that the backend holds in memory."""
    ids: set[str] = set()
    seen: set[int] = set()
    todo: list[Any] = [vars(backend)]
    while todo:
        one = todo.pop()
        ours = type(one).__module__.startswith("scrapy_apify_rq.backends")
        if isinstance(one, str) and re.fullmatch("[A-Za-z0-9]{15}", one):
            ids.add(one)
        elif (ours or isinstance(one, (dict, set, list, tuple))) and id(one) not in seen:
            seen.add(id(one))
            todo += [*one, *(one.values() if isinstance(one, dict) else ())] if not ours else []
            todo += vars(one).values() if ours and hasattr(one, "__dict__") else []
    return ids


async def test_what_was_acked_is_not_kept_for_ever(
    server: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "lag", 0.05)
    async with server.open() as client:
        for first in (0, 25):
            await client.ack(*keys_of(numbered(25, first)))
            await asyncio.sleep(0.1)
        await client.ack("last")
        assert ids_kept(client) == set(ids("last"))


async def test_shared_access_keeps_nothing_of_entries(server: Queues) -> None:
    async with server.open(lock_secs=60) as client:
        await client.fill(*numbered(25))
        await client.take(10)
        await client.put(entry("00000", retry_count=1), handled("00001"))
        assert ids_kept(client) == set()


async def test_another_client_is_noted_when_it_comes(server: Queues, client: Apify) -> None:
    assert [(await client.take(1)).others for _ in range(2)] == [False, False]
    async with server.open() as other:
        assert not (await other.take(1)).others  # who was there before may be gone
    assert [(await client.take(1)).others for _ in range(2)] == [True, False]


async def test_entries_behind_a_head_of_what_is_left_to_others(
    server: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head shows 1000 entries at most; here it shows 3."""
    monkeypatch.setattr(single, "HEAD_LIMIT", 3)
    await server.store(*map(entry, "abcdefgh"))
    async with server.open() as client:
        for id in ids(*"abcde"):
            client.leave(id)
        claim = await client.take(2)
        assert (len(claim.entries), claim.more) == (2, True)
        first = keys_of(one.entry for one in claim.entries)
        claim = await client.take(2, first)
        assert sorted([*first, *keys_of(one.entry for one in claim.entries)]) == ["f", "g", "h"]
        assert not claim.more
        await client.ack(*"fgh")
        claim = await client.take(2)
        assert (claim.entries, claim.more) == ([], False)
