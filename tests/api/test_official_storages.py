"""Datasets, key-value stores, runs and the user, asked for by Apify's own clients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.official_clients import Client, ClientError
from tests.support.optional import needs
from tests.support.raw_calls import request

pytestmark = needs("apify_client")

ITEMS = [{"n": n, "text": "ž", "#scrapy": {"entry": "e"}} for n in range(1500)]
BARE = [{"n": item["n"], "text": "ž"} for item in ITEMS]


@pytest.mark.parametrize("one", ["dataset", "key_value_store"])
async def test_storages(client: Client, one: str) -> None:
    storages = client.of([f"{one}s"])
    id = (await storages.get_or_create(name="made"))["id"]
    assert (await storages.get_or_create(name="made"))["id"] == id
    changed = await client.of([one, id]).update(name="renamed")
    assert changed["name"] == "renamed"
    assert (await client.of([one, "me/renamed"]).get())["id"] == id
    unnamed = await storages.get_or_create()
    assert [item["name"] for item in (await storages.list(desc=True))["items"]] == ["renamed"]
    every = [item["id"] for item in await storages.iterate(unnamed=True, limit=5)]
    assert every == [id, unnamed["id"]]
    await client.of([one, id]).delete()
    assert not await client.of([one, id]).get()


async def test_items(client: Client) -> None:
    id = (await client.of(["datasets"]).get_or_create())["id"]
    dataset = client.of(["dataset", id])
    await dataset.push_items(ITEMS[0])
    await dataset.push_items(ITEMS[1:])
    counts = {"itemCount": 1500, "cleanItemCount": 1500}
    assert (await dataset.get()).items() >= counts.items()
    assert (await dataset.list_items())["items"] == ITEMS
    page = await dataset.list_items(offset=2, limit=3, desc=True, clean=True)
    expected = {"total": 1500, "offset": 2, "count": 3, "limit": 3, "desc": True}
    assert page.items() >= expected.items()
    assert page["items"] == BARE[-3:-6:-1]
    page = await dataset.list_items(limit=1, skip_hidden=True, omit=["n"])
    assert page["items"] == [{"text": "ž"}]
    picked = await dataset.iterate_items(fields=["n"], offset=200, limit=1100)
    assert picked == [{"n": n} for n in range(200, 1300)]


async def test_records(client: Client) -> None:
    id = (await client.of(["key_value_stores"]).get_or_create())["id"]
    store = client.of(["key_value_store", id])
    values: dict[str, Any] = {"a": {"ž": ["x" * 2000]}, "b": "text", "c": None, "d": 3}
    for key, value in values.items():
        more = {"content_type": "text/plain"} if key == "b" else {}
        await store.set_record(key=key, value=value, **more)
    for key, value in values.items():
        assert (await store.get_record(key))["value"] == value
        assert await store.record_exists(key)
    assert not await store.record_exists("nothing")
    assert await store.get_record("nothing") is None
    page = await store.list_keys(limit=2, prefix="")
    assert [one["key"] for one in page["items"]] == ["a", "b"]
    assert page["nextExclusiveStartKey"] == "b"
    keys = [one["key"] for one in await store.iterate_keys(exclusive_start_key="a")]
    assert keys == ["b", "c", "d"]
    await store.delete_record("b")
    assert await store.get_record("b") is None


async def test_a_run_and_its_storages(client: Client) -> None:
    """It is there once a call names it, even if that call is for what it holds."""
    here = ["run", "runOfTheTests"]
    await client.of(here, ["dataset"]).push_items([{"a": 1}])
    await client.of(here, ["key_value_store"]).set_record(key="OUTPUT", value={"b": 2})
    await client.of(here, ["request_queue"]).add_request(request("c"))
    run = await client.of(here).get()
    assert run["status"] == "RUNNING"
    dataset = client.of(["dataset", run["defaultDatasetId"]])
    assert (await dataset.list_items())["items"] == [{"a": 1}]
    store = client.of(["key_value_store", run["defaultKeyValueStoreId"]])
    assert (await store.get_record("OUTPUT"))["value"] == {"b": 2}
    queue = client.queue(run["defaultRequestQueueId"])
    assert (await queue.get())["totalRequestCount"] == 1
    for message, is_terminal in (("half", False), ("done", True)):
        given = {"status_message": message, "is_status_message_terminal": is_terminal}
        for found in (await client.of(here).update(**given), await client.of(here).get()):
            seen = {"statusMessage": message, "isStatusMessageTerminal": is_terminal}
            assert found.items() >= {**run, **seen}.items()
    other = await client.of(["run", "another"]).get()
    assert other["defaultDatasetId"] != run["defaultDatasetId"]
    assert not await client.of(["run", "no_run"]).get()


async def test_the_user(client: Client) -> None:
    user = await client.of(["user"]).get()
    assert user["username"] == "local"
    assert (await client.of(["user", user["id"]]).get())["username"] == "local"
    assert not await client.of(["user", "another"]).get()


async def test_everything_else_is_not_there(client: Client) -> None:
    for path, method in (([["actors"]], "list"), ([["run", "some"]], "abort")):
        with pytest.raises(ClientError) as failure:
            await getattr(client.of(*path), method)()
        assert failure.value.args == (404, "page-not-found")
