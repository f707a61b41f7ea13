"""The API server, driven by Apify's own client for Python: every operation it has."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from scrapy_apify_rq.unique_keys import request_id
from tests.server import Server, serve

apify_client = pytest.importorskip("apify_client")

MINUTE = timedelta(seconds=60)


def request(key: str, **fields: Any) -> dict[str, Any]:
    return {"uniqueKey": key, "url": f"https://example.com/{key}", **fields}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), "--token", "secret") as server:
        yield server


def connected(server: Server, **options: Any) -> Any:
    return apify_client.ApifyClient(
        "secret",
        api_url=server.url,
        min_delay_between_retries=timedelta(milliseconds=5),
        **options,
    )


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    yield connected(server)
    server.faults()


@pytest.fixture
def queue(client: Any) -> Any:
    id = client.request_queues().get_or_create(name=f"queue-{uuid.uuid4()}").id
    return client.request_queue(id, client_key="client-one")


def test_queues(client: Any, queue: Any) -> None:
    created = queue.get()
    again = client.request_queues().get_or_create(name=created.name)
    assert again.id == created.id
    assert client.request_queue(f"me/{created.name}").get().id == created.id
    new_name = f"queue-{uuid.uuid4()}"
    changed = queue.update(name=new_name, title="T", general_access="RESTRICTED")
    assert (changed.name, changed.general_access) == (new_name, "RESTRICTED")
    client.request_queues().get_or_create()
    listed = client.request_queues().list(limit=10, desc=True)
    assert new_name in {item.name for item in listed.items}
    every = list(client.request_queues().iterate(unnamed=True, chunk_size=1))
    assert created.id in {item.id for item in every}
    assert len(every) == len({item.id for item in every}) > listed.total
    queue.delete()
    assert queue.get() is None


def test_one_request(queue: Any) -> None:
    sent = request("a|ž", method="POST", payload="{}", userData={"x": [1]}, headers={"A": "b"})
    added = queue.add_request(sent)
    assert (added.request_id, added.was_already_present) == (request_id("a|ž"), False)
    stored = queue.get_request(added.request_id)
    assert stored.unique_key == "a|ž"
    assert (stored.method, stored.payload, stored.headers) == ("POST", "{}", {"A": "b"})
    assert stored.user_data.model_dump() == {"x": [1]}
    stored.handled_at = datetime.now(timezone.utc)
    updated = queue.update_request(stored)
    assert (updated.was_already_present, updated.was_already_handled) == (True, False)
    assert queue.get_request(stored.id).handled_at is not None
    assert queue.get().handled_request_count == 1
    queue.delete_request(stored.id)
    assert queue.get_request(stored.id) is None


@pytest.mark.parametrize("compression", ["gzip", "brotli"])
def test_a_batch_of_60(server: Server, queue: Any, compression: str) -> None:
    queue = connected(server, compression=compression).request_queue(queue.get().id)
    server.forget_calls()
    result = queue.batch_add_requests([request(f"key-{n}") for n in range(60)])
    assert [one.unique_key for one in result.processed_requests] == [f"key-{n}" for n in range(60)]
    assert result.unprocessed_requests == []
    assert server.calls.operations == {"POST requests/batch": 3}
    assert [item.unique_key for item in queue.list_head(limit=3).items] == [
        "key-0",
        "key-1",
        "key-2",
    ]
    keys = [request_.unique_key for request_ in queue.iterate_requests(chunk_size=7)]
    assert sorted(keys) == sorted(f"key-{n}" for n in range(60))
    page = queue.list_requests(limit=5)
    assert (len(page.items), page.limit) == (5, 5)
    deleted = queue.batch_delete_requests(
        [{"uniqueKey": "key-0"}, {"id": request_id("key-1")}, {"uniqueKey": "key-2"}]
    )
    assert len(deleted.processed_requests) == 3
    assert queue.get().total_request_count == 57


def test_locks(server: Server, queue: Any) -> None:
    queue.batch_add_requests([request(key) for key in "abcd"])
    other = connected(server).request_queue(queue.get().id, client_key="client-two")
    locked = queue.list_and_lock_head(limit=3, lock_duration=MINUTE)
    assert [item.unique_key for item in locked.items] == ["a", "b", "c"]
    assert locked.lock_secs == 60
    assert locked.queue_has_locked_requests
    prolonged = queue.prolong_request_lock(locked.items[0].id, lock_duration=2 * MINUTE)
    assert prolonged.lock_expires_at > locked.items[0].lock_expires_at
    with pytest.raises(apify_client.errors.ApifyApiError) as failure:
        other.prolong_request_lock(locked.items[0].id, lock_duration=MINUTE)
    assert failure.value.status_code == 400
    assert failure.value.type == "request-handled-or-locked"
    states = {
        state: [one.unique_key for one in queue.list_requests(filter=[state]).items]
        for state in ("pending", "locked")
    }
    assert states["pending"] == ["d"]
    assert sorted(states["locked"]) == ["a", "b", "c"]
    union = queue.list_requests(filter=["pending", "locked"])
    assert len(union.items) == 4
    queue.delete_request_lock(locked.items[2].id, forefront=True)
    assert [
        i.unique_key for i in other.list_and_lock_head(limit=1, lock_duration=MINUTE).items
    ] == ["c"]
    assert queue.unlock_requests().unlocked_count == 2
    assert queue.list_head().had_multiple_clients


def test_the_client_survives_faults(server: Server, queue: Any) -> None:
    server.faults(dropped=0.1, limited=0.1, failed=0.1, lost=0.1, seed=3)
    for n in range(20):
        queue.add_request(request(f"key-{n}"))
    server.faults()
    assert queue.get().total_request_count == 20


def test_the_asynchronous_client(server: Server, queue: Any) -> None:
    id = queue.get().id

    async def work() -> list[str]:
        client = apify_client.ApifyClientAsync("secret", api_url=server.url)
        queue = client.request_queue(id, client_key="client-one")
        requests = [request(f"key-{n}") for n in range(60)]
        await queue.batch_add_requests(requests, max_parallel=3)
        return [one.unique_key async for one in queue.iterate_requests(chunk_size=50)]

    assert sorted(asyncio.run(work())) == sorted(f"key-{n}" for n in range(60))


def test_a_wrong_token(server: Server) -> None:
    client = apify_client.ApifyClient("wrong", api_url=server.url)
    with pytest.raises(apify_client.errors.ApifyApiError) as failure:
        client.request_queues().list()
    assert failure.value.status_code == 401
