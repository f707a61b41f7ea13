"""The API server, driven by Apify's own client for Python: every operation it has."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scrapy_apify_rq.entries.unique_keys import request_id
from tests.server import Server, serve
from tests.support.waiting import run_async

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
    stored.handled_at = datetime.now(UTC)
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


# What tests of Apify's clients and of its SDK assert about the platform, and is not above


def stats(queue: Any) -> dict[str, int]:
    counts: dict[str, int] = queue.get().stats.model_dump(by_alias=True)
    return counts


def keys(items: Any) -> list[str]:
    return [item.unique_key for item in items]


def test_pages_follow_each_other_by_cursor(queue: Any) -> None:
    queue.batch_add_requests([request(f"key-{n}") for n in range(5)])
    pages = [queue.list_requests(limit=2)]
    while cursor := pages[-1].next_cursor:
        pages.append(queue.list_requests(limit=2, cursor=cursor))
    assert [len(page.items) for page in pages] == [2, 2, 1]
    assert len({key for page in pages for key in keys(page.items)}) == 5


def test_fresh_requests_are_pending(queue: Any) -> None:
    queue.batch_add_requests([request(key) for key in "abc"])
    assert sorted(keys(queue.list_requests(filter=["pending"]).items)) == ["a", "b", "c"]


def test_what_was_never_there(client: Any, queue: Any) -> None:
    assert client.request_queue("abcdefghijklmnopq").get() is None
    assert queue.get_request("abcdefghijklmno") is None
    queue.delete_request("abcdefghijklmno")
    assert keys(queue.list_head().items) == []


def test_all_locks_of_a_client_end_at_once(queue: Any) -> None:
    queue.batch_add_requests([request(f"key-{n}") for n in range(5)])
    queue.list_and_lock_head(limit=3, lock_duration=MINUTE)
    assert queue.unlock_requests().unlocked_count == 3
    assert len(queue.list_and_lock_head(lock_duration=MINUTE).items) == 5


def test_forefront_goes_before_what_is_there(queue: Any) -> None:
    queue.batch_add_requests([request(key) for key in "abc"])
    queue.add_request(request("first"), forefront=True)
    queue.add_request(request("zeroth"), forefront=True)
    assert keys(queue.list_head().items) == ["zeroth", "first", "a", "b", "c"]
    again = queue.get_request(request_id("b"))
    queue.update_request(again, forefront=True)
    assert keys(queue.list_head(limit=2).items) == ["b", "zeroth"]


def test_a_locked_request_that_is_reclaimed_is_free(queue: Any) -> None:
    queue.batch_add_requests([request(key) for key in "ab"])
    (locked,) = queue.list_and_lock_head(limit=1, lock_duration=3 * MINUTE).items
    queue.update_request(queue.get_request(locked.id), forefront=True)
    (again,) = queue.list_and_lock_head(limit=1, lock_duration=MINUTE).items
    assert again.id == locked.id


def test_a_handled_request_that_is_reclaimed_is_pending(queue: Any) -> None:
    queue.batch_add_requests([request(key) for key in "ab"])
    stored = queue.get_request(request_id("a"))
    stored.handled_at = datetime.now(UTC)
    queue.update_request(stored)
    stored.handled_at = None
    answer = queue.update_request(stored)
    assert (answer.was_already_present, answer.was_already_handled) == (True, True)
    now = queue.get()
    counts = (now.total_request_count, now.handled_request_count, now.pending_request_count)
    assert counts == (2, 0, 2)


def test_several_clients_are_told_by_their_keys(client: Any, queue: Any) -> None:
    id = queue.get().id
    queue.list_head()
    queue.list_head()
    client.request_queue(id).get()
    assert not queue.get().had_multiple_clients
    client.request_queue(id).list_head()
    assert queue.get().had_multiple_clients


def test_what_is_billed(client: Any, queue: Any) -> None:
    for key in "abc":
        queue.add_request(request(key))
    assert stats(queue)["writeCount"] == 3
    done = [request(f"done-{n}", handledAt="2026-01-02T03:04:05.678Z") for n in range(10)]
    added = queue.batch_add_requests(done).processed_requests
    assert [one.was_already_handled for one in added] == [False] * 10
    assert queue.get().handled_request_count == 10
    before = stats(queue)["readCount"]
    queue.list_requests()
    assert stats(queue)["readCount"] == before + 13
    queue.list_and_lock_head(limit=2, lock_duration=MINUTE)
    assert stats(queue)["writeCount"] == 15
    queue.list_head(limit=2)
    assert stats(queue)["headItemReadCount"] == 2


def test_a_long_url_is_cut_on_the_head_only(queue: Any) -> None:
    long = request("long/" * 100, userData={"kept": True})
    id = queue.add_request(long).request_id
    assert id == request_id(long["uniqueKey"])
    (item,) = queue.list_head().items
    assert (item.id, len(item.unique_key), len(item.url)) == (id, 128, 128)
    assert item.url.endswith("...[truncated]")
    assert "user_data" not in item.model_dump()
    stored = queue.get_request(item.id)
    assert (stored.unique_key, stored.url) == (long["uniqueKey"], long["url"])
    assert stored.user_data.model_dump() == {"kept": True}
    stored.handled_at = datetime.now(UTC)
    queue.update_request(stored)
    assert queue.list_head().items == []


def test_one_key_twice(queue: Any) -> None:
    queue.add_request(request("a", userData={"n": 1}))
    again = queue.add_request(request("a", userData={"n": 2}))
    assert (again.was_already_present, again.was_already_handled) == (True, False)
    assert queue.get_request(again.request_id).user_data.model_dump() == {"n": 1}
    with pytest.raises(apify_client.errors.ApifyApiError) as failure:
        queue.batch_add_requests([request("b"), request("b")])
    assert failure.value.status_code == 400
    assert failure.value.type == "request-queue-duplicate-requests"
    assert queue.get().total_request_count == 1


def test_many_workers_share_a_queue(server: Server, queue: Any) -> None:
    id = queue.get().id
    queue.batch_add_requests([request(f"key-{n}") for n in range(60)])

    def work(number: int) -> list[str]:
        own = connected(server).request_queue(id, client_key=f"worker-{number}")
        done: list[str] = []
        while items := own.list_and_lock_head(limit=7, lock_duration=MINUTE).items:
            for item in items:
                stored = own.get_request(item.id)
                stored.handled_at = datetime.now(UTC)
                own.update_request(stored)
                done.append(stored.unique_key)
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [key for keys in pool.map(work, range(4)) for key in keys]
    assert sorted(done) == sorted(f"key-{n}" for n in range(60))
    now = queue.get()
    assert (now.handled_request_count, now.pending_request_count) == (60, 0)


def test_queues_are_apart(client: Any, queue: Any) -> None:
    other = client.request_queue(client.request_queues().get_or_create().id)
    queue.add_request(request("a"))
    assert not other.add_request(request("a")).was_already_present
    other.delete_request(request_id("a"))
    assert queue.get_request(request_id("a")) is not None


# Faults


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

    assert sorted(run_async(work())) == sorted(f"key-{n}" for n in range(60))


def test_a_wrong_token(server: Server) -> None:
    client = apify_client.ApifyClient("wrong", api_url=server.url)
    with pytest.raises(apify_client.errors.ApifyApiError) as failure:
        client.request_queues().list()
    assert failure.value.status_code == 401
