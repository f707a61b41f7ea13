"""The contract of ``Backend``: every promise of its docstrings, for every kind of backend.

The tests use nothing but the protocol. A new kind needs its name in ``KINDS``, a line in
``Queues.backend``, and its abilities in ``LACKS``.

"server" is the API's backend over HTTP on our own server, "live" the same on Apify's: it runs where
``APIFY_TOKEN`` is set, with queues of its own that it deletes.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.backends.base import Added, Backend, Claim, State, Updated
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.servers import TOKEN, Servers
from tests.support.waiting import run_async

LIVE_URL = os.environ.get("APIFY_API_BASE_URL") or "https://api.apify.com"
LIVE_TOKEN = os.environ.get("APIFY_TOKEN")
KINDS = [
    "sqlite",
    "server",
    pytest.param(
        "live",
        marks=[
            pytest.mark.live,
            pytest.mark.skipif(not LIVE_TOKEN, reason="APIFY_TOKEN is not set"),
        ],
    ),
]
# What a kind cannot do: the test that needs it is skipped with this reason.
LACKS = {
    "server": {
        "known": "the API leases what it will, whatever we know",
        "same id": "the API cannot empty a queue, so a purged one is a new one",
    },
}
LACKS["live"] = LACKS["server"]
# All that tests here open.
NAMES = ("queue", "one", "two")
ROOT = Path(__file__).parents[1]
PLENTY = 16 * 1024 * 1024
HANDLED_AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)

P = ParamSpec("P")


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_async(test(*args, **kwargs))

    return run


class Clock:
    """Moves the time that leases go by: a test's own, or the real one by waiting for it."""

    def __init__(self, kind: str) -> None:
        self.is_real = kind != "sqlite"
        self.lock_secs = {"sqlite": 60, "server": 1, "live": 10}[kind]
        self.time = 1_000_000.0

    def now(self) -> float:
        return time.time() if self.is_real else self.time

    @property
    def options(self) -> dict[str, Any]:
        return {"lock_secs": self.lock_secs, **({} if self.is_real else {"now": self.now})}

    async def advance(self, share: float) -> None:
        """By this share of a lease."""
        self.time += share * self.lock_secs
        if self.is_real:
            await asyncio.sleep(share * self.lock_secs)


@dataclass(frozen=True)
class Queues:
    """Where the queues of one test live. Another process can make one like it."""

    kind: str
    folder: Path
    url: str = ""
    prefix: str = ""
    """Of the names of live queues."""

    def backend(self, name: str, **options: Any) -> Backend:
        assert name in NAMES
        if self.kind == "sqlite":
            return SqliteBackend(self.folder, name=name, **options)
        token = LIVE_TOKEN if self.kind == "live" else TOKEN
        return ApifyBackend(
            self.url, token, name=self.prefix + name, inc_stat=lambda stat: None, **options
        )

    def can(self, ability: str) -> bool:
        return ability not in LACKS.get(self.kind, {})

    def needs(self, ability: str) -> None:
        """Skip the test where this kind lacks it."""
        if not self.can(ability):
            pytest.skip(LACKS[self.kind][ability])

    async def delete_all(self) -> None:
        """Delete the queues of this test: live ones would stay."""
        for name in NAMES:
            async with self.open(name) as backend:
                assert isinstance(backend, ApifyBackend)
                await backend._api.delete_queue()

    @asynccontextmanager
    async def open(self, name: str = "queue", **options: Any) -> AsyncIterator[Backend]:
        backend = self.backend(name, **options)
        try:
            await backend.open()
            yield backend
        finally:
            await backend.close()

    def child(self, work: str) -> subprocess.Popen[str]:
        """Run ``work``, a coroutine function of this module, in a process of its own."""
        arguments = f"{self.kind!r}, Path({str(self.folder)!r}), {self.url!r}, {self.prefix!r}"
        code = (
            "import asyncio; from pathlib import Path; from tests import test_backends as module;"
            f"asyncio.run(module.{work}(module.Queues({arguments})))"
        )
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(params=KINDS)
def queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queues]:
    kind = request.param
    if kind == "sqlite":
        yield Queues(kind, tmp_path)
    elif kind == "server":
        servers: Servers = request.getfixturevalue("servers")
        yield Queues(kind, tmp_path, servers.serve(tmp_path).url)
    else:
        queues = Queues(kind, tmp_path, LIVE_URL, f"scrapy-apify-rq-test-{uuid.uuid4().hex[:12]}-")
        try:
            yield queues
        finally:
            run_async(queues.delete_all())


def entry(key: str, **values: Any) -> Entry:
    values.setdefault("url", f"https://example.com/{key}")
    return Entry(id=request_id(key), unique_key=key, **values)


def entries(*keys: str) -> list[Entry]:
    return [entry(key) for key in keys]


def numbered(count: int) -> list[Entry]:
    return [entry(f"{number:03}") for number in range(count)]


def handled(key: str, **values: Any) -> Entry:
    return entry(key, handled_at=HANDLED_AT, **values)


async def fill(backend: Backend, entries: Sequence[Entry]) -> list[Added]:
    answers = []
    for start in range(0, len(entries), backend.batch):
        batch = entries[start : start + backend.batch]
        answers += await backend.add(batch, forefront=False)
    return answers


async def settle(backend: Backend) -> None:
    """Wait until our own writes can be seen. Our server lags only when told to."""
    if "http://127.0.0.1:" not in backend.location:
        await asyncio.sleep(backend.lag)


async def claim(
    backend: Backend, limit: int = 100, known: Sequence[str] = (), size: int = PLENTY
) -> Claim:
    """Claim, when our own writes can be seen; ``known`` holds keys."""
    await settle(backend)
    return await backend.claim(limit, [request_id(key) for key in known], size)


async def keys(backend: Backend, limit: int = 100, known: Sequence[str] = ()) -> list[str]:
    return [claimed.entry.unique_key for claimed in (await claim(backend, limit, known)).entries]


async def counts(backend: Backend) -> tuple[int, int, int]:
    await settle(backend)
    info = await backend.info()
    return info.total, info.handled, info.pending


async def listed(backend: Backend, state: Any = None) -> set[str]:
    await settle(backend)
    found = [entry.unique_key async for entry in backend.list(state)]
    assert len(found) == len(set(found))
    return set(found)


# Opening and closing


@asynchronous
async def test_opening_creates_a_queue_and_finds_it_again(queues: Queues) -> None:
    async with queues.open() as backend:
        first = await backend.info()
        assert first[1:5] == (f"{queues.prefix}queue", 0, 0, 0)
        await backend.add(entries("a"), forefront=False)
    async with queues.open() as backend:
        assert (await backend.info()).id == first.id
        assert await keys(backend) == ["a"]


@asynchronous
async def test_closing_twice_or_without_opening_is_fine(queues: Queues) -> None:
    backend = queues.backend("queue")
    await backend.close()
    await backend.open()
    await backend.close()
    await backend.close()


@asynchronous
async def test_the_location_is_for_people(queues: Queues) -> None:
    async with queues.open() as backend:
        assert backend.location
        assert "\n" not in backend.location


@asynchronous
async def test_queues_do_not_mix(queues: Queues) -> None:
    async with queues.open("one") as one, queues.open("two") as two:
        assert (await one.info()).id != (await two.info()).id
        await one.add(entries("a", "b"), forefront=False)
        (answer,) = await two.add(entries("a"), forefront=False)
        assert not answer.was_already_present
        await two.update([handled("a")], forefront=False)
        await one.delete([request_id("b")])
        assert await counts(one) == (1, 0, 1)
        assert await counts(two) == (1, 1, 0)
        await two.purge()
        assert await listed(one) == {"a"}
        assert await keys(one) == ["a"]
        assert await get(two, "a") is None


async def get(backend: Backend, key: str) -> Entry | None:
    return await backend.get(request_id(key))


# add


@asynchronous
async def test_entries_are_claimed_in_the_order_of_their_adding(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("c", "a"), forefront=False)
        await backend.add(entries("b"), forefront=False)
        assert await keys(backend) == ["c", "a", "b"]


@asynchronous
async def test_forefront_puts_each_entry_at_the_very_front(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a"), forefront=False)
        await backend.add(entries("b", "c"), forefront=True)
        await backend.add(entries("d"), forefront=False)
        await backend.add(entries("e"), forefront=True)
        assert await keys(backend) == ["e", "c", "b", "a", "d"]


@asynchronous
async def test_add_answers_for_every_entry_in_order(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add([entry("pending"), handled("handled")], forefront=False)
        answers = await backend.add(entries("new", "handled", "pending", "newer"), forefront=False)
    assert answers == [
        Added(request_id("new"), False, False),
        Added(request_id("handled"), True, True),
        Added(request_id("pending"), True, False),
        Added(request_id("newer"), False, False),
    ]


@asynchronous
async def test_an_entry_that_comes_twice_in_one_call_is_added_once(queues: Queues) -> None:
    async with queues.open() as backend:
        twice = [entry("a"), entry("b"), entry("a", url="https://example.com/second")]
        answers = await backend.add(twice, forefront=False)
        assert [answer.was_already_present for answer in answers] == [False, False, True]
        assert await keys(backend) == ["a", "b"]
        assert await get(backend, "a") == entry("a")


@asynchronous
async def test_a_full_batch_is_taken(queues: Queues) -> None:
    async with queues.open() as backend:
        batch = numbered(backend.batch)
        answers = await backend.add(batch, forefront=False)
        assert [answer.id for answer in answers] == [entry.id for entry in batch]
        assert await keys(backend) == [entry.unique_key for entry in batch]
        await backend.update([handled(e.unique_key) for e in batch], forefront=False)
        assert await counts(backend) == (backend.batch, backend.batch, 0)


@pytest.mark.parametrize("forefront", [False, True])
@asynchronous
async def test_adding_leaves_an_existing_entry_as_it_is(queues: Queues, forefront: bool) -> None:
    first = [entry("a", url="https://example.com/first"), entry("b"), handled("c")]
    async with queues.open() as backend:
        await backend.add(first, forefront=False)
        again = [entry(key, url="https://example.com/second") for key in ("c", "b", "a")]
        await backend.add(again, forefront=forefront)
        assert [await backend.get(e.id) for e in first] == first
        assert await keys(backend) == ["a", "b"]
        assert await counts(backend) == (3, 1, 2)


@asynchronous
async def test_an_entry_can_be_added_handled(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add([handled("a"), entry("b")], forefront=False)
        assert await keys(backend) == ["b"]
        assert await counts(backend) == (2, 1, 1)
        assert await get(backend, "a") == handled("a")


@asynchronous
async def test_adding_nothing_changes_nothing(queues: Queues) -> None:
    async with queues.open() as backend:
        assert await backend.add([], forefront=False) == []
        await backend.update([], forefront=False)
        assert await counts(backend) == (0, 0, 0)


@asynchronous
async def test_an_entry_comes_back_whole(queues: Queues) -> None:
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
    async with queues.open() as backend:
        await backend.add([whole], forefront=False)
        (claimed,) = (await claim(backend)).entries
        assert claimed.entry == whole
        assert await backend.get(whole.id) == whole
        assert [entry async for entry in backend.list()] == [whole]


# claim


@asynchronous
async def test_claim_gives_no_more_than_asked_for(queues: Queues) -> None:
    async with queues.open() as backend:
        await fill(backend, numbered(5))
        assert await keys(backend, 2) == ["000", "001"]
        # Without leases nothing is taken: who claims says what it knows.
        assert await keys(backend, 2) == ["000", "001"]
        assert await keys(backend, 2, known=["000", "002"]) == ["001", "003"]
        assert await keys(backend, 5, known=["004", "strange"]) == ["000", "001", "002", "003"]
        assert await keys(backend, 5, known=[e.unique_key for e in numbered(5)]) == []


@pytest.mark.parametrize(
    ("limit", "known", "more"),
    [
        (2, [], True),
        (3, [], False),
        (4, [], False),
        (2, ["000"], False),
        (1, ["000"], True),
        (1, ["000", "001"], False),
        (1, ["000", "001", "002"], False),
        (2, ["strange", "stranger"], True),
        (3, ["strange", "stranger"], False),
    ],
)
@pytest.mark.parametrize("lock_secs", [None, 60])
@asynchronous
async def test_claim_tells_exactly_whether_there_is_more(
    queues: Queues, limit: int, known: list[str], more: bool, lock_secs: int | None
) -> None:
    if lock_secs is not None:
        queues.needs("known")
    async with queues.open(lock_secs=lock_secs) as backend:
        await fill(backend, [*numbered(3), handled("handled")])
        assert (await claim(backend, limit, known)).more is more


@asynchronous
async def test_an_empty_queue_has_nothing_to_claim(queues: Queues) -> None:
    async with queues.open() as backend:
        assert await claim(backend) == Claim([], False, alone=True)


@asynchronous
async def test_single_access_knows_no_leases(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a"), forefront=False)
        assert [claimed.lease for claimed in (await claim(backend)).entries] == [None]
        assert await listed(backend, "locked") == set()


@asynchronous
async def test_a_long_queue_is_claimed_in_order(queues: Queues) -> None:
    async with queues.open() as backend:
        await fill(backend, numbered(250))
        assert await keys(backend, 1000) == [entry.unique_key for entry in numbered(250)]


@pytest.mark.parametrize("lock_secs", [None, 60])
@asynchronous
async def test_a_claim_has_no_more_bytes_than_asked_for(
    queues: Queues, lock_secs: int | None
) -> None:
    large = [entry(f"{n}", payload=f"{n}" * 100_000) for n in range(7)]
    async with queues.open() as other, queues.open(lock_secs=lock_secs) as backend:
        await fill(other, large)
        found: list[str] = []
        sizes: list[int] = []
        more = True
        while more:
            answer = await claim(backend, 100, known=found, size=250_000)
            found += [claimed.entry.unique_key for claimed in answer.entries]
            sizes.append(len(answer.entries))
            more = answer.more
            if lock_secs:  # what did not fit is free
                assert await listed(other, "locked") == set(found)
        assert found == [entry.unique_key for entry in large]
        assert sizes == [2, 2, 2, 1]


@pytest.mark.parametrize("lock_secs", [None, 60])
@asynchronous
async def test_a_claim_has_at_least_one_entry(queues: Queues, lock_secs: int | None) -> None:
    small, large = entry("a"), entry("b", payload="x" * 100_000)
    async with queues.open() as other, queues.open(lock_secs=lock_secs) as backend:
        await other.add([large, small, handled("c")], forefront=False)
        answers = [await claim(backend, known=known, size=1000) for known in ([], ["b"])]
        assert [[one.entry for one in answer.entries] for answer in answers] == [[large], [small]]
        assert answers[0].more


LARGE = 5 * 1024 * 1024


async def claim_large(queues: Queues) -> None:
    """Handle all entries, and print by how many bytes the memory of this process grew."""
    done: set[str] = set()
    async with queues.open() as backend:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        more = True
        while more:
            answer = await backend.claim(1000, done, 4 * LARGE)
            more = answer.more
            for claimed in answer.entries:
                claimed.entry.handled_at = HANDLED_AT
                await backend.update([claimed.entry], forefront=False)
                done.add(claimed.entry.id)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([len(done), grown * 1024]))


def test_large_entries_take_little_memory(queues: Queues) -> None:
    if queues.kind == "live":
        pytest.skip("it would send 100 MB")
    count = 20

    async def prepare() -> None:
        async with queues.open() as backend:
            for n in range(count):
                await backend.add([entry(f"{n}", payload="x" * LARGE)], forefront=False)

    run_async(prepare())
    with queues.child("claim_large") as child:
        done, grown = json.loads(child.communicate(timeout=120)[0])
    assert done == count
    # One claim, the next one while it is still there, and copies of some entries on their way.
    assert grown < 14 * LARGE


@asynchronous
async def test_a_claim_says_whether_the_queue_is_ours_alone(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a"), forefront=False)
        assert (await claim(backend)).alone
        if queues.kind != "sqlite":
            async with queues.open("queue") as other:
                await claim(other)
            assert not (await claim(backend)).alone
    async with queues.open("two", lock_secs=60) as backend:
        assert not (await claim(backend)).alone


# update


@asynchronous
async def test_an_acked_entry_leaves_the_queue(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a", "b"), forefront=False)
        await backend.update([handled("a")], forefront=False)
        assert await keys(backend) == ["b"]
        assert await counts(backend) == (2, 1, 1)
        (answer,) = await backend.add(entries("a"), forefront=True)
        assert answer == Added(request_id("a"), True, True)
        assert await keys(backend) == ["b"]


@pytest.mark.parametrize(
    ("forefront", "order"), [(False, ["c", "a", "b"]), (True, ["b", "a", "c"])]
)
@asynchronous
async def test_an_entry_goes_back_to_the_end_or_the_front(
    queues: Queues, forefront: bool, order: list[str]
) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a", "b", "c"), forefront=False)
        await backend.update(entries("a", "b"), forefront=forefront)
        assert await keys(backend) == order
        assert await counts(backend) == (3, 0, 3)


@asynchronous
async def test_an_update_replaces_the_whole_entry(queues: Queues) -> None:
    old = entry("a", payload="old", headers={"A": "1"}, user_data={"x": 1}, retry_count=3)
    new = entry("a", url="https://example.com/new", method="PUT", error_messages=["why"])
    async with queues.open() as backend:
        await backend.add([old], forefront=False)
        await backend.update([new], forefront=False)
        assert await backend.get(old.id) == new
        (claimed,) = (await claim(backend)).entries
        assert claimed.entry == new


@asynchronous
async def test_an_update_of_an_unknown_entry_adds_it(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.update([entry("a")], forefront=False)
        await backend.update([handled("b")], forefront=False)
        await backend.update([entry("c")], forefront=True)
        assert await keys(backend) == ["c", "a"]
        assert await counts(backend) == (3, 1, 2)


@asynchronous
async def test_acking_twice_counts_once(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a", "b"), forefront=False)
        await backend.update([handled("a")], forefront=False)
        await backend.update([handled("a", error_messages=["late"])], forefront=False)
        assert await counts(backend) == (2, 1, 1)
        assert await listed(backend, "failed") == {"a"}


@asynchronous
async def test_a_handled_entry_can_be_made_pending_again(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add([entry("a"), handled("b", error_messages=["why"])], forefront=False)
        await backend.update([entry("b", error_messages=["why"])], forefront=False)
        assert await keys(backend) == ["a", "b"]
        assert await counts(backend) == (2, 0, 2)
        assert await listed(backend, "failed") == set()


# info, get, list, delete, purge


@asynchronous
async def test_get_knows_pending_and_handled_entries(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add([entry("a"), handled("b")], forefront=False)
        assert await get(backend, "a") == entry("a")
        assert await get(backend, "b") == handled("b")
        assert await get(backend, "c") is None


@asynchronous
async def test_list_by_state(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as backend:
        await backend.add(entries("locked"), forefront=False)
        assert await keys(backend, 1) == ["locked"]
        mixed = [
            entry("pending"),
            entry("retried", retry_count=1, error_messages=["1"]),
            handled("fine"),
            handled("fine at last", retry_count=1, error_messages=["1"]),
            handled("failed", retry_count=1, error_messages=["1", "2"]),
        ]
        await backend.add(mixed, forefront=False)
        assert await listed(backend, "pending") == {"locked", "pending", "retried"}
        assert await listed(backend, "handled") == {"fine", "fine at last", "failed"}
        assert await listed(backend, "failed") == {"failed"}
        assert await listed(backend, "locked") == {"locked"}
        assert len(await listed(backend)) == 6
        await backend.update([handled("locked")], forefront=False)
        assert await listed(backend, "locked") == set()


@asynchronous
async def test_list_gives_each_entry_once_while_the_queue_changes(queues: Queues) -> None:
    async with queues.open() as backend:
        await fill(backend, numbered(250))
        seen = []
        async for found in backend.list("pending"):
            seen.append(found.unique_key)
            await backend.update([handled(found.unique_key)], forefront=False)
        assert sorted(seen) == [entry.unique_key for entry in numbered(250)]


@asynchronous
async def test_deleted_entries_are_gone_and_unknown_ids_ignored(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add([entry("a"), handled("b"), entry("c"), handled("d")], forefront=False)
        await backend.delete([request_id(key) for key in ("a", "b", "strange", "a")])
        assert await listed(backend) == {"c", "d"}
        assert await keys(backend) == ["c"]
        assert await counts(backend) == (2, 1, 1)
        (answer,) = await backend.add(entries("a"), forefront=False)
        assert not answer.was_already_present
        assert await keys(backend) == ["c", "a"]


@asynchronous
async def test_purge_leaves_an_empty_queue_that_works(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as backend:
        id = (await backend.info()).id
        await backend.add([entry("a"), handled("b"), entry("c")], forefront=False)
        await claim(backend, 1)
        await backend.purge()
        assert await counts(backend) == (0, 0, 0)
        assert await listed(backend) == set()
        assert (await backend.info()).id == id or not queues.can("same id")
        answers = await backend.add(entries("b", "a"), forefront=False)
        assert [answer.was_already_present for answer in answers] == [False, False]
        assert await keys(backend) == ["b", "a"]


# Durability


@asynchronous
async def test_a_write_is_seen_by_others_at_once(queues: Queues) -> None:
    async with queues.open() as one, queues.open() as two:
        assert await keys(two) == []
        await one.add(entries("a", "b"), forefront=False)
        assert await keys(two) == ["a", "b"]
        await two.update([handled("a")], forefront=False)
        assert await keys(one) == ["b"]
        await one.delete([request_id("b")])
        assert await counts(two) == (1, 1, 0)


@asynchronous
async def test_find_opens_what_is_there_and_makes_nothing(queues: Queues) -> None:
    missing, found = queues.backend("one"), queues.backend("two")
    try:
        assert not await missing.find()
        async with queues.open("two") as made:
            await made.add(entries("a"), forefront=False)
            assert await found.find()
            assert (await found.info()).id == (await made.info()).id
        assert [entry.unique_key async for entry in found.list()] == ["a"]
        assert not await missing.find()
        names = await missing.names()
        assert queues.prefix + "two" in names
        assert queues.prefix + "one" not in names
    finally:
        await missing.close()
        await found.close()


@asynchronous
async def test_count_and_info_tell_what_list_does(queues: Queues) -> None:
    async with queues.open() as backend:
        before = datetime.now(UTC)
        failed = handled("failed", error_messages=["why"])
        await backend.add([failed, handled("fine"), *entries("a", "b", "c")], forefront=False)
        states: list[State] = ["pending", "handled", "failed", "locked"]
        assert [await backend.count(state) for state in states] == [3, 2, 1, 0]
        info = await backend.info()
        assert info.modified_at is not None
        assert abs(info.modified_at - before) < timedelta(seconds=60)
        assert info.operations is None or info.operations.writes >= 5


@asynchronous
async def test_lock_of_tells_who_holds_an_entry(queues: Queues) -> None:
    queues.needs("leases")
    async with queues.open(lock_secs=60, client_key="me") as backend:
        await backend.add(entries("a", "b"), forefront=False)
        await claim(backend, 1)
        lock = await backend.lock_of(request_id("a"))
        assert lock is not None
        assert lock.client_key == "me"
        left = lock.expires_at - datetime.now(UTC)
        assert timedelta(seconds=50) < left < timedelta(seconds=61)
        assert await backend.lock_of(request_id("b")) is None
        assert await backend.lock_of(request_id("strange")) is None
        assert await backend.count("locked") == 1


async def add_and_wait_for_death(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.add(entries("a", "b", "c"), forefront=False)
        await backend.update([handled("b")], forefront=False)
        print("stored", flush=True)
        sys.stdin.read()


def test_nothing_stored_is_lost_by_kill_9(queues: Queues) -> None:
    with queues.child("add_and_wait_for_death") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stored\n"
        child.kill()

    async def read() -> None:
        async with queues.open() as backend:
            assert await keys(backend) == ["a", "c"]
            assert await counts(backend) == (3, 1, 2)

    run_async(read())


# Leases


@asynchronous
async def test_a_claim_is_a_lease(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.add(entries("a", "b", "c"), forefront=False)
        before = time.time()
        leases = [claimed.lease for claimed in (await claim(one, 2)).entries]
        assert len(leases) == 2
        for lease in leases:
            assert lease is not None
            assert before + 60 <= lease <= time.time() + 60
        answer = await claim(two)
        assert [claimed.entry.unique_key for claimed in answer.entries] == ["c"]
        assert not answer.more
        assert await counts(two) == (3, 0, 3)


@pytest.mark.parametrize("limit", [25, 26, 30, 53])
@asynchronous
async def test_no_more_is_leased_than_asked_for(queues: Queues, limit: int) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await fill(one, numbered(60))
        claimed = await claim(one, limit)
        assert (len(claimed.entries), claimed.more) == (limit, True)
        assert len(await listed(two, "locked")) == limit


@asynchronous
async def test_what_we_know_is_not_leased(queues: Queues) -> None:
    queues.needs("known")
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.add(entries("a", "b"), forefront=False)
        assert await keys(one, known=["a"]) == ["b"]
        assert await keys(two) == ["a"]


@asynchronous
async def test_a_lapsed_lease_is_free_for_others(queues: Queues) -> None:
    clock = Clock(queues.kind)
    async with queues.open(**clock.options) as one, queues.open(**clock.options) as two:
        await one.add(entries("a"), forefront=False)
        lease = (await claim(one)).entries[0].lease
        assert lease == pytest.approx(clock.now() + clock.lock_secs, abs=0.3)
        await clock.advance(0.5)
        assert await keys(two) == []
        assert await listed(one, "locked") == {"a"}
        await clock.advance(0.6)
        assert await listed(one, "locked") == set()
        assert await keys(two) == ["a"]
        # It is the other's now: the first holder can neither keep nor free it.
        assert await one.prolong([request_id("a")]) == {}
        await one.unlock()
        assert await keys(one) == []


@asynchronous
async def test_prolong_starts_the_lease_anew(queues: Queues) -> None:
    clock = Clock(queues.kind)
    async with queues.open(**clock.options) as one, queues.open(**clock.options) as two:
        await one.add(entries("a", "b"), forefront=False)
        await claim(one, 1)
        await clock.advance(0.6)
        ids = [request_id(key) for key in ("a", "b", "strange")]
        assert await two.prolong(ids) == {}
        leases = await one.prolong(ids)
        until = clock.now() + clock.lock_secs
        assert leases == {request_id("a"): pytest.approx(until, abs=0.3)}
        await clock.advance(0.6)
        assert await keys(two) == ["b"]
        await clock.advance(0.5)
        assert await keys(two) == ["a"]
        assert await one.prolong(ids) == {}


@asynchronous
async def test_unlock_ends_all_leases_of_our_client_key(queues: Queues) -> None:
    mine: dict[str, Any] = {"lock_secs": 60, "client_key": "mine"}
    async with queues.open(**mine) as one, queues.open(lock_secs=60, client_key="other") as two:
        await one.add(entries("a", "b", "c"), forefront=False)
        await claim(one, 2)
        assert await keys(two) == ["c"]
        await two.unlock()
        assert await keys(two) == ["c"]
        # A process that died has left them; the next of the same key frees them.
        async with queues.open(**mine) as next_one:
            await next_one.unlock()
            assert await keys(next_one) == ["a", "b"]
        assert await one.prolong([request_id("a")])


@asynchronous
async def test_unlock_ends_single_leases_of_ours(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.add(entries("a", "b"), forefront=False)
        await claim(one)
        ids = [request_id("a"), request_id("strange")]
        await two.unlock(ids)
        assert await keys(two) == []
        await one.unlock(ids)
        assert await keys(two) == ["a"]
        assert await one.prolong([request_id("b")])


@asynchronous
async def test_a_claim_tells_of_leases(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.add(entries("a"), forefront=False)
        assert (await claim(one)).leased
        answer = await claim(two)
        assert (answer.entries, answer.leased) == ([], True)
        await one.update([handled("a")], forefront=False)
        answer = await claim(two)
        assert (answer.entries, answer.leased) == ([], False)


@asynchronous
async def test_an_update_tells_what_was_handled_before(queues: Queues) -> None:
    async with queues.open() as one, queues.open() as two:
        await one.add(entries("a", "b"), forefront=False)
        assert await one.update([handled("a"), entry("b")], forefront=False) == [
            Updated(was_handled=False),
            Updated(was_handled=False),
        ]
        assert await two.update([handled("b"), handled("a")], forefront=False) == [
            Updated(was_handled=False),
            Updated(was_handled=True),
        ]


@pytest.mark.parametrize("forefront", [False, True])
@asynchronous
async def test_an_update_ends_the_lease(queues: Queues, forefront: bool) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.add(entries("a", "b"), forefront=False)
        assert await keys(one) == ["a", "b"]
        await one.update([entry("a"), handled("b")], forefront=forefront)
        assert await one.prolong([request_id("a"), request_id("b")]) == {}
        assert await listed(one, "locked") == set()
        assert await keys(two) == ["a"]


# Several processes on one queue

CONTESTED = 500


async def claim_half(queues: Queues) -> None:
    async with queues.open(lock_secs=600) as backend:
        wait_for_start()
        ids: list[str] = []
        while len(ids) < CONTESTED / 2:
            answer = await backend.claim(5, (), PLENTY)
            ids += [claimed.entry.id for claimed in answer.entries]
    print(json.dumps(ids))


async def add_all(queues: Queues) -> None:
    async with queues.open() as backend:
        wait_for_start()
        answers = await fill(backend, numbered(CONTESTED))
    print(json.dumps([answer.id for answer in answers if not answer.was_already_present]))


def wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def race(queues: Queues, work: str) -> list[list[str]]:
    """Start ``work`` in two processes at the same moment; the ids that each of them printed."""
    with queues.child(work) as one, queues.child(work) as two:
        for child in (one, two):
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        try:
            outputs = [child.communicate(timeout=60)[0] for child in (one, two)]
        finally:
            one.kill()
            two.kill()
    return [json.loads(output) for output in outputs]


def test_two_processes_never_claim_the_same_entry(queues: Queues) -> None:
    async def prepare() -> None:
        async with queues.open() as backend:
            await fill(backend, numbered(CONTESTED))

    run_async(prepare())
    one, two = race(queues, "claim_half")
    assert sorted(one + two) == sorted(entry.id for entry in numbered(CONTESTED))


def test_two_processes_add_the_same_entries_once(queues: Queues) -> None:
    one, two = race(queues, "add_all")
    assert sorted(one + two) == sorted(entry.id for entry in numbered(CONTESTED))

    async def read() -> None:
        async with queues.open() as backend:
            assert await counts(backend) == (CONTESTED, 0, CONTESTED)

    run_async(read())
