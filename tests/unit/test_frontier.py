"""Outbox, window, supply and idle together, over an embedded queue with the API's delays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.notices import Bug, LeasesKept, OthersSeen
from scrapy_apify_rq.frontier.visit import Visit
from tests.support.frontier_driver import (
    PATIENCE,
    Driver,
    Gate,
    Remote,
    make_entry,
    many_turns,
    now,
    path_of,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.virtual_time


def numbered(*range_: int) -> list[str]:
    return [f"/{n}" for n in range(*range_)]


def raises(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail


# The order.


async def test_more_negative_priorities_than_fit_do_not_hold_up_others(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path), window=20) as driver:
        for n in range(50):
            driver.add(f"/low{n}", priority=-1)
        first = await driver.next()
        await driver.saved()
        for path in numbered(3):
            driver.add(path)
        driver.ack(first)
        await driver.saved()
        paths = [path_of(first), *await driver.crawl()]
    assert paths[1:4] == numbered(3)
    assert len(paths) == len(set(paths)) == 53


async def test_equal_priorities_above_0_are_first_in_first_out(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path)) as driver:
        for path in numbered(40):
            driver.add(path, priority=5, forefront=True)
        await driver.saved()
        assert await driver.crawl() == numbered(40)


async def test_a_batch_at_the_front_is_in_order_for_the_next_run_too(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path)) as driver:
        for path in numbered(20):
            driver.add(path, priority=5, forefront=True)
    async with Driver(Remote(tmp_path), is_new=False) as driver:
        assert await driver.crawl() == numbered(20)


async def test_retries_come_first_in_their_own_order(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path)) as driver:
        for path in numbered(5):
            driver.add(path)
        visits = [await driver.next(), await driver.next()]
        for visit in visits:
            driver.requeue(visit, forefront=True)
        await driver.saved()
        assert await driver.crawl() == numbered(5)


# The end.


async def test_alone_on_a_new_queue_the_crawl_ends_on_one_answer(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend) as driver:
        for path in numbered(30):
            driver.add(path)
        for _ in range(29):
            driver.ack(await driver.next())
        last = await driver.next()
        await driver.saved()
        claims = len(backend.named("claim"))
        began = now()
        driver.ack(last)
        assert await driver.next() is None
        assert len(backend.named("claim")) - claims == 1
    assert now() - began < 0.3


async def test_the_end_is_asked_for_once_the_last_write_is_confirmed(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend, "/page") as driver:
        page = await driver.next()
        await many_turns()
        claims = len(backend.named("claim"))
        gate = backend.at["after update"] = Gate()
        driver.ack(page)
        await gate.reached.wait()
        for _ in range(10):
            assert driver.frontier.next() is None
            assert driver.frontier.has_pending()
            await many_turns()
        assert len(backend.named("claim")) == claims
        gate.opened.set()
        assert await driver.next() is None
        assert len(backend.named("claim")) > claims


async def test_others_on_the_queue_are_waited_for(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    backend.alone = False
    async with Driver(backend) as driver:
        driver.add("/page")
        driver.ack(await driver.next())
        assert await driver.next() is None
    (ack,) = (call for call in backend.calls if call.name == "update")
    assert ack.ended + 3 <= backend.calls[-1].asked < ack.ended + 4


async def test_an_entry_of_others_that_shows_late_is_crawled(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    backend.alone, backend.head_lag = False, 2.5
    async with Driver(backend) as driver:
        driver.add("/page")
        page = await driver.next()
        await backend.others_add("/late")
        driver.ack(page)
        assert await driver.crawl() == ["/late"]


async def test_an_entry_that_others_add_to_an_idle_crawl(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend, "/page", idle_before_close=9) as driver:
        driver.ack(await driver.next())
        finding = asyncio.create_task(driver.next())
        await asyncio.sleep(8)  # it has been told that nothing is left
        assert len(backend.named("claim")) > 2
        await backend.others_add("/late")
        late = await finding
        assert path_of(late) == "/late"
        driver.ack(late)
        assert await driver.next() is None


async def test_evicted_entries_that_show_late_are_crawled(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    backend.head_lag = 25.0
    async with Driver(backend, window=5) as driver:
        for path in numbered(20):
            driver.add(path)
        assert sorted(await driver.crawl()) == sorted(numbered(20))


async def test_evicted_entries_are_found_while_a_page_is_in_flight(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    backend.head_lag = 25.0
    async with Driver(backend, window=2) as driver:
        driver.add("/slow")
        slow = await driver.next()
        for path in numbered(6):
            driver.add(path)
        found = [await driver.next() for _ in range(6)]
        assert sorted(map(path_of, found)) == numbered(6)
        for visit in (slow, *found):
            driver.ack(visit)


async def test_the_question_is_asked_anew_after_a_late_add(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path)) as driver:
        driver.add("/page")
        assert await driver.crawl() == ["/page"]
        driver.add("/late")  # a start() without end
        assert driver.frontier.has_pending()
        assert await driver.crawl() == ["/late"]


# No entry twice at the same time.


async def test_a_late_claim_shows_an_entry_in_flight(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend) as driver:
        assert await driver.next() is None
        gate = backend.at["before claim"] = Gate()
        driver.frontier._reader.ask_at(0)  # the timer would take its time
        await gate.reached.wait()
        driver.add("/page")
        page = await driver.next()
        gate.opened.set()
        await many_turns()
        assert driver.frontier.next() is None
        driver.ack(page)
        assert await driver.next() is None


async def test_a_late_claim_shows_an_entry_acked_meanwhile(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend) as driver:
        assert await driver.next() is None
        before, after = Gate(), Gate()
        backend.at.update({"before claim": before, "after claim": after})
        driver.frontier._reader.ask_at(0)
        await before.reached.wait()
        driver.add("/page")
        page = await driver.next()
        before.opened.set()
        await after.reached.wait()
        driver.ack(page)
        await driver.saved()
        after.opened.set()
        assert await driver.next() is None


async def test_a_page_of_an_earlier_run_is_known_once_it_is_in_flight(tmp_path: Path) -> None:
    """A link to it would be a second add, on its way at the same time as its ack."""
    async with Driver(Remote(tmp_path), "/a", "/b") as driver:
        visits = [await driver.next(), await driver.next()]
        assert all(driver.frontier.knows(make_entry(path_of(visit)).id) for visit in visits)


# Memory, and the outbox's limits.


async def test_nothing_is_handed_out_while_acks_pile_up(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend, *numbered(300), outbox=100) as driver:
        gate = backend.at["before update"] = Gate()
        driver.ack(await driver.next())
        await gate.reached.wait()
        acked = 1
        while (visit := driver.hand_out()) is not None:
            driver.ack(visit)
            acked += 1
        assert acked == 26  # a quarter of the limit is exceeded
        assert driver.frontier.has_pending()
        gate.opened.set()
        await driver.crawl()
    assert driver.stats["apify_rq/handled"] == 300


async def test_nothing_is_handed_out_while_callbacks_wait_for_room(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend, *numbered(50), outbox=10) as driver:
        await driver.next()
        gate = backend.at["before add"] = Gate()
        for n in range(10):
            driver.add(f"/new{n}")
        await gate.reached.wait()
        held_back = [asyncio.create_task(driver.frontier.room()) for _ in range(16)]
        await asyncio.sleep(0)
        assert driver.frontier.ready
        assert driver.frontier.next() is None
        gate.opened.set()
        await asyncio.gather(*held_back)
        assert driver.frontier.next() is not None


async def test_nothing_is_kept_of_what_is_confirmed(tmp_path: Path) -> None:
    paths = [f"/confirmed{n}" for n in range(30)]
    async with Driver(Remote(tmp_path), *paths[:20]) as driver:
        for path in paths[20:]:
            driver.add(path)
        for _ in paths:
            driver.ack(await driver.next())
        await driver.saved()
        gc.collect()
        visits = [each for each in gc.get_objects() if isinstance(each, Visit)]
        assert not {path_of(visit) for visit in visits if visit.entry}.intersection(paths)


async def test_large_entries_take_bounded_memory(tmp_path: Path) -> None:
    """48 large entries, all of which would take twelve times the memory and more."""
    size = 2**18
    backend = Remote(tmp_path)
    backend.entry_size = size
    async with Driver(backend, memory=8 * size) as driver:
        gc.collect()
        tracemalloc.start()
        try:
            for n in range(48):
                await driver.frontier.room()
                entry = make_entry(f"/{n}", payload=f"{n:07}" * (size // 7))
                driver.frontier.add(Visit(entry, size=2 * entry.size))
            assert sorted(await driver.crawl()) == sorted(numbered(48))
            assert tracemalloc.get_traced_memory()[1] < 32 * size
        finally:
            tracemalloc.stop()


async def test_larger_than_all_the_memory(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    backend.lag = backend.consistency_delay = 0.0
    async with Driver(backend, *numbered(10), memory=400) as driver:
        for path in numbered(10, 20):
            await driver.frontier.room()
            driver.add(path, size=1000)
        assert sorted(await driver.crawl()) == sorted(numbered(20))
    assert len(backend.named("claim")) < 60


# Close, and failure.


async def test_a_failed_call_while_an_add_waits_for_company(tmp_path: Path) -> None:
    """close() used to hang here on Python 3.11: wait_for() swallowed the cancellation."""
    backend = Remote(tmp_path)
    backend.linger = PATIENCE
    async with Driver(backend, *numbered(50)) as driver:
        backend.at["before update"] = raises(BackendError("403", "apify_rq_unauthorized"))
        driver.ack(await driver.next())
        driver.add("/link")  # enough is ready, so it may wait a moment
        await wait_until(lambda: driver.failures)
        await driver.close()
        assert [error.reason for error in driver.failures] == ["apify_rq_unauthorized"]
        assert (driver.frontier.unsaved_adds, driver.frontier.unsaved_updates) == (1, 1)


@pytest.mark.parametrize("moment", ["before add", "before update"])
@pytest.mark.parametrize("error", [BackendError("no", "apify_rq_gone"), ValueError("no")])
async def test_one_refused_call_of_many_at_close(
    tmp_path: Path, moment: str, error: Exception
) -> None:
    backend = Remote(tmp_path)
    backend.parallel = backend.update_parallel = 8
    backend.batch = backend.update_batch = 1
    calls = 0

    async def refuse() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error
        await asyncio.sleep(0.01)

    async with Driver(backend, *numbered(20)) as driver:
        backend.at[moment] = refuse
        for n in range(10):
            driver.ack(await driver.next())
            driver.add(f"/link{n}")
        await driver.close()
        assert [each.reason for each in driver.failures] == [
            error.reason if isinstance(error, BackendError) else "apify_rq_error"
        ]
        assert driver.frontier.unsaved_adds + driver.frontier.unsaved_updates > 0
        assert driver.frontier.has_pending()


async def hang() -> None:
    """Not even the first cancellations end it."""
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@pytest.mark.parametrize("moment", ["before add", "before update"])
async def test_a_call_that_never_returns_does_not_keep_close(tmp_path: Path, moment: str) -> None:
    backend = Remote(tmp_path, patience=10)
    async with Driver(backend, "/page") as driver:
        page = await driver.next()
        backend.at[moment] = hang
        driver.add("/link")
        driver.ack(page)
        began = now()
        await driver.frontier.close()
        assert 70 <= now() - began < 75
        assert [error.reason for error in driver.failures] == ["apify_rq_unavailable"]


@pytest.mark.parametrize(("lock_secs", "notices"), [(None, []), (60, [LeasesKept(60, "")])])
async def test_a_claim_that_never_returns_does_not_keep_close(
    tmp_path: Path, lock_secs: int | None, notices: list[LeasesKept]
) -> None:
    backend = Remote(tmp_path, lock_secs=lock_secs)
    backend.at["before claim"] = hang
    async with Driver(backend, "/page") as driver:
        assert driver.hand_out() is None
        await wait_until(lambda: backend.named("claim"))
        await driver.close()
        assert driver.failures == []
        assert driver.notices == notices


async def test_an_exception_in_the_listener_closes_the_spider(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path), "/page") as driver:
        driver.dropped = lambda visit: 1 / 0  # type: ignore[method-assign]
        driver.add("/page")
        await wait_until(lambda: driver.failures)
        (failure,) = driver.failures
        assert str(failure) == "ZeroDivisionError: division by zero"
        assert failure.reason == "apify_rq_error"
        (notice,) = driver.notices
        assert isinstance(notice, Bug)
        assert isinstance(notice.error, ZeroDivisionError)
        assert driver.frontier.error is failure
        assert driver.frontier.has_pending()


async def test_a_call_that_is_cancelled_from_inside_is_a_failure(tmp_path: Path) -> None:
    backend = Remote(tmp_path)
    async with Driver(backend) as driver:
        backend.at["before add"] = raises(asyncio.CancelledError())
        driver.add("/page")
        await wait_until(lambda: driver.failures)
        assert driver.failures[0].reason == "apify_rq_error"
        assert driver.frontier.unsaved_adds == 1


async def test_close_before_open_and_twice(tmp_path: Path) -> None:
    driver = Driver(Remote(tmp_path), "/page")
    await driver.frontier.close()
    async with driver:
        await asyncio.gather(driver.frontier.close(), driver.frontier.close())


async def test_on_hold_nothing_is_handed_out_and_acks_are_saved(tmp_path: Path) -> None:
    async with Driver(Remote(tmp_path), "/0", "/1") as driver:
        page = await driver.next()
        await driver.frontier.hold()
        assert driver.frontier.next() is None
        driver.ack(page)
        assert driver.frontier.has_pending()
        await driver.saved()
        await driver.close()
        assert (await driver.backend.info()).pending == 1


async def test_another_crawl_in_single_access_is_noticed_once(tmp_path: Path) -> None:
    async with (
        Driver(Remote(tmp_path), *numbered(4)) as one,
        Driver(Remote(tmp_path), is_new=False) as two,
    ):
        visits = [(driver, await driver.next()) for driver in (one, two) for _ in range(4)]
        for driver, visit in visits:
            driver.ack(visit)
            await driver.saved()
    assert one.notices == []
    assert two.notices == [OthersSeen(two.backend.location)]
    assert two.stats["apify_rq/handled_twice"] == 4
