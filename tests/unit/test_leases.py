"""Shared access: several workers on one queue, whose claims may lag."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.leases import Offers
from scrapy_apify_rq.frontier.notices import LeaseLost, LeasesKept
from scrapy_apify_rq.frontier.visit import Visit
from scrapy_apify_rq.frontier.window import Window
from tests.support.frontier_driver import Driver, Remote, make_entry, path_of, until
from tests.support.waiting import run_async


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await work()

    run_async(main())


class Shared(Remote):
    """Counts what a worker asks besides its claims."""

    lag = 2.0
    consistency_delay = 0.3
    pending: int | None = None
    """What ``info`` says; None for the truth."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **{"lock_secs": 60, **options})
        self.asked: list[str] = []

    async def get(self, id: str) -> Any:
        self.asked.append("get")
        return await super().get(id)

    async def info(self) -> Any:
        self.asked.append("info")
        info = await super().info()
        return info if self.pending is None else info._replace(pending=self.pending)


# Who stays.


def test_no_worker_leaves_while_one_crawls_though_the_head_lags(tmp_path: Path) -> None:
    """A chain of pages, each of which the head shows only when nobody has waited for so long."""

    async def work() -> None:
        written: dict[str, float] = {}
        drivers = []
        for _ in range(3):
            backend = Shared(tmp_path, written=written)
            backend.head_lag = 0.8
            drivers.append(await Driver(backend).open())
            drivers[-1].patience = 20
        drivers[0].add("/0")
        left: dict[int, float] = {}
        crawled: list[float] = []

        async def crawl(number: int) -> None:
            driver = drivers[number]
            while (visit := await driver.next()) is not None:
                if (n := int(path_of(visit)[1:])) < 4:
                    driver.add(f"/{n + 1}")
                driver.ack(visit)
                crawled.append(time.monotonic())
            left[number] = time.monotonic()

        await asyncio.gather(*(crawl(number) for number in range(3)))
        assert len(crawled) == 5
        assert min(left.values()) > crawled[-1]
        assert max(left.values()) < crawled[-1] + 15  # the lag, and a pause
        await asyncio.gather(*(driver.frontier.close() for driver in drivers))
        for driver in drivers:
            await driver.close()

    run(work)


def test_a_worker_stays_while_others_hold_leases_and_asks_nothing_else(tmp_path: Path) -> None:
    async def work() -> None:
        one = await Driver(Shared(tmp_path)).open("/page")
        two = Driver(Shared(tmp_path))
        await two.backend.open()
        two.frontier.open(has_pending=True, is_new=False)
        page = await one.next()
        leaving = asyncio.create_task(two.next())
        await asyncio.sleep(1)
        assert not leaving.done()
        assert two.backend.asked == []  # type: ignore[attr-defined]
        one.ack(page)
        assert await leaving is None
        await asyncio.gather(one.frontier.close(), two.frontier.close())
        await one.close()
        await two.close()

    run(work)


def test_the_newest_entry_that_it_offered_is_looked_up(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Shared(tmp_path)
        backend.lag = backend.consistency_delay = 0.1
        backend.head_lag = 1.2
        driver = await Driver(backend).open()
        driver.add("/hidden")
        began = time.monotonic()
        assert path_of(await driver.next()) == "/hidden"
        assert time.monotonic() - began >= 1.2
        assert "get" in backend.asked
        await driver.close()

    run(work)


@pytest.mark.parametrize(("lag", "least", "most"), [(1.0, 1.0, 2.5), (0.0, 0.3, 0.9)])
def test_a_count_that_is_wrong_for_ever_is_believed_for_the_lag(
    tmp_path: Path, lag: float, least: float, most: float
) -> None:
    async def work() -> None:
        backend = Shared(tmp_path)
        backend.lag = lag
        backend.pending = 7
        driver = await Driver(backend).open()
        began = time.monotonic()
        assert await driver.next() is None
        assert least <= time.monotonic() - began < most
        assert ("info" in backend.asked) == (lag > 0)
        await driver.close()

    run(work)


# Claims.


def test_what_it_added_comes_back_as_the_live_request(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Shared(tmp_path)).open()
        request = object()
        driver.add("/page", request=request)
        visit = await driver.next()
        assert visit is not None
        assert visit.request is request
        assert visit.lease is not None
        driver.ack(visit)
        assert await driver.crawl() == []
        await driver.close()

    run(work)


def test_an_entry_claimed_before_its_add_was_answered(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Shared(tmp_path)

        class Slow(Shared):
            async def add(self, *args: Any, **options: Any) -> Any:
                answers = await super().add(*args, **options)
                driver.frontier._reader.ask_at(0)
                await until(lambda: len(self.named("claim")) > claims)
                await asyncio.sleep(0.05)
                return answers

        backend = Slow(tmp_path)
        driver = await Driver(backend).open()
        assert driver.hand_out() is None
        await until(lambda: bool(backend.named("claim")))
        claims = len(backend.named("claim"))
        driver.add("/page")
        page = await driver.next()
        assert path_of(page) == "/page"
        assert page is not None
        assert page.lease is not None
        driver.ack(page)
        assert await driver.crawl() == []
        assert driver.stats["apify_rq/handled_twice"] == 0
        await driver.close()

    run(work)


def test_offers_are_kept_within_the_limits_of_the_window() -> None:
    window = Window(limit=3, memory=100)
    offers = Offers(window)
    visits = [Visit(make_entry(f"/{n}"), object(), size=40) for n in range(5)]  # type: ignore[arg-type]
    for visit in visits:
        offers.add(visit)
    assert offers.newest == make_entry("/4").id
    taken = [offers.take(make_entry(f"/{n}")) for n in range(5)]
    assert [visit.request is not None for visit in taken] == [False, False, False, True, True]
    assert offers.newest is None


# Leases that end.


def test_leases_are_prolonged_while_a_page_is_in_flight(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Shared(tmp_path, lock_secs=1)).open("/page")
        page = await driver.next()
        await asyncio.sleep(1.3)
        assert page is not None
        assert page.lease is not None
        assert page.lease > time.time()
        driver.ack(page)
        assert await driver.crawl() == []
        assert driver.notices == []
        await driver.close()

    run(work)


def test_a_lease_that_ended_in_the_window(tmp_path: Path) -> None:
    async def work() -> None:
        skew = -100.0
        backend = Shared(tmp_path, lock_secs=10, now=lambda: time.time() + skew)
        driver = await Driver(backend).open("/page")
        assert driver.frontier.next() is None
        await until(lambda: driver.frontier.ready == 1)
        assert driver.frontier.next() is None
        (notice,) = driver.notices
        assert isinstance(notice, LeaseLost)
        assert (notice.entry.unique_key, notice.while_) == ("/page", "waiting")
        skew = 0.0
        assert await driver.crawl() == ["/page"]
        await driver.close()

    run(work)


def test_a_lease_that_another_worker_has_taken_over(tmp_path: Path) -> None:
    """It is reported once; an ack is sent all the same, a retry is not."""

    async def work() -> None:
        driver = await Driver(Shared(tmp_path, lock_secs=1)).open("/a", "/b")
        a, b = await driver.next(), await driver.next()
        other = Shared(tmp_path, lock_secs=1)
        await other.open()
        await driver.backend.unlock()
        claim = await other.claim(10, (), 2**30)
        assert len(claim.entries) == 2
        await until(lambda: len(driver.notices) == 2)
        assert {notice.while_ for notice in driver.notices if isinstance(notice, LeaseLost)} == {
            "in flight"
        }
        driver.ack(a)
        driver.requeue(b)
        await until(lambda: not driver.frontier.unsaved_updates)
        assert driver.backend.named("update") == [["/a"]]  # type: ignore[attr-defined]
        assert driver.stats["apify_rq/leases_lost"] == 2
        assert len(driver.notices) == 2
        await other.close()
        await driver.close()

    run(work)


def test_a_retry_whose_lease_has_ended_is_left_to_others(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Shared(tmp_path)).open("/page")
        page = await driver.next()
        assert page is not None
        page.lease = time.time() - 1
        driver.requeue(page)
        (notice,) = driver.notices
        assert isinstance(notice, LeaseLost)
        assert notice.while_ == "retried"
        assert driver.backend.named("update") == []  # type: ignore[attr-defined]
        await driver.close()

    run(work)


# What is given back.


@pytest.mark.parametrize("on_hold", [True, False])
def test_leases_are_given_back(tmp_path: Path, on_hold: bool) -> None:
    async def work() -> None:
        backend = Shared(tmp_path)
        driver = await Driver(backend).open(*(f"/{n}" for n in range(4)))
        page = await driver.next()
        if on_hold:
            await driver.frontier.hold()
            locked = [entry.unique_key async for entry in backend.list("locked")]
            assert locked == ["/0"]
            assert driver.frontier.next() is None
        driver.ack(page)
        await driver.frontier.close()
        assert [entry async for entry in backend.list("locked")] == []
        assert (await backend.info()).pending == 3
        await driver.close()

    run(work)


def test_leases_that_cannot_be_given_back_are_reported(tmp_path: Path) -> None:
    async def work() -> None:
        class Broken(Shared):
            async def unlock(self, ids: Any = None) -> None:
                raise BackendError("no")

        driver = await Driver(Broken(tmp_path)).open("/page")
        await driver.next()
        await driver.close()
        assert driver.notices == [LeasesKept(60, "no")]
        assert driver.failures == []

    run(work)


def test_a_claim_under_way_at_close_is_given_back_too(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Shared(tmp_path)

        async def slow() -> None:
            await asyncio.sleep(0.2)

        backend.on_claim = slow
        driver = await Driver(backend).open("/page")
        assert driver.hand_out() is None
        await until(lambda: bool(backend.named("claim")))
        await driver.frontier.close()
        assert [entry async for entry in backend.list("locked")] == []
        await driver.close()

    run(work)
