"""What is sent, when and in which order; the limits of what waits; how sending ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from scrapy_apify_rq.backends.base import Added, Updated
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.frontier.outbox import Outbox
from scrapy_apify_rq.frontier.visit import Visit
from tests.support.frontier_driver import PATIENCE, Remote, make_entry, path_of, until
from tests.support.waiting import run_async

MB = 2**20


class Owner:
    def __init__(self) -> None:
        self.added_paths: list[str] = []
        self.answers: list[tuple[str, str]] = []
        self.updated_paths: list[str] = []
        self.starving = True

    def added(self, visit: Visit, answer: Added) -> None:
        self.added_paths.append(path_of(visit))
        self.answers.append((answer.id, make_entry(path_of(visit)).id))

    def updated(self, visit: Visit, answer: Updated) -> None:
        self.updated_paths.append(path_of(visit))

    def confirmed(self) -> None:
        pass

    def is_starving(self) -> bool:
        return self.starving


def a_visit(path: str, *, size: int = 100, forefront: bool = False) -> Visit:
    return Visit(make_entry(path), size=size, forefront=forefront)


@asynccontextmanager
async def working(outbox: Outbox, owner: Owner, backend: Remote) -> AsyncIterator[None]:
    """At the end, all tasks must have ended by themselves."""
    await backend.open()
    tasks = [asyncio.create_task(work) for work in outbox.work(owner)]
    yield
    _, pending = await asyncio.wait(tasks, timeout=PATIENCE)
    assert not pending
    await backend.close()


def test_a_batch_for_the_front_keeps_its_order_there(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        outbox = Outbox(backend, limit=100, memory=MB)
        async with working(outbox, owner, backend):
            for n in range(3):
                outbox.add(a_visit(f"/end{n}"))
            for n in range(5):
                outbox.add(a_visit(f"/front{n}", forefront=True))
            await outbox.flush(PATIENCE)
            front, end = [f"/front{n}" for n in range(5)], [f"/end{n}" for n in range(3)]
            claim = await backend.claim(10, (), MB)
            assert [claimed.entry.unique_key for claimed in claim.entries] == [*front, *end]
        assert owner.added_paths == [*end, *front]
        assert all(answered == own for answered, own in owner.answers)

    run_async(work())


def test_retries_for_the_front_keep_their_order_there(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        outbox = Outbox(backend, limit=100, memory=MB)
        async with working(outbox, owner, backend):
            await backend.add([make_entry(f"/{n}") for n in range(4)], forefront=False)
            for n in (2, 3):
                outbox.update(a_visit(f"/{n}", forefront=True))
            await outbox.flush(PATIENCE)
            claim = await backend.claim(10, (), MB)
            assert [claimed.entry.unique_key for claimed in claim.entries] == [
                *("/2", "/3", "/0", "/1")
            ]
        assert owner.updated_paths == ["/2", "/3"]

    run_async(work())


def test_the_limits_are_numbers_and_bytes(tmp_path: Path) -> None:
    async def work() -> None:
        outbox = Outbox(Remote(tmp_path), limit=3, memory=MB)
        for n in range(3):
            assert not outbox.is_full()
            outbox.add(a_visit(f"/{n}"))
        assert outbox.is_full()

        outbox = Outbox(Remote(tmp_path), limit=1000, memory=10 * MB)
        for n in range(2):
            assert not outbox.is_full()
            outbox.add(a_visit(f"/{n}", size=5 * MB))
        assert outbox.is_full()

    run_async(work())


def test_room_comes_when_bytes_are_confirmed_and_one_entry_always_fits(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        outbox = Outbox(backend, limit=1000, memory=MB)
        async with working(outbox, owner, backend):
            for n in range(5):
                async with asyncio.timeout(PATIENCE):
                    await outbox.room()
                outbox.add(a_visit(f"/{n}", size=50 * MB))
            await outbox.flush(PATIENCE)
        assert len(owner.added_paths) == 5

    run_async(work())


def test_a_call_takes_a_few_megabytes_at_most_or_one_entry(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        outbox = Outbox(backend, limit=1000, memory=100 * MB)
        for n, size in enumerate((MB, MB, 9 * MB, 1, 1)):
            outbox.add(a_visit(f"/{n}", size=size))
        async with working(outbox, owner, backend):
            await outbox.flush(PATIENCE)
        assert backend.named("add") == [["/0", "/1"], ["/2"], ["/3", "/4"]]

    run_async(work())


def test_too_many_updates_are_a_quarter_of_the_limits(tmp_path: Path) -> None:
    async def work() -> None:
        outbox = Outbox(Remote(tmp_path), limit=100, memory=100 * MB)
        for n in range(50):
            outbox.add(a_visit(f"/add{n}", size=MB))
        for n in range(25):
            outbox.update(a_visit(f"/{n}", size=1))
        assert not outbox.has_too_many_updates()
        outbox.update(a_visit("/one more", size=1))
        assert outbox.has_too_many_updates()
        assert (outbox.unsaved_adds, outbox.unsaved_updates) == (50, 26)

        outbox = Outbox(Remote(tmp_path), limit=100, memory=100 * MB)
        outbox.update(a_visit("/large", size=26 * MB))
        assert outbox.has_too_many_updates()

    run_async(work())


def test_an_update_waits_for_the_adds_before_it_only(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        outbox = Outbox(backend, limit=100, memory=MB)
        outbox.add(a_visit("/link"))
        outbox.update(a_visit("/page"))
        for n in range(60):
            outbox.add(a_visit(f"/later{n}"))
        async with working(outbox, owner, backend):
            await outbox.flush(PATIENCE)
        names = [name for name, _, _ in backend.calls]
        assert names.index("add") < names.index("update") < len(names) - 1

    run_async(work())


def test_an_add_waits_for_company_while_the_crawl_has_enough_to_do(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        backend.linger = 60.0
        owner.starving = False
        outbox = Outbox(backend, limit=100, memory=MB)
        async with working(outbox, owner, backend):
            for n in range(backend.batch - 1):
                outbox.add(a_visit(f"/{n}"))
            await asyncio.sleep(0.02)
            assert backend.calls == []
            outbox.add(a_visit("/last"))
            await until(lambda: bool(owner.added_paths))
            assert len(backend.calls) == 1
            outbox.add(a_visit("/flushed"))
            await asyncio.sleep(0.02)
            await outbox.flush(PATIENCE)
        assert backend.named("add")[1:] == [["/flushed"]]

    run_async(work())


def test_after_a_failure_nothing_waits(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        backend.linger = 60.0
        owner.starving = False
        outbox = Outbox(backend, limit=2, memory=MB)
        async with working(outbox, owner, backend):
            for n in range(2):
                outbox.add(a_visit(f"/{n}"))
            waiting = asyncio.create_task(outbox.room())
            await asyncio.sleep(0.02)
            outbox.fail()
            async with asyncio.timeout(PATIENCE):
                await waiting
                await outbox.room()
                await outbox.flush(PATIENCE)
        assert (outbox.unsaved_adds, backend.calls) == (2, [])

    run_async(work())


def test_a_flush_is_bounded_by_the_time_without_an_answer(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()

        async def slow(_: object) -> None:
            await asyncio.sleep(0.1)

        backend.on_add = slow
        outbox = Outbox(backend, limit=100, memory=100 * MB)
        for n in range(5):
            outbox.add(a_visit(f"/{n}", size=5 * MB))  # five calls, one after the other
        async with working(outbox, owner, backend):
            await outbox.flush(0.3)
            assert len(owner.added_paths) == 5

        outbox = Outbox(backend, limit=100, memory=MB)
        outbox.add(a_visit("/new"))
        with pytest.raises(TimeoutError):
            await outbox.flush(0.05)  # nobody works

    run_async(work())


def test_a_task_ends_with_the_error_of_its_call(tmp_path: Path) -> None:
    async def work() -> None:
        backend, owner = Remote(tmp_path), Owner()
        await backend.open()

        async def fail(_: object) -> None:
            raise BackendError("no")

        backend.on_update = fail
        outbox = Outbox(backend, limit=100, memory=MB)
        outbox.update(a_visit("/page"))
        tasks = [asyncio.create_task(each) for each in outbox.work(owner)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [str(task.exception()) for task in done] == ["no"]
        outbox.fail()
        with contextlib.suppress(BackendError):
            await asyncio.gather(*tasks)
        await backend.close()

    run_async(work())
