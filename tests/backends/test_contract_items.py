"""The contract of ``ItemStore``, for every backend that has one."""

from __future__ import annotations

import pytest

from scrapy_apify_rq.backends.base import EntryItems, ItemStore, LooseItems
from tests.support.backends import Handy, Queues, entry, handled, ids


@pytest.fixture
def store(backend: Handy) -> ItemStore:
    if backend.items is None:
        pytest.skip("it saves no items")
    return backend.items


async def read(store: ItemStore, after: int = 0) -> list[tuple[str | None, str]]:
    found = [saved async for saved in store.read(after)]
    assert len(found) == await store.count()
    assert [one.number for one in found] == sorted(one.number for one in found)
    return [(one.entry, one.json) for one in found]


async def test_items_come_with_the_update_and_only_with_the_first(
    backend: Handy, store: ItemStore
) -> None:
    await backend.fill("a", "b")
    (a, b), items = ids("a", "b"), EntryItems(["1", "2"])
    await backend.update([entry("a")], forefront=True, items={a: EntryItems(["0"])})  # a retry
    entries = [handled("a"), handled("b")]
    await backend.update(entries, forefront=False, items={a: items})
    await backend.update(entries, forefront=False, items={a: items, b: items})
    assert await read(store) == [(a, "0"), (a, "1"), (a, "2")]
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
        await store.save([LooseItems([large, large], id, id), LooseItems(["3"], id, id)])
    assert await read(store) == []
    await backend.ack("b")
    entries = [handled("a"), handled("b")]
    items = {a: EntryItems(["4"], a), b: EntryItems([], b)}
    await backend.update(entries, forefront=False, items=items)
    assert sorted(await read(store)) == sorted([(a, large), (a, large), (a, "3"), (a, "4")])
    await store.discard_spilled()
    await backend.update([handled("c")], forefront=False, items={c: EntryItems(["5"], c)})
    assert len(await read(store)) == 5


async def test_items_of_no_entry_are_saved_once(backend: Handy, store: ItemStore) -> None:
    await store.save([LooseItems(["1"], "x"), LooseItems(["2"], "y")])
    first = await store.last()
    await store.save([LooseItems(["1"], "x"), LooseItems(["3"], "z")])
    assert await read(store) == [(None, "1"), (None, "2"), (None, "3")]
    assert await store.keys(0) == {"x", "y", "z"}
    assert await store.keys(first) == {"z"}
    assert [saved.json async for saved in store.read(first)] == ["3"]


async def test_many_items_in_order(backend: Handy, store: ItemStore) -> None:
    await backend.fill("a")
    texts = [str(number) * 100 for number in range(20_000)]
    items = {ids("a")[0]: EntryItems(texts)}
    await backend.update([handled("a")], forefront=False, items=items)
    assert [json for _, json in await read(store)] == texts


async def test_notes_and_items_of_clients_and_queues(queues: Queues) -> None:
    async with (
        queues.open("one", lock_secs=10, client_key="x") as x,
        queues.open("one", lock_secs=10, client_key="y") as y,
        queues.open("two") as two,
    ):
        if x.items is None or y.items is None or two.items is None:
            pytest.skip("it saves no items")
        await x.items.note({"a": "1", "b": "2"})
        await x.items.note({"a": "3"})
        await y.items.note({"a": "4"})
        await two.items.note({"a": "5"})
        assert await x.items.notes() == {"a": "3", "b": "2"}
        assert await x.items.notes_of_others(["a", "c"]) == [{"a": "4"}, {"a": "5"}]
        assert await two.items.notes_of_others(["b"]) == [{"b": "2"}]
        for client, text in ((x, "1"), (y, "2"), (two, "3")):
            assert client.items is not None
            await client.items.save([LooseItems([text], text)])
        assert [saved.json async for saved in x.items.read()] == ["1", "2"]
        assert [saved.json async for saved in x.items.read(own=True)] == ["1"]
        assert [saved.json async for saved in two.items.read(own=True)] == ["3"]
        await x.purge()
        assert await y.items.notes() == {}
        assert await two.items.count() == 1
