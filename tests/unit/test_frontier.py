"""Outbox, window, supply and idle together, over an embedded queue with the API's delays."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Sequence
from pathlib import Path

import pytest

from scrapy_apify_rq.backends.base import Updated
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.notices import Bug, LeasesKept, OthersSeen, RateReached
from scrapy_apify_rq.frontier.visit import Visit
from tests.support.frontier_driver import Driver, Gate, Remote, make_entry, many_turns, now, path_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def backend(tmp_path: Path) -> Remote:
    return Remote(tmp_path)


def numbered(count: int, prefix: str = "/") -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


# Retries that wait.


async def test_a_retry_is_handed_out_at_its_time(backend: Remote) -> None:
    async with Driver(backend, "/bad", "/good") as driver:
        bad = await driver.next()
        due_at = now() + 5
        driver.requeue(bad, not_before=due_at)
        good = await driver.next()
        assert path_of(good) == "/good"
        driver.ack(good)
        again = await driver.next()  # nobody but the frontier itself can have woken the engine
        assert path_of(again) == "/bad"
        assert due_at <= now() < due_at + 0.1
        driver.ack(again)
        assert await driver.next() is None


async def test_so_many_retries_wait_that_nothing_new_is_handed_out(backend: Remote) -> None:
    async with Driver(backend, *numbered(30), window=8) as driver:
        due_at = now() + 5
        waiting = 0
        while now() < due_at - 4:
            if (visit := driver.hand_out()) is not None:
                driver.requeue(visit, not_before=due_at)
                waiting += 1
            await asyncio.sleep(0.01)
        assert waiting == 5  # more than half of the window
        assert len(await driver.crawl()) == 30


# The end.


async def test_alone_on_a_new_queue_the_crawl_ends_on_one_answer(backend: Remote) -> None:
    async with Driver(backend) as driver:
        driver.add("/page")
        page = await driver.next()
        await driver.saved()
        claims = len(backend.named("claim"))
        began = now()
        driver.ack(page)
        assert await driver.next() is None
        assert len(backend.named("claim")) - claims == 1
    assert now() - began < 0.3


async def test_the_end_is_asked_for_once_the_last_write_is_confirmed(backend: Remote) -> None:
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


async def test_others_on_the_queue_are_waited_for(backend: Remote) -> None:
    backend.alone = False
    async with Driver(backend) as driver:
        driver.add("/page")
        assert await driver.crawl() == ["/page"]
    (ack,) = (call for call in backend.calls if call.name == "update")
    assert ack.ended + 3 <= backend.calls[-1].asked < ack.ended + 4


async def test_an_entry_that_others_add_to_an_idle_crawl(backend: Remote) -> None:
    async with Driver(backend, "/page", idle_before_close=9) as driver:
        driver.ack(await driver.next())
        crawling = asyncio.create_task(driver.crawl())
        await asyncio.sleep(8)  # it has been told that nothing is left
        assert len(backend.named("claim")) > 2
        await backend.others_add("/late")
        assert await crawling == ["/late"]


async def test_evicted_entries_that_show_late_are_found_while_a_page_is_in_flight(
    backend: Remote,
) -> None:
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


# What is handed out, and kept.


async def test_a_page_of_an_earlier_run_is_known_once_it_is_in_flight(backend: Remote) -> None:
    """A link to it would be a second add, on its way at the same time as its ack."""
    async with Driver(backend, "/page") as driver:
        assert path_of(await driver.next()) == "/page"
        assert driver.frontier.knows(make_entry("/page").id)


async def test_nothing_is_handed_out_while_acks_pile_up(backend: Remote) -> None:
    backend.rate_reached = "400 updates a second"
    async with Driver(backend, *numbered(300), outbox=100) as driver:
        gate = backend.at["before update"] = Gate()
        acked = 0
        while (visit := await driver.next() if not acked else driver.hand_out()) is not None:
            driver.ack(visit)
            acked += 1
            await many_turns()
        assert acked == 26  # a quarter of the limit is exceeded
        assert driver.frontier.has_pending()
        gate.opened.set()
        await driver.crawl()
    assert driver.stats["apify_rq/handled"] == 300
    assert driver.notices == [RateReached("400 updates a second")]


async def test_nothing_is_handed_out_while_callbacks_wait_for_room(backend: Remote) -> None:
    async with Driver(backend, *numbered(50), outbox=10) as driver:
        await driver.next()
        gate = backend.at["before add"] = Gate()
        for path in numbered(10, "/new"):
            driver.add(path)
        await gate.reached.wait()
        held_back = [asyncio.create_task(driver.frontier.room()) for _ in range(16)]
        await asyncio.sleep(0)
        assert driver.frontier.ready
        assert driver.frontier.next() is None
        gate.opened.set()
        await asyncio.gather(*held_back)
        assert driver.frontier.next() is not None


async def test_nothing_is_kept_of_what_is_confirmed(backend: Remote) -> None:
    paths = numbered(30, "/confirmed")
    async with Driver(backend, *paths[:20]) as driver:
        for path in paths[20:]:
            driver.add(path)
        for _ in paths:
            driver.ack(await driver.next())
        await driver.saved()
        gc.collect()
        visits = [each for each in gc.get_objects() if type(each) is Visit]
        assert not {path_of(visit) for visit in visits if visit.entry}.intersection(paths)


class Refusing(Remote):
    """Refuses all updates."""

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        return [Updated(was_handled=False, refused=True) for _ in entries]


@pytest.mark.parametrize(("lock_secs", "again"), [(None, ["/retried"]), (60, [])])
async def test_what_the_queue_refuses_does_not_count_as_saved(
    tmp_path: Path, lock_secs: int | None, again: list[str]
) -> None:
    """A retry that nobody else can claim is made from memory."""
    backend = Refusing(tmp_path, lock_secs=lock_secs)
    async with Driver(backend, "/acked", "/retried") as driver:
        driver.ack(await driver.next())
        driver.requeue(await driver.next())
        await driver.saved()
        visits = [driver.hand_out() for _ in range(2)]
        assert [path_of(visit) for visit in visits if visit] == again
        for visit in filter(None, visits):
            driver.ack(visit)
        await driver.close()
        assert (await backend.info()).pending == 2
    assert driver.stats["apify_rq/handled"] == 0
    assert driver.stats["apify_rq/retried"] == len(again)


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


# Close, and failure.


async def test_a_failed_call_while_an_add_waits_for_company(backend: Remote) -> None:
    """close() used to hang here on Python 3.11: wait_for() swallowed the cancellation."""

    async def refuse() -> None:
        raise BackendError("403", "apify_rq_unauthorized")

    backend.linger = 60.0
    async with Driver(backend, *numbered(50)) as driver:
        backend.at["before update"] = refuse
        driver.ack(await driver.next())
        driver.add("/link")  # enough is ready, so it may wait a moment
        await wait_until(lambda: driver.failures)
        await driver.close()
        assert [error.reason for error in driver.failures] == ["apify_rq_unauthorized"]
        assert (driver.frontier.unsaved_adds, driver.frontier.unsaved_updates) == (1, 1)


@pytest.mark.parametrize("moment", ["before add", "before update"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BackendError("no", "apify_rq_gone"), "apify_rq_gone"),
        (ValueError("no"), "apify_rq_error"),
        (asyncio.CancelledError(), "apify_rq_error"),  # from inside the call
    ],
)
async def test_one_refused_call_of_many_at_close(
    backend: Remote, moment: str, error: BaseException, reason: str
) -> None:
    async def refuse() -> None:
        nonlocal calls
        calls += 1
        is_refused = calls >= 5  # several at a time, of which one is reported
        await asyncio.sleep(0.01)
        if is_refused:
            raise error

    calls = 0
    backend.parallel = backend.update_parallel = 8
    backend.batch = backend.update_batch = 1
    async with Driver(backend, *numbered(20)) as driver:
        backend.at[moment] = refuse
        for path in numbered(10, "/link"):
            driver.ack(await driver.next())
            driver.add(path)
        await driver.close()
        assert [each.reason for each in driver.failures] == [reason]
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
    assert driver.failures == []
    assert driver.notices == notices


async def test_an_exception_in_the_listener_closes_the_spider(backend: Remote) -> None:
    async with Driver(backend, "/page") as driver:
        driver.dropped = lambda visit: 1 / 0  # type: ignore[method-assign]
        driver.add("/page")
        await wait_until(lambda: driver.failures)
        (failure,) = driver.failures
        assert str(failure).startswith("ZeroDivisionError: division by zero. ")
        assert failure.reason == "apify_rq_error"
        (notice,) = driver.notices
        assert isinstance(notice, Bug)
        assert isinstance(notice.error, ZeroDivisionError)
        assert driver.frontier.error is failure
        assert driver.frontier.has_pending()


async def test_close_before_open_and_twice(backend: Remote) -> None:
    driver = Driver(backend, "/page")
    await driver.frontier.close()
    async with driver:
        await asyncio.gather(driver.frontier.close(), driver.frontier.close())
