"""The contract of ``Backend``, for every kind: adding, updating, reading, and what tools need.

The tests use nothing but the protocol. Claims and leases are in ``test_contract_claims.py``.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from scrapy_apify_rq.backends.base import Added, State, Updated
from tests.support.backend_process import CONTESTED, LARGE, do_add, do_claim
from tests.support.backends import Handy, Queues, entry, handled, ids, keys_of, numbered
from tests.support.queues import NAME


async def test_opening_creates_an_empty_queue_and_finds_it_again(queues: Queues) -> None:
    async with queues.open() as backend:
        first = await backend.info()
        assert first[1:5] == (queues.prefix + NAME, 0, 0, 0)
        assert backend.location
        assert "\n" not in backend.location
        assert await backend.add([], forefront=False) == []
        assert await backend.update([], forefront=False) == []
        assert await backend.look() == ("", 0, 0, 0)
        await backend.fill("a")
    async with queues.open() as backend:
        assert (await backend.info()).id == first.id
        assert await backend.keys() == ["a"]


async def test_closing_twice_or_without_opening_is_fine(queues: Queues) -> None:
    backend = queues.backend()
    await backend.close()
    await backend.open()
    await backend.close()
    await backend.close()


async def test_queues_do_not_mix(queues: Queues) -> None:
    async with queues.open("one") as one, queues.open("two") as two:
        assert (await one.info()).id != (await two.info()).id
        await one.fill("a", "b")
        assert await two.fill("a") == [Added(*ids("a"), False, False)]
        await two.ack("a")
        await one.delete(ids("b"))
        assert await one.look() == ("a", 1, 0, 1)
        assert await two.look() == ("", 1, 1, 0)
        await two.purge()
        assert await one.listed() == {"a"}
        assert await one.keys() == ["a"]
        assert await two.get(*ids("a")) is None


# What crawls keep beside their entries


async def test_records_are_kept_until_they_are_deleted(queues: Queues) -> None:
    large = json.dumps("x" * 2**20).encode()
    async with queues.open("one") as one, queues.open("two") as two:
        await one.save_records({"a/1": b"1", "a/%": b"{}", "b/1": large, "A/1": b"0", "a~!%": b"9"})
        await one.save_records({"a/1": b"2", "a/%": None, "a/3": '"\u017e"'.encode(), "c": None})
        await one.save_records({})
        await two.save_records({"a/1": b'"of the other"'})
    async with queues.open("one") as one:
        assert one.keeps_records
        assert await one.load_records("a/") == {"a/1": b"2", "a/3": '"\u017e"'.encode()}
        assert await one.load_records("a~") == {"a~!%": b"9"}
        assert await one.load_records("b/1") == {"b/1": large}
        assert await one.load_records("a/%") == {}
        await one.purge()
        assert await one.load_records("") == {}
    async with queues.open("two") as two:
        await two.check()
        assert await two.load_records("") == {"a/1": b'"of the other"'}


# add


async def test_order_is_that_of_adding_and_forefront_is_the_very_front(backend: Handy) -> None:
    await backend.fill("c", "a")
    await backend.fill("b")
    assert await backend.keys() == ["c", "a", "b"]
    await backend.fill("f", "e", forefront=True)
    await backend.fill("d")
    await backend.fill("g", forefront=True)
    assert await backend.keys() == ["g", "e", "f", "c", "a", "b", "d"]


@pytest.mark.parametrize("forefront", [False, True])
async def test_what_is_there_is_answered_and_left_as_it_is(backend: Handy, forefront: bool) -> None:
    there = [entry("a", url="https://example.com/first"), entry("b"), handled("c")]
    await backend.fill(*there)
    keys = ("c", "new", "b", "a", "newer", "new")
    again = [entry(key, url=f"https://example.com/{n}") for n, key in enumerate(keys)]
    assert await backend.fill(*again, forefront=forefront) == [
        Added(*ids("c"), True, True),
        Added(*ids("new"), False, False),
        Added(*ids("b"), True, False),
        Added(*ids("a"), True, False),
        Added(*ids("newer"), False, False),
        Added(*ids("new"), True, False),
    ]
    new, newer = again[1], again[4]
    everything = {one.id: one for one in (*there, new, newer)}
    assert {id: await backend.get(id) for id in everything} == everything
    assert await backend.entries() == [
        *((newer, new, *there[:2]) if forefront else (*there[:2], new, newer))
    ]
    assert (await backend.info())[2:5] == (5, 1, 4)


async def test_a_full_batch_is_taken(backend: Handy) -> None:
    batch = numbered(backend.batch)
    answers = await backend.add(batch, forefront=False)
    assert [answer.id for answer in answers] == [entry.id for entry in batch]
    assert await backend.entries() == batch
    await backend.ack(*keys_of(batch))
    assert await backend.look() == ("", len(batch), len(batch), 0)


async def test_an_entry_can_be_added_handled(backend: Handy) -> None:
    await backend.fill(handled("a"), "b")
    assert await backend.look() == ("b", 2, 1, 1)
    found = [await backend.get(id) for id in ids("a", "b", "strange")]
    assert found == [handled("a"), entry("b"), None]


async def test_an_entry_comes_back_whole(backend: Handy) -> None:
    whole = entry(
        "whole",
        url="https://example.com/?q=%C3%A9#part",
        method="POST",
        payload='{"text": "žluť \u0000 \U0001f600"}',
        headers={"Accept": "*/*", "X-Empty": ""},
        user_data={"label": "parse", "nested": {"list": [1, 2.5, None, True, "\u2028"]}},
        retry_count=2,
        no_retry=True,
        error_messages=["first", "second", "third"],
        loaded_url="https://example.com/loaded",
    )
    await backend.fill(whole)
    assert await backend.entries() == [whole]
    assert await backend.get(whole.id) == whole
    assert [entry async for entry in backend.list()] == [whole]
    acked = whole.model_copy(update={"handled_at": handled("").handled_at})
    await backend.put(acked)
    assert await backend.get(whole.id) == acked


# update


async def test_an_acked_entry_leaves_the_queue_once(backend: Handy) -> None:
    await backend.fill("a", "b")
    await backend.ack("a")
    assert await backend.look() == ("b", 2, 1, 1)
    assert await backend.fill("a", forefront=True) == [Added(*ids("a"), True, True)]
    assert await backend.keys() == ["b"]
    await backend.put(handled("a", error_messages=["late"]))
    assert await backend.look() == ("b", 2, 1, 1)
    assert await backend.listed("failed") == {"a"}
    await backend.put(entry("a", error_messages=["pending again"]))
    assert await backend.look() == ("ba", 2, 0, 2)
    assert await backend.listed("failed") == set()


@pytest.mark.parametrize(("forefront", "order"), [(False, "cab"), (True, "bac")])
async def test_an_entry_goes_back_to_the_end_or_the_front(
    backend: Handy, forefront: bool, order: str
) -> None:
    await backend.fill("a", "b", "c")
    await backend.put("a", "b", forefront=forefront)
    assert await backend.look() == (order, 3, 0, 3)


async def test_an_update_replaces_the_whole_entry_or_adds_it(backend: Handy) -> None:
    old = entry("a", payload="old", headers={"A": "1"}, user_data={"x": 1}, retry_count=3)
    new = entry("a", url="https://example.com/new", method="PUT", error_messages=["why"])
    await backend.fill(old)
    await backend.put(new)
    assert await backend.get(old.id) == new
    assert await backend.entries() == [new]
    await backend.put("b")
    await backend.ack("c")
    await backend.put("d", forefront=True)
    assert await backend.look() == ("dab", 4, 1, 3)


# info, list, count, delete, purge, find


async def test_list_and_count_by_state(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as backend:
        await backend.fill("locked")
        assert await backend.keys(1) == ["locked"]
        await backend.fill(
            entry("pending"),
            entry("retried", retry_count=1, error_messages=["1"]),
            handled("fine"),
            handled("fine at last", retry_count=1, error_messages=["1"]),
            handled("failed", retry_count=1, error_messages=["1", "2"]),
        )
        states: list[State] = ["pending", "handled", "failed", "locked"]
        assert {state: await backend.listed(state) for state in states} == {
            "pending": {"locked", "pending", "retried"},
            "handled": {"fine", "fine at last", "failed"},
            "failed": {"failed"},
            "locked": {"locked"},
        }
        assert len(await backend.listed()) == 6
        assert [await backend.count(state) for state in states] == [3, 3, 1, 1]
        before = datetime.now(UTC)
        await backend.ack("locked")
        assert await backend.listed("locked") == set()
        assert [await backend.count(state) for state in states] == [2, 4, 1, 0]
        info = await backend.info()
        assert info.modified_at is not None
        assert abs(info.modified_at - before) < timedelta(seconds=60)
        assert info.operations is None or info.operations.writes >= 5


async def test_a_long_queue_is_claimed_in_order_and_listed_while_it_changes(
    backend: Handy,
) -> None:
    await backend.fill(*numbered(250))
    assert await backend.entries(1000) == numbered(250)
    seen = []
    async for found in backend.list("pending"):
        seen.append(found.unique_key)
        await backend.ack(found.unique_key)
    assert sorted(seen) == keys_of(numbered(250))


async def test_deleted_entries_are_gone_and_unknown_ids_ignored(backend: Handy) -> None:
    await backend.fill("a", handled("b"), "c", handled("d"))
    await backend.delete(ids("a", "b", "strange", "a"))
    assert await backend.listed() == {"c", "d"}
    assert await backend.look() == ("c", 2, 1, 1)
    assert await backend.fill("a") == [Added(*ids("a"), False, False)]
    assert await backend.keys() == ["c", "a"]


async def test_purge_leaves_an_empty_queue_that_works(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as backend:
        id = (await backend.info()).id
        await backend.fill("a", handled("b"), "c")
        await backend.take(1)
        await backend.purge()
        assert await backend.look() == ("", 0, 0, 0)
        assert await backend.listed() == set()
        # The API cannot empty a queue, so a purged one is a new one.
        assert (await backend.info()).id == id or queues.kind != "sqlite"
        answers = await backend.fill("b", "a")
        assert [answer.was_already_present for answer in answers] == [False, False]
        assert await backend.keys() == ["b", "a"]


async def test_find_opens_what_is_there_and_makes_nothing(queues: Queues) -> None:
    missing, found = queues.backend("one"), queues.backend("two")
    try:
        assert not await missing.find()
        async with queues.open("two") as made:
            await made.fill("a")
            assert await found.find()
            assert (await found.info()).id == (await made.info()).id
        assert await found.listed() == {"a"}
        assert not await missing.find()
        names = {known.name.removeprefix(queues.prefix) for known in await missing.queues()}
        assert names & {"one", "two"} == {"two"}
    finally:
        await missing.close()
        await found.close()


# Several clients and processes


async def test_a_write_is_seen_by_others_at_once(queues: Queues) -> None:
    async with queues.open() as one, queues.open() as two:
        assert await two.keys() == []
        await one.fill("a", "b", "c")
        assert await two.keys() == ["a", "b", "c"]
        assert await two.put(handled("a"), "b") == [Updated(False), Updated(False)]
        assert await one.keys() == ["c", "b"]
        assert await one.ack("b", "a") == [Updated(was_handled=False), Updated(was_handled=True)]
        await one.delete(ids("c"))
        assert await two.look() == ("", 2, 2, 0)


async def test_two_processes_add_and_claim_each_entry_once(queues: Queues) -> None:
    """And what they have stored is there when the other one is killed."""
    ids = sorted(entry.id for entry in numbered(CONTESTED))
    async with queues.process(lock_secs=600) as ask_other, queues.open(lock_secs=600) as backend:
        for name, work in (("add", do_add), ("claim", do_claim)):
            answers = await asyncio.gather(ask_other(name), work(backend))
            assert sorted(answers[0] + answers[1]) == ids, name
        await ask_other("store")
    async with queues.open() as backend:
        await backend.settle()
        assert (await backend.info())[2:5] == (CONTESTED + 3, 1, CONTESTED + 2)
        assert await backend.listed("handled") == {"b"}


async def test_large_entries_take_little_memory(queues: Queues) -> None:
    if queues.kind == "live":
        pytest.skip("it would send too much")
    await queues.store(*(entry(f"{n}", payload="x" * LARGE) for n in range(20)))
    async with queues.process() as ask:
        done, grown = await ask("handle")
    assert done == 20
    # One claim, the next one while it is still there, and copies of some entries on their way.
    assert grown < 16 * LARGE
