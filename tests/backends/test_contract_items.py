"""The contract of ``ItemStore``, for every backend that has one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scrapy_apify_rq.backends.base import EntryItems, ItemStore, LooseItems
from tests.support.backends import Handy, Queues, entry, handled, ids


@pytest.fixture
def store(backend: Handy) -> ItemStore:
    assert backend.items is not None
    return backend.items


def texts(*values: object) -> list[str]:
    """Items with these values."""
    return [json.dumps({"value": value}) for value in values]


def value(text: str) -> object:
    return json.loads(text)["value"]


async def read(store: ItemStore, after: int = 0) -> list[tuple[str | None, object]]:
    """The entries and values of the items."""
    found = [saved async for saved in store.read(after)]
    assert len(found) <= await store.count()
    assert [one.number for one in found] == sorted(one.number for one in found)
    assert len({one.key for one in found}) == len(found)
    return [(one.entry, value(one.json)) for one in found]


async def test_items_come_with_the_update_and_only_with_the_first(
    backend: Handy, store: ItemStore
) -> None:
    await backend.fill("a", "b")
    (a, b), items = ids("a", "b"), EntryItems(texts(1, 2))
    await backend.update([entry("a")], forefront=True, items={a: EntryItems(texts(0))})  # a retry
    entries = [handled("a"), handled("b")]
    await backend.update(entries, forefront=False, items={a: items})
    await backend.update(entries, forefront=False, items={a: items, b: items})
    # A dataset takes nothing back: the items of whoever came second are there, too.
    late = [(b, 1), (b, 2)] if backend.counts_reads else []
    assert await read(store) == [(a, 0), (a, 1), (a, 2), *late]
    assert await store.last() > 0
    await backend.purge()
    assert await read(store) == []
    assert await store.last() == 0


async def test_what_is_sent_ahead_is_valid_with_its_update(
    backend: Handy, store: ItemStore
) -> None:
    await backend.fill("a", "b", "c")
    a, b, c = ids("a", "b", "c")
    large = "x" * 40_000
    for id in (a, b, c):
        await store.save([LooseItems(texts(large, large), id, id), LooseItems(texts(3), id, id)])
    assert await read(store) == []
    await backend.ack("b")
    entries = [handled("a"), handled("b")]
    items = {a: EntryItems(texts(4), a), b: EntryItems([], b)}
    await backend.update(entries, forefront=False, items=items)
    found = await read(store)
    assert [value for entry, value in found if entry == a] == [large, large, 3, 4]
    assert {entry for entry, _ in found} == ({a, b} if backend.counts_reads else {a})
    await store.discard_spilled()
    await backend.update([handled("c")], forefront=False, items={c: EntryItems(texts(5), "later")})
    assert [value for entry, value in await read(store) if entry == c] == [5]


async def test_items_of_no_entry_are_saved_once(backend: Handy, store: ItemStore) -> None:
    await store.save([LooseItems(texts(1), "x"), LooseItems(texts(2), "y")])
    first = await store.last()
    await store.save([LooseItems(texts(1), "x"), LooseItems(texts(3), "z")])
    assert await read(store) == [(None, 1), (None, 2), (None, 3)]
    assert await store.keys(0) == {"x", "y", "z"}
    assert await store.keys(first) >= {"z"}
    assert (await read(store, first))[-1] == (None, 3)


async def test_many_items_in_order(backend: Handy, store: ItemStore) -> None:
    await backend.fill("a")
    values = [str(number) * 250 for number in range(8_000)]
    items = {ids("a")[0]: EntryItems(texts(*values))}
    await backend.update([handled("a")], forefront=False, items=items)
    assert [value for _, value in await read(store)] == values


async def test_notes_and_items_of_clients_and_queues(queues: Queues) -> None:
    def worker(key: str) -> Any:
        return queues.open("one", lock_secs=10, client_key=key)

    async with worker("x") as x, worker("y") as y, queues.open("two") as two:
        await x.items.note({"a": "1", "b": "2"})
        await x.items.note({"a": "3"})
        await y.items.note({"a": "4"})
        await two.items.note({"a": "5"})
        assert await x.items.notes() == {"a": "3", "b": "2"}
        # Over the API, those of other queues are not looked at.
        of_two = [] if x.counts_reads else [{"a": "5"}]
        assert await x.items.notes_of_others(["a", "c"]) == [{"a": "4"}, *of_two]
        for number, client in enumerate((x, y, two)):
            await client.items.save([LooseItems(texts(number), f"{number}")])
        assert await read(x.items) == [(None, 0), (None, 1)]
    async with worker("x") as x, queues.open("two") as two:  # in a later run
        assert [value(saved.json) async for saved in x.items.read(own=True)] == [0]
        assert [value(saved.json) async for saved in two.items.read(own=True)] == [2]
        await x.purge()
        assert await x.items.notes() == {}
        assert await two.items.count() == 1
