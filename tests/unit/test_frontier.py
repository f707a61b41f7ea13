"""Outbox, window, supply and idle together, over an embedded queue with the API's delays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.notices import Bug, LeasesKept, OthersSeen
from scrapy_apify_rq.frontier.visit import Visit
from tests.support.frontier_driver import Driver, Remote, make_entry, path_of, until
from tests.support.waiting import run_async


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await work()

    run_async(main())


# The order.


def test_more_negative_priorities_than_fit_do_not_hold_up_others(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        driver = await Driver(backend, window=20).open()
        for n in range(50):
            driver.add(f"/low{n}", priority=-1)
        first = await driver.next()
        await until(lambda: not driver.frontier.unsaved_adds)
        for n in range(3):
            driver.add(f"/{n}")
        driver.ack(first)
        await until(lambda: not driver.frontier.unsaved_adds)
        paths = [path_of(first), *await driver.crawl()]
        assert [paths.index(f"/{n}") for n in range(3)] == [1, 2, 3]
        assert len(paths) == len(set(paths)) == 53
        await driver.close()

    run(work)


def test_equal_priorities_above_0_are_first_in_first_out(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Remote(tmp_path)).open()
        for n in range(40):
            driver.add(f"/{n}", priority=5, forefront=True)
        await until(lambda: not driver.frontier.unsaved_adds)
        assert await driver.crawl() == [f"/{n}" for n in range(40)]
        await driver.close()

    run(work)


def test_a_batch_at_the_front_is_in_order_for_the_next_run_too(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Remote(tmp_path)).open()
        for n in range(20):
            driver.add(f"/{n}", priority=5, forefront=True)
        await driver.close()
        driver = Driver(Remote(tmp_path))
        await driver.backend.open()
        driver.frontier.open(has_pending=True, is_new=False)
        visits = [await driver.next() for _ in range(20)]
        assert [path_of(visit) for visit in visits] == [f"/{n}" for n in range(20)]
        await driver.close()

    run(work)


def test_retries_come_first_in_their_own_order(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Remote(tmp_path)).open()
        for n in range(5):
            driver.add(f"/{n}")
        first, second = await driver.next(), await driver.next()
        driver.requeue(first, forefront=True)
        driver.requeue(second, forefront=True)
        await until(lambda: not driver.frontier.unsaved_updates)
        assert await driver.crawl() == ["/0", "/1", "/2", "/3", "/4"]
        await driver.close()

    run(work)


# The end.


def test_alone_on_a_new_queue_the_crawl_ends_on_one_answer(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        driver = await Driver(backend).open()
        for n in range(30):
            driver.add(f"/{n}")
        for _ in range(29):
            driver.ack(await driver.next())
        last = await driver.next()
        await until(lambda: not driver.frontier.unsaved_updates)
        claims = len(backend.named("claim"))
        began = time.monotonic()
        driver.ack(last)
        assert await driver.next() is None
        assert len(backend.named("claim")) - claims == 1
        await driver.close()
        assert time.monotonic() - began < 0.3

    run(work)


def test_others_on_the_queue_are_waited_for(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        backend.alone, backend.consistency_delay = False, 0.6
        driver = await Driver(backend).open()
        driver.add("/page")
        driver.ack(await driver.next())
        began = time.monotonic()
        assert await driver.next() is None
        assert time.monotonic() - began >= 0.6
        await driver.close()

    run(work)


def test_an_entry_of_others_that_shows_late_is_crawled(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        backend.alone, backend.consistency_delay, backend.head_lag = False, 0.8, 0.5
        driver = await Driver(backend).open()
        driver.add("/page")
        page = await driver.next()
        other = Remote(tmp_path, written=backend.written)
        await other.open()
        await other.add([make_entry("/late")], forefront=False)
        await other.close()
        driver.ack(page)
        assert await driver.crawl() == ["/late"]
        await driver.close()

    run(work)


def test_evicted_entries_that_show_late_are_crawled(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        backend.lag, backend.head_lag = 1.0, 0.6
        driver = await Driver(backend, window=5).open()
        for n in range(20):
            driver.add(f"/{n}")
        assert sorted(await driver.crawl()) == sorted(f"/{n}" for n in range(20))
        await driver.close()

    run(work)


def test_the_question_is_asked_anew_after_a_late_add(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Remote(tmp_path)).open()
        driver.add("/page")
        assert await driver.crawl() == ["/page"]
        driver.add("/late")  # a start() without end
        assert driver.frontier.has_pending()
        assert await driver.crawl() == ["/late"]
        await driver.close()

    run(work)


# Memory.


def test_large_entries_take_bounded_memory(tmp_path: Path) -> None:
    """48 entries of 1 MB, all of which would take 100 MB and more, with an eighth of that."""

    async def work() -> None:
        backend = Remote(tmp_path)
        backend.entry_size = 2**20
        driver = await Driver(backend, memory=8 * 2**20).open()
        gc.collect()
        tracemalloc.start()
        try:
            for n in range(48):
                await driver.frontier.room()
                payload = f"{n:07}" * (2**20 // 7)
                entry = make_entry(f"/{n}", payload=payload)
                driver.frontier.add(Visit(entry, size=2 * entry.size))
            assert sorted(await driver.crawl()) == sorted(f"/{n}" for n in range(48))
            assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
        finally:
            tracemalloc.stop()
        await driver.close()

    run(work)


def test_larger_than_all_the_memory(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        backend.lag = backend.consistency_delay = 0.0
        driver = await Driver(backend, memory=400).open(*(f"/{n}" for n in range(10)))
        for n in range(10, 20):
            await driver.frontier.room()
            driver.add(f"/{n}", size=1000)
        assert sorted(await driver.crawl()) == sorted(f"/{n}" for n in range(20))
        assert len(backend.named("claim")) < 60
        await driver.close()

    run(work)


# Close, and failure.


def test_a_failed_call_while_an_add_waits_for_company(tmp_path: Path) -> None:
    """close() used to hang here on Python 3.11: wait_for() swallowed the cancellation."""

    async def work() -> None:
        backend = Remote(tmp_path)
        backend.linger = 60.0
        backend.lag = 0.0
        driver = await Driver(backend).open(*(f"/{n}" for n in range(50)))

        async def refuse(_: object) -> None:
            raise BackendError("403", "apify_rq_unauthorized")

        backend.on_update = refuse
        driver.ack(await driver.next())
        driver.add("/link")  # enough is ready, so it may wait a moment
        await until(lambda: bool(driver.failures))
        await driver.close()
        assert [error.reason for error in driver.failures] == ["apify_rq_unauthorized"]
        assert (driver.frontier.unsaved_adds, driver.frontier.unsaved_updates) == (1, 1)

    run(work)


@pytest.mark.parametrize("name", ["on_add", "on_update"])
@pytest.mark.parametrize("error", [BackendError("no", "apify_rq_gone"), ValueError("no")])
def test_one_refused_call_of_many_at_close(tmp_path: Path, name: str, error: Exception) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        backend.parallel = backend.update_parallel = 8
        backend.batch = backend.update_batch = 1
        driver = await Driver(backend).open(*(f"/{n}" for n in range(20)))
        calls = 0

        async def refuse(_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise error
            await asyncio.sleep(0.01)

        setattr(backend, name, refuse)
        for n in range(10):
            driver.ack(await driver.next())
            driver.add(f"/link{n}")
        await driver.close()
        reason = error.reason if isinstance(error, BackendError) else "apify_rq_error"
        assert [each.reason for each in driver.failures] == [reason]
        assert driver.frontier.unsaved_adds + driver.frontier.unsaved_updates > 0
        assert driver.frontier.has_pending()

    run(work)


async def hang(*_: object) -> None:
    """Not even the first cancellations end it."""
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@pytest.mark.parametrize("name", ["on_add", "on_update"])
def test_a_call_that_never_returns_does_not_keep_close(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        backend = Remote(tmp_path, patience=0)
        driver = await Driver(backend).open("/page")
        page = await driver.next()
        setattr(backend, name, hang)
        driver.add("/link")
        driver.ack(page)
        await driver.close()
        assert [error.reason for error in driver.failures] == ["apify_rq_unavailable"]

    monkeypatch.setattr("scrapy_apify_rq.frontier.frontier._FLUSH_PATIENCE", 0.2)
    run(work)


@pytest.mark.parametrize("lock_secs", [None, 60])
def test_a_claim_that_never_returns_does_not_keep_close(
    tmp_path: Path, lock_secs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        backend = Remote(tmp_path, lock_secs=lock_secs)
        backend.on_claim = hang
        driver = await Driver(backend).open("/page")
        assert driver.hand_out() is None
        await until(lambda: bool(backend.named("claim")))
        await driver.close()
        assert driver.failures == []
        assert driver.notices == ([] if lock_secs is None else [LeasesKept(60, "")])

    monkeypatch.setattr("scrapy_apify_rq.frontier.leases._RELEASE_PATIENCE", 0.1)
    run(work)


def test_an_exception_in_the_listener_closes_the_spider(tmp_path: Path) -> None:
    async def work() -> None:
        driver = await Driver(Remote(tmp_path)).open("/page")
        driver.dropped = lambda visit: 1 / 0  # type: ignore[method-assign,return-value]
        driver.add("/page")
        await until(lambda: bool(driver.failures))
        (failure,) = driver.failures
        assert (str(failure), failure.reason) == (
            "ZeroDivisionError: division by zero",
            "apify_rq_error",
        )
        (notice,) = driver.notices
        assert isinstance(notice, Bug)
        assert isinstance(notice.error, ZeroDivisionError)
        assert driver.frontier.error is failure
        assert driver.frontier.has_pending()
        await driver.close()

    run(work)


def test_a_call_that_is_cancelled_from_inside_is_a_failure(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        driver = await Driver(backend).open()

        async def cancel(_: object) -> None:
            raise asyncio.CancelledError

        backend.on_add = cancel
        driver.add("/page")
        await until(lambda: bool(driver.failures))
        assert driver.failures[0].reason == "apify_rq_error"
        assert driver.frontier.unsaved_adds == 1
        await driver.close()

    run(work)


def test_close_before_open_and_twice(tmp_path: Path) -> None:
    async def work() -> None:
        driver = Driver(Remote(tmp_path))
        await driver.frontier.close()
        await driver.open("/page")
        await asyncio.gather(driver.frontier.close(), driver.frontier.close())
        await driver.close()

    run(work)


def test_on_hold_nothing_is_handed_out_and_acks_are_saved(tmp_path: Path) -> None:
    async def work() -> None:
        backend = Remote(tmp_path)
        driver = await Driver(backend).open("/0", "/1")
        page = await driver.next()
        await driver.frontier.hold()
        assert driver.frontier.next() is None
        driver.ack(page)
        assert driver.frontier.has_pending()
        await until(lambda: not driver.frontier.unsaved_updates)
        await driver.frontier.close()
        assert (await backend.info()).pending == 1
        await driver.close()

    run(work)


def test_another_crawl_in_single_access_is_noticed_once(tmp_path: Path) -> None:
    async def work() -> None:
        paths = [f"/{n}" for n in range(4)]
        one = await Driver(Remote(tmp_path)).open(*paths)
        two = Driver(Remote(tmp_path))
        await two.backend.open()
        two.frontier.open(has_pending=True, is_new=False)
        visits = [(driver, await driver.next()) for driver in (one, two) for _ in paths]
        for driver, visit in visits:
            driver.ack(visit)
            await until(lambda driver=driver: not driver.frontier.unsaved_updates)  # type: ignore[misc]
        assert one.notices == []
        assert two.notices == [OthersSeen(two.backend.location)]
        assert two.stats["apify_rq/handled_twice"] == 4
        await asyncio.gather(one.frontier.close(), two.frontier.close())
        await one.close()
        await two.close()

    run(work)
