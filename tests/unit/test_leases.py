"""Shared access: several workers on one queue, whose claims may lag."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from scrapy_apify_rq.backends.base import Claim
from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.leases import Offers
from scrapy_apify_rq.frontier.notices import LeaseLost, LeasesKept
from scrapy_apify_rq.frontier.slots import OneLine
from scrapy_apify_rq.frontier.visit import Visit, entry_of
from scrapy_apify_rq.frontier.window import Window
from tests.support.frontier_driver import Driver, Gate, Remote, make_entry, now, path_of
from tests.support.frontier_model import HANDLED_AT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.virtual_time


class Shared(Remote):
    """Notes what a worker asks besides its claims."""

    pending: int | None = None
    """What ``info`` says; None for the truth."""
    moves_until = 0.0
    """So long others seem to handle an entry each second."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **{"lock_secs": 60, **options})
        self.asked: list[str] = []

    async def get(self, id: str) -> Any:
        self.asked.append("get")
        return await super().get(id)

    async def info(self) -> Any:
        self.asked.append("info")
        info = await super().info()
        if self.pending is None:
            return info
        return info._replace(pending=self.pending, handled=int(min(now(), self.moves_until)))


class LikeApi(Shared):
    """Claims whatever has no lease, known or not."""

    async def claim(self, limit: int, known: Any, size: int, share: Any = None) -> Claim:
        return await super().claim(limit, (), size, share)


@pytest.fixture
def backend(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


async def locked_in(backend: Shared) -> list[str]:
    return [entry.unique_key async for entry in backend.list("locked")]


def lease_of(visit: Visit | None) -> float:
    assert visit is not None
    assert visit.lease is not None
    return visit.lease


class TwoAtATime(OneLine):
    """Each host has a slot for two requests."""

    are_hosts = True
    in_flight: Mapping[str, Visit] = MappingProxyType({})

    def key(self, visit: Visit) -> str:
        return host_of(entry_of(visit))

    def active(self, key: str) -> int:
        return sum(self.key(visit) == key for visit in self.in_flight.values())

    def is_full(self, key: str) -> bool:
        return self.active(key) >= 2

    def is_busy(self, key: str) -> bool:
        return self.active(key) > 0


@pytest.mark.parametrize(
    "limits",
    [{}, {"memory": 2_400}, {"memory": 1_200}, {"window": 2}],
    ids=["many", "large", "as large as what fits", "as many as fit"],
)
async def test_a_host_that_never_answers_keeps_a_worker_from_no_other(
    backend: Shared, limits: dict[str, int]
) -> None:
    """More of it waits than the worker wants, and still it asks for what others have."""
    slots = TwoAtATime()
    pending = [f"/{n}" for n in range(20)]
    async with Driver(backend, *pending, slots=slots, **limits) as driver:
        slots.in_flight = driver.in_flight
        assert [path_of(await driver.next()) for _ in range(2)] == ["/0", "/1"]
        for _ in range(60):
            assert driver.hand_out() is None
            await asyncio.sleep(1)
        assert 0 < driver.frontier.ready < 18, "some are left to other workers"
        other = make_entry("/other").model_copy(update={"url": "http://127.0.0.1/"})
        await backend.add([other], forefront=False)
        assert path_of(await driver.next()) == "/other"
        driver.ack(driver.in_flight[other.id])


@pytest.mark.parametrize(
    ("hosts", "silent", "at_once"),
    [("a", "", 9), ("abcde", "", 4), ("b", "a", 9)],
    ids=["one", "many", "beside one that never answers"],
)
async def test_hosts_that_answer_are_kept_busy(
    backend: Shared, hosts: str, silent: str, at_once: int
) -> None:
    """What is in flight keeps nobody from what is to come next, and a claim in vain neither."""
    slots = TwoAtATime()
    loop = asyncio.get_running_loop()
    async with Driver(backend, is_new=False, slots=slots) as driver:
        slots.in_flight = driver.in_flight
        for host in silent + hosts:
            pages = [make_entry(f"/{host}{n}") for n in range(60)]
            url = f"http://{host}.com/"
            await backend.add(
                [page.model_copy(update={"url": url}) for page in pages], forefront=False
            )

        def answer(visit: Visit) -> None:
            driver.ack(visit)
            driver.wake()

        began, left = now(), 60 * len(hosts)
        while left or len(driver.in_flight) > 2 * len(silent):
            driver.woken.clear()
            while len(driver.in_flight) < at_once and (visit := driver.hand_out()) is not None:
                if slots.key(visit)[0] in hosts:
                    left -= 1
                    loop.call_later(0.02, answer, visit)
            await driver.woken.wait()
        fastest = 60 * len(hosts) * 0.02 / min(2 * len(hosts), at_once)
        assert now() - began < 1.2 * fastest


async def test_a_retry_keeps_its_lease_until_its_time(backend: Shared) -> None:
    async with Driver(backend, "/bad") as driver:
        bad = await driver.next()
        due_at = now() + 100  # the lease lasts for 60 seconds
        driver.requeue(bad, not_before=due_at)
        while now() < due_at - 1:
            assert driver.hand_out() is None
            assert driver.frontier.has_pending()
            assert await locked_in(backend) == ["/bad"]
            await asyncio.sleep(1)
        assert backend.named("update") == []
        again = await driver.next()
        assert (path_of(again), backend.named("update")) == ("/bad", [["/bad"]])
        assert due_at <= now()
        assert driver.stats["apify_rq/leases_lost"] == 0
        driver.ack(again)


async def test_a_retry_that_waits_is_left_to_others_once_its_lease_is_lost(backend: Shared) -> None:
    async with Driver(backend, "/bad") as driver:
        bad = await driver.next()
        driver.requeue(bad, not_before=now() + 100)
        driver.patience = 200
        other = Shared(backend.folder)
        await other.open()
        await backend.unlock()
        (claimed,) = (await other.claim(1, (), 2**20)).entries
        claimed.entry.handled_at = HANDLED_AT
        await other.update([claimed.entry], forefront=False)
        await other.close()
        assert await driver.next() is None
        assert driver.stats["apify_rq/leases_lost"] == 1
        assert backend.named("update") == []


async def test_a_retry_that_is_claimed_again_while_it_waits(tmp_path: Path) -> None:
    """Its lease ends, and the API gives its entry to the same worker, as it was."""

    class Forgetful(LikeApi):
        async def prolong(self, ids: Any) -> dict[str, float]:
            return {}

    async with Driver(Forgetful(tmp_path, lock_secs=10), "/bad") as driver:
        driver.requeue(await driver.next(), not_before=now() + 12)
        await asyncio.sleep(11)
        driver.frontier._reader.ask_at(0)
        await asyncio.sleep(2)
        again = driver.hand_out()
        assert path_of(again) == "/bad"
        assert lease_of(again) > now()
        driver.ack(again)
        assert await driver.crawl() == []
    assert driver.stats["apify_rq/leases_lost"] == 1


# Who stays.


async def test_a_worker_stays_while_others_hold_leases_and_asks_nothing_else(
    backend: Shared,
) -> None:
    async with Driver(Shared(backend.folder), "/page") as one, Driver(backend, is_new=False) as two:
        page = await one.next()
        leaving = asyncio.create_task(two.next())
        await asyncio.sleep(40)
        assert not leaving.done()
        assert backend.asked == []
        one.ack(page)
        assert await leaving is None


async def test_the_newest_entry_that_it_offered_is_looked_up(backend: Shared) -> None:
    backend.lag = backend.consistency_delay = 0.1
    backend.head_lag = 12.0
    async with Driver(backend) as driver:
        driver.add("/hidden")
        began = now()
        assert path_of(await driver.next()) == "/hidden"
        assert now() - began >= 12
        assert "get" in backend.asked


@pytest.mark.parametrize(
    ("lag", "moves", "least", "most"), [(10, 0, 10, 20), (10, 100, 110, 145), (0, 0, 3, 4)]
)
async def test_a_count_that_is_wrong_for_ever_is_believed_for_the_lag_once_it_stands_still(
    backend: Shared, lag: int, moves: int, least: int, most: int
) -> None:
    backend.lag = lag
    backend.pending = 7
    async with Driver(backend) as driver:
        began = now()
        backend.moves_until, driver.patience = began + moves, most
        assert await driver.next() is None
        assert least <= now() - began < most


# Claims.


async def test_what_it_added_comes_back_as_the_live_request(backend: Shared) -> None:
    async with Driver(backend) as driver:
        request = object()
        driver.add("/page", request=request)
        visit = await driver.next()
        assert visit is not None
        assert visit.request is request
        assert lease_of(visit) > now()
        driver.ack(visit)
        assert await driver.crawl() == []


async def test_an_entry_claimed_before_its_add_was_answered(backend: Shared) -> None:
    async with Driver(backend) as driver:
        assert driver.hand_out() is None
        await wait_until(lambda: backend.named("claim"))
        claims = len(backend.named("claim"))
        gate = backend.at["after add"] = Gate()
        driver.add("/page")
        await gate.reached.wait()
        driver.frontier._reader.ask_at(0)
        await wait_until(lambda: len(backend.named("claim")) > claims)
        gate.opened.set()
        page = await driver.next()
        assert path_of(page) == "/page"
        assert lease_of(page) > now()
        driver.ack(page)
        assert await driver.crawl() == []
    assert driver.stats["apify_rq/handled_twice"] == 0


def test_offers_are_kept_within_the_limits_of_the_window() -> None:
    window = Window(limit=3, memory=100)
    offers = Offers(window)
    for n in range(5):
        offers.add(Visit(make_entry(f"/{n}"), object(), size=40))  # type: ignore[arg-type]
    assert offers.newest == make_entry("/4").id
    taken = [offers.take(make_entry(f"/{n}")) for n in range(5)]
    assert [visit.request is not None for visit in taken] == [False, False, False, True, True]
    assert offers.newest is None


# Leases that end.


async def test_a_lease_that_ended_in_the_window(tmp_path: Path) -> None:
    skew = -100.0
    backend = Shared(tmp_path, lock_secs=10, now=lambda: now() + skew)
    async with Driver(backend, "/page") as driver:
        assert driver.frontier.next() is None
        await wait_until(lambda: driver.frontier.ready)
        assert driver.frontier.next() is None
        (notice,) = driver.notices
        assert isinstance(notice, LeaseLost)
        assert (notice.entry.unique_key, notice.while_) == ("/page", "waiting")
        assert driver.stats["apify_rq/leases_lost"] == 1
        skew = 0.0
        again = await driver.next()
        assert path_of(again) == "/page"
        assert lease_of(again) > now()
        driver.ack(again)


async def test_leases_that_another_worker_has_taken_over(backend: Shared) -> None:
    """They are reported once; an ack is sent all the same, a retry is not."""
    async with Driver(backend, "/a", "/b") as driver:
        a, b = await driver.next(), await driver.next()
        await backend.unlock()
        other = Shared(backend.folder)
        await other.open()
        claim = await other.claim(10, (), 2**30)
        await other.close()
        assert len(claim.entries) == 2
        await wait_until(lambda: len(driver.notices) == 2)
        for notice in driver.notices:
            assert isinstance(notice, LeaseLost)
            assert notice.while_ == "in flight"
        driver.ack(a)
        driver.requeue(b)
        await driver.saved()
        assert backend.named("update") == [["/a"]]
        assert driver.stats["apify_rq/leases_lost"] == 2
        assert len(driver.notices) == 2


async def test_a_retry_whose_lease_has_ended_is_left_to_others(backend: Shared) -> None:
    async with Driver(backend, "/page") as driver:
        page = await driver.next()
        assert page is not None
        page.lease = now() - 1
        driver.requeue(page)
        (notice,) = driver.notices
        assert isinstance(notice, LeaseLost)
        assert notice.while_ == "retried"
    assert backend.named("update") == []


# What is given back.


async def test_on_hold_leases_are_given_back_but_for_what_is_in_flight(backend: Shared) -> None:
    async with Driver(backend, "/0", "/1", "/2", "/3") as driver:
        page = await driver.next()
        await driver.frontier.hold()
        assert await locked_in(backend) == ["/0"]
        assert driver.frontier.next() is None
        driver.ack(page)
        assert driver.frontier.has_pending()
        await driver.close()
        assert await locked_in(backend) == []
        assert (await backend.info()).pending == 3


async def test_a_retry_that_comes_back_while_all_is_put_on_hold_is_given_back(
    tmp_path: Path,
) -> None:
    backend = LikeApi(tmp_path)
    async with Driver(backend, "/bad") as driver:
        bad = await driver.next()
        gate = backend.at["before claim"] = Gate()
        driver.frontier._reader.ask_at(0)
        await gate.reached.wait()
        driver.requeue(bad, not_before=now() + 100)
        holding = asyncio.create_task(driver.frontier.hold())
        await driver.saved()
        gate.opened.set()
        await holding
        assert await locked_in(backend) == []
    assert driver.failures == []


async def test_leases_that_cannot_be_given_back_are_reported(tmp_path: Path) -> None:
    class Broken(Shared):
        async def unlock(self, ids: Any = None) -> None:
            raise BackendError("no")

    async with Driver(Broken(tmp_path), "/page") as driver:
        await driver.next()
    assert driver.notices == [LeasesKept(60, "no")]
    assert driver.failures == []


async def test_a_claim_under_way_at_close_is_given_back_too(backend: Shared) -> None:
    backend.at["after claim"] = lambda: asyncio.sleep(5)
    async with Driver(backend, "/page") as driver:
        assert driver.hand_out() is None
        await wait_until(lambda: backend.named("claim"))
        await driver.close()
        assert await locked_in(backend) == []
