"""The contract of ``Backend``, for every kind: claims, and the leases of shared access."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scrapy_apify_rq import clock
from scrapy_apify_rq.backends.base import Claim
from tests.support.backends import Handy, Queues, entry, handled, ids, keys_of, numbered


class Time:
    """That which leases go by. Only the live platform's has to be waited for."""

    def __init__(self, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_real = queues.kind == "live"
        self.lock_secs = 10 if self.is_real else 60
        self._monkeypatch = monkeypatch

    def leased_now(self) -> Any:
        """When a lease ends that begins now."""
        return pytest.approx(clock.now() + self.lock_secs, abs=self.lock_secs / 20)

    async def go_on(self, share: float) -> None:
        """By this share of a lease."""
        if self.is_real:
            await asyncio.sleep(share * self.lock_secs)
        else:
            self._monkeypatch.setattr(clock, "_START", clock._START + share * self.lock_secs)


@pytest.fixture
def lease_time(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(queues, monkeypatch)


@pytest.mark.parametrize("lock_secs", [None, 60])
async def test_a_claim_tells_exactly_whether_there_is_more(
    queues: Queues, lock_secs: int | None
) -> None:
    if lock_secs and queues.kind != "sqlite":
        pytest.skip("the API leases what it will, whatever we know")
    async with queues.open(lock_secs=lock_secs) as backend:
        await backend.fill("0", "1", "2", handled("handled"))
        for limit, known, found, more in [
            *[(2, "", "01", True), (2, "", "01", True), (3, "", "012", False)],
            *[(4, "", "012", False), (2, "0", "12", False), (2, "1", "02", False)],
            *[(1, "0", "1", True), (1, "01", "2", False), (1, "012", "", False)],
            (2, ["strange", "stranger"], "01", True),
            (3, ["strange", "stranger"], "012", False),
        ]:
            claim = await backend.take(limit, known)
            keys = "".join(one.entry.unique_key for one in claim.entries)
            assert (keys, claim.more) == (found, more), (limit, known)
            assert await backend.listed("locked") == (set(found) if lock_secs else set())
            await backend.unlock()


@pytest.mark.parametrize("lock_secs", [None, 60])
@pytest.mark.parametrize(
    ("limit", "known", "share", "found"),
    [
        (6, [], 9, "c8 a0 a1 b0 b1 c0"),
        (4, ["a0", "a1", "b0"], 2, "c8 b1 c0"),  # known ones take places of their host
        (99, [], 3, "c8 a0 a1 a2 b0 b1 b2 c0 c1"),
    ],
)
async def test_a_claim_brings_something_of_each_host(
    queues: Queues, lock_secs: int | None, limit: int, known: list[str], share: int, found: str
) -> None:
    if lock_secs and queues.kind != "sqlite":
        pytest.skip("the API leases its head, whatever its hosts")
    keys = [f"{name}{n}" for name in "abc" for n in range(9)]
    entries = {key: entry(key, url=f"https://{key[0]}.com/") for key in keys}
    async with queues.open(lock_secs=lock_secs) as backend:
        await backend.fill(*entries.values())
        await backend.put(entries["c8"], forefront=True)
        claim = await backend.take(limit, known, share=share)
        assert " ".join(keys_of(one.entry for one in claim.entries)) == found
        assert claim.more


async def test_what_a_worker_has_leased_takes_places_of_its_host(queues: Queues) -> None:
    if queues.kind != "sqlite":
        pytest.skip("the API leases its head, whatever its hosts")
    entries = [entry(f"{name}{n}", url=f"https://{name}.com/") for name in "ab" for n in range(9)]
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.fill(*entries)
        held = await one.keys(3, share=2)
        assert held == ["a0", "a1", "b0"]
        for found in (["b1"], []):
            assert await one.keys(4, held, share=2) == found
            held += found
        assert await two.keys(4, share=2) == ["a2", "a3", "b2", "b3"]
        # What it has put aside is not given to it twice.
        assert await one.keys(4, ["b0"], share=3) == ["a4", "b4"]


async def test_single_access_knows_no_leases(backend: Handy) -> None:
    assert await backend.take() == Claim([], False, alone=True)
    await backend.fill("a")
    assert [one.lease for one in (await backend.take()).entries] == [None]
    assert await backend.listed("locked") == set()


@pytest.mark.parametrize("lock_secs", [None, 60])
async def test_a_claim_has_no_more_bytes_than_asked_for(
    queues: Queues, lock_secs: int | None
) -> None:
    large = [entry(f"{n}", payload=f"{n}" * 100_000) for n in range(7)]
    async with queues.open() as other, queues.open(lock_secs=lock_secs) as backend:
        await other.fill(*large)
        found: list[str] = []
        sizes: list[int] = []
        more = True
        while more:
            answer = await backend.take(100, found, 250_000)
            found += keys_of(one.entry for one in answer.entries)
            sizes.append(len(answer.entries))
            more = answer.more
            if lock_secs:  # what did not fit is free
                assert await other.listed("locked") == set(found)
        assert found == keys_of(large)
        assert sizes == [2, 2, 2, 1]


@pytest.mark.parametrize("lock_secs", [None, 60])
async def test_a_claim_has_at_least_one_entry(queues: Queues, lock_secs: int | None) -> None:
    small, large = entry("a"), entry("b", payload="x" * 100_000)
    async with queues.open() as other, queues.open(lock_secs=lock_secs) as backend:
        await other.fill(large, small, handled("c"))
        first = await backend.take(size=1000)
        assert [one.entry for one in first.entries] == [large]
        assert first.more
        assert await backend.entries(known=["b"], size=1000) == [small]


async def test_a_claim_says_whether_the_queue_is_ours_alone(queues: Queues) -> None:
    async with queues.open() as backend:
        await backend.fill("a")
        assert (await backend.take()).alone
        if queues.kind != "sqlite":
            async with queues.open() as other:
                await other.take()
            assert not (await backend.take()).alone
    async with queues.open("two", lock_secs=60) as backend:
        assert not (await backend.take()).alone


# Leases


async def test_a_claim_is_a_lease(queues: Queues) -> None:
    me = {"lock_secs": 60, "client_key": "me"}
    async with queues.open(**me) as one, queues.open(lock_secs=60) as two:
        await one.fill("a", "b", "c")
        before = clock.now()
        claim = await one.take(2)
        assert claim.leased
        assert all(before + 60 <= held.lease <= clock.now() + 60 for held in claim.entries)
        assert keys_of(held.entry for held in claim.entries) == ["a", "b"]
        lock, *others = [await two.lock_of(id) for id in ids("a", "c", "strange")]
        assert lock.client_key == "me"
        left = lock.expires_at - datetime.now(UTC)
        assert timedelta(seconds=50) < left < timedelta(seconds=61)
        assert others == [None, None]
        assert await two.keys() == ["c"]
        assert await two.look() == ("", 3, 0, 3)
        for claim in (await one.take(), await two.take()):  # leased to others or to us
            assert (claim.entries, claim.more, claim.leased) == ([], False, True)
        await one.ack("a", "b", "c")
        claim = await two.take()
        assert (claim.entries, claim.leased) == ([], False)


@pytest.mark.parametrize("limit", [25, 26, 30, 53])
async def test_no_more_is_leased_than_asked_for(queues: Queues, limit: int) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.fill(*numbered(60))
        found = await one.take(limit)
        assert (len(found.entries), found.more) == (limit, True)
        assert len(await two.listed("locked")) == limit


async def test_a_lapsed_lease_is_free_for_others(queues: Queues, lease_time: Time) -> None:
    secs = lease_time.lock_secs
    async with queues.open(lock_secs=secs) as one, queues.open(lock_secs=secs) as two:
        await one.fill("a")
        lease = (await one.take()).entries[0].lease
        assert lease == lease_time.leased_now()
        await lease_time.go_on(0.5)
        assert await two.keys() == []
        assert await one.listed("locked") == {"a"}
        await lease_time.go_on(0.6)
        assert await one.listed("locked") == set()
        assert await two.keys() == ["a"]
        # It is the other's now: the first holder can neither keep nor free it.
        assert await one.prolong(ids("a")) == {}
        await one.unlock()
        assert await one.keys() == []


async def test_prolong_starts_the_lease_anew(queues: Queues, lease_time: Time) -> None:
    secs = lease_time.lock_secs
    asked = ids("a", "b", "strange")
    async with queues.open(lock_secs=secs) as one, queues.open(lock_secs=secs) as two:
        await one.fill("a", "b")
        await one.take(1)
        await lease_time.go_on(0.6)
        assert await two.prolong(asked) == {}
        until = lease_time.leased_now()
        assert await one.prolong(asked) == dict.fromkeys(ids("a"), until)
        await lease_time.go_on(0.6)
        assert await two.keys() == ["b"]
        await lease_time.go_on(0.5)
        assert await two.keys() == ["a"]
        assert await one.prolong(asked) == {}


async def test_unlock_ends_all_leases_of_our_client_key(queues: Queues) -> None:
    mine: dict[str, Any] = {"lock_secs": 60, "client_key": "mine"}
    async with queues.open(**mine) as one, queues.open(lock_secs=60, client_key="other") as two:
        await one.fill("a", "b", "c")
        await one.take(2)
        assert await two.keys() == ["c"]
        await two.unlock()
        assert await two.keys() == ["c"]
        # A process that died has left them; the next of the same key frees them.
        async with queues.open(**mine) as next_one:
            await next_one.unlock()
            assert await next_one.keys() == ["a", "b"]
        assert await one.prolong(ids("a"))


async def test_unlock_ends_single_leases_of_ours(queues: Queues) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.fill("a", "b")
        await one.take()
        await two.unlock(ids("a", "strange"))
        assert await two.keys() == []
        await one.unlock(ids("a", "strange"))
        assert await one.prolong(ids("a")) == {}
        assert await two.keys() == ["a"]
        assert await one.prolong(ids("b"))


@pytest.mark.parametrize("forefront", [False, True])
async def test_an_update_ends_the_lease(queues: Queues, forefront: bool) -> None:
    async with queues.open(lock_secs=60) as one, queues.open(lock_secs=60) as two:
        await one.fill("a", "b")
        assert await one.keys() == ["a", "b"]
        await one.put("a", handled("b"), forefront=forefront)
        assert await one.prolong(ids("a", "b")) == {}
        assert await one.listed("locked") == set()
        assert await two.keys() == ["a"]


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_what_is_left_to_others_is_not_claimed_again(queues: Queues, access: str) -> None:
    """Nor is it in the way of what comes after it. Others get it when nothing else is there."""
    options: dict[str, Any] = {"lock_secs": 60} if access == "shared" else {}
    async with queues.open(**options) as backend, queues.open(**options) as other:
        await backend.fill(*"abcde")
        for one in (await backend.take(4)).entries:
            backend.leave(one.entry.id)
        await backend.fill(*"fgh")
        found = ["not there"]
        for _ in range(4):
            found += await backend.keys(2, found)
        assert found[1:] == [*"efgh"]
        await backend.ack(*"efgh")
        claim = await backend.take(2)
        assert (claim.entries, claim.more, claim.leased) == ([], False, False)
        assert claim.left == (4 if access == "shared" else 0)
        assert set(await other.keys()) == set("abcd")
