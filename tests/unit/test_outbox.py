"""What is sent, when and in which order; the limits of what waits; how sending ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.backends.base import Added, Updated
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.outbox import Outbox
from scrapy_apify_rq.frontier.visit import Visit
from tests.support.frontier_driver import PATIENCE, Gate, Remote, make_entry, many_turns, path_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.virtual_time

MB = 2**20


class Owner:
    def __init__(self) -> None:
        self.added_paths: list[str] = []
        self.updated_paths: list[str] = []
        self.starving = True

    def added(self, visit: Visit, answer: Added) -> None:
        assert answer.id == make_entry(path_of(visit)).id
        self.added_paths.append(path_of(visit))

    def updated(self, visit: Visit, answer: Updated) -> None:
        self.updated_paths.append(path_of(visit))

    def confirmed(self) -> None:
        pass

    def is_starving(self) -> bool:
        return self.starving


@pytest.fixture
def backend(tmp_path: Path) -> Remote:
    return Remote(tmp_path)


def a_visit(path: str, *, size: int = 100, forefront: bool = False) -> Visit:
    return Visit(make_entry(path), size=size, forefront=forefront)


def an_outbox(backend: Remote, **limits: Any) -> Outbox:
    return Outbox(backend, **{"limit": 100, "memory": MB, **limits})


@asynccontextmanager
async def working(outbox: Outbox, backend: Remote) -> AsyncIterator[Owner]:
    """At the end, all tasks must have ended by themselves."""
    await backend.open()
    owner = Owner()
    tasks = [asyncio.create_task(work) for work in outbox.work(owner)]
    yield owner
    _, pending = await asyncio.wait(tasks, timeout=PATIENCE)
    assert not pending
    await backend.close()


async def stored(backend: Remote) -> list[str]:
    return [entry.unique_key for entry, _ in (await backend.claim(10, (), MB)).entries]


async def test_what_goes_to_the_front_keeps_its_order_there(backend: Remote) -> None:
    outbox = an_outbox(backend)
    end, front = ["/end0", "/end1", "/end2"], ["/front0", "/front1", "/front2"]
    async with working(outbox, backend) as owner:
        for path in end:
            outbox.add(a_visit(path))
        for path in front:
            outbox.add(a_visit(path, forefront=True))
        await outbox.flush(PATIENCE)
        assert await stored(backend) == [*front, *end]
    assert owner.added_paths == [*end, *front]


async def test_retries_for_the_front_keep_their_order_there(backend: Remote) -> None:
    outbox = an_outbox(backend)
    async with working(outbox, backend) as owner:
        await backend.add([make_entry(f"/{n}") for n in range(4)], forefront=False)
        for path in ("/2", "/3"):
            outbox.update(a_visit(path, forefront=True))
        await outbox.flush(PATIENCE)
        assert await stored(backend) == ["/2", "/3", "/0", "/1"]
    assert owner.updated_paths == ["/2", "/3"]


@pytest.mark.parametrize(
    ("limits", "size", "most"), [({"limit": 3}, 1, 3), ({"memory": 10 * MB}, 5 * MB, 2)]
)
async def test_the_limits_are_numbers_and_bytes(
    backend: Remote, limits: dict[str, int], size: int, most: int
) -> None:
    outbox = an_outbox(backend, **limits)
    for n in range(most):
        assert not outbox.is_full()
        outbox.add(a_visit(f"/{n}", size=size))
    assert outbox.is_full()


async def test_room_comes_with_confirmed_bytes_and_one_entry_always_fits(backend: Remote) -> None:
    outbox = an_outbox(backend)
    async with working(outbox, backend) as owner:
        for n in range(5):
            await asyncio.wait_for(outbox.room(), PATIENCE)
            outbox.add(a_visit(f"/{n}", size=50 * MB))
        await outbox.flush(PATIENCE)
    assert len(owner.added_paths) == 5


async def test_a_call_takes_a_few_megabytes_at_most_or_one_entry(backend: Remote) -> None:
    outbox = an_outbox(backend, memory=100 * MB)
    for n, size in enumerate((MB, MB, 9 * MB, 1, 1)):
        outbox.add(a_visit(f"/{n}", size=size))
    async with working(outbox, backend):
        await outbox.flush(PATIENCE)
    assert backend.named("add") == [["/0", "/1"], ["/2"], ["/3", "/4"]]


async def test_too_many_updates_are_a_quarter_of_the_limits(backend: Remote) -> None:
    outbox = an_outbox(backend, memory=100 * MB)
    for n in range(50):
        outbox.add(a_visit(f"/add{n}", size=MB))
    for n in range(25):
        outbox.update(a_visit(f"/{n}", size=1))
    assert not outbox.has_too_many_updates()
    outbox.update(a_visit("/one more", size=1))
    assert outbox.has_too_many_updates()
    assert (outbox.unsaved_adds, outbox.unsaved_updates) == (50, 26)

    outbox = an_outbox(backend, memory=100 * MB)
    outbox.update(a_visit("/large", size=26 * MB))
    assert outbox.has_too_many_updates()


@pytest.mark.parametrize("moment", ["before add", "after add"])
async def test_an_update_waits_until_all_adds_before_it_are_confirmed(
    backend: Remote, moment: str
) -> None:
    outbox = an_outbox(backend)
    gate = backend.at[moment] = Gate()
    async with working(outbox, backend):
        for n in range(60):
            outbox.add(a_visit(f"/link{n}"))
        outbox.update(a_visit("/page"))
        await gate.reached.wait()
        await many_turns()
        assert backend.named("update") == []
        gate.opened.set()
        await outbox.flush(PATIENCE)
    *adds, update = backend.calls
    assert [call.name for call in adds] == ["add"] * 3
    assert update.name == "update"
    assert update.asked >= max(call.ended for call in adds)


async def test_an_update_does_not_wait_for_adds_made_after_it(backend: Remote) -> None:
    outbox = an_outbox(backend)
    outbox.add(a_visit("/link"))
    outbox.update(a_visit("/page"))
    for n in range(60):
        outbox.add(a_visit(f"/later{n}"))
    async with working(outbox, backend):
        await outbox.flush(PATIENCE)
    names = [call.name for call in backend.calls]
    assert names.index("add") < names.index("update") < len(names) - 1


async def test_a_slow_update_holds_up_no_other(backend: Remote) -> None:
    async def slow() -> None:
        if len(backend.named("update")) == 1:
            await gate()

    backend.update_batch, backend.update_parallel = 1, 4
    gate = Gate()
    backend.at["before update"] = slow
    outbox = an_outbox(backend)
    async with working(outbox, backend) as owner:
        for n in range(20):
            outbox.update(a_visit(f"/{n}"))
        await wait_until(lambda: outbox.unsaved_updates == 1)
        gate.opened.set()
        await outbox.flush(PATIENCE)
    assert owner.updated_paths[-1] == "/0"


async def test_an_add_waits_for_company_while_the_crawl_has_enough_to_do(backend: Remote) -> None:
    backend.linger = 60.0
    outbox = an_outbox(backend)
    async with working(outbox, backend) as owner:
        owner.starving = False
        for n in range(backend.batch - 1):
            outbox.add(a_visit(f"/{n}"))
        await asyncio.sleep(59)
        assert backend.calls == []
        outbox.add(a_visit("/last"))
        await wait_until(lambda: owner.added_paths)
        assert len(backend.calls) == 1
        outbox.add(a_visit("/alone"))
        await asyncio.sleep(59)
        assert len(backend.calls) == 1
        await asyncio.sleep(2)
        outbox.add(a_visit("/flushed"))
        await outbox.flush(PATIENCE)
    assert backend.named("add")[1:] == [["/alone"], ["/flushed"]]


async def test_after_a_failure_nothing_waits(backend: Remote) -> None:
    backend.linger = 60.0
    outbox = an_outbox(backend, limit=2)
    async with working(outbox, backend) as owner:
        owner.starving = False
        for n in range(2):
            outbox.add(a_visit(f"/{n}"))
        waiting = asyncio.create_task(outbox.room())
        await many_turns()
        outbox.fail()
        async with asyncio.timeout(1):
            await waiting
            await outbox.room()
            await outbox.flush(PATIENCE)
    assert (outbox.unsaved_adds, backend.calls) == (2, [])


async def test_a_flush_is_bounded_by_the_time_without_an_answer(backend: Remote) -> None:
    backend.at["before add"] = lambda: asyncio.sleep(10)
    outbox = an_outbox(backend, memory=100 * MB)
    for n in range(5):
        outbox.add(a_visit(f"/{n}", size=5 * MB))  # five calls, one after the other
    async with working(outbox, backend) as owner:
        await outbox.flush(11)
        assert len(owner.added_paths) == 5

    outbox = an_outbox(backend)
    outbox.add(a_visit("/new"))
    with pytest.raises(TimeoutError):
        await outbox.flush(11)  # nobody works


async def test_a_task_ends_with_the_error_of_its_call(backend: Remote) -> None:
    async def fail() -> None:
        raise BackendError("no")

    await backend.open()
    backend.at["before update"] = fail
    outbox = an_outbox(backend)
    outbox.update(a_visit("/page"))
    tasks = [asyncio.create_task(each) for each in outbox.work(Owner())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    outbox.fail()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(task.exception()) for task in done] == ["no"]
    await backend.close()
