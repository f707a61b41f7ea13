"""Several calls at the same time: their order, their number, and that none is left."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from functools import partial

import pytest

from scrapy_apify_rq.backends.apify.parallel import run_ahead, run_all


async def test_no_call_outlives_those_that_were_cancelled_often() -> None:
    ended: list[int] = []

    async def call(number: int) -> int:
        try:
            await asyncio.sleep(60)
        finally:
            for _ in range(5):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)
            ended.append(number)
        return number

    async def read_ahead() -> None:
        async with aclosing(run_ahead((partial(call, n) for n in range(9)), lambda: 3)) as results:
            async for _ in results:
                raise AssertionError

    for calls in (run_all(map(call, range(3))), read_ahead()):
        ended.clear()
        running = asyncio.create_task(calls)
        while not running.done():  # in the calls, and while their end is waited for
            await asyncio.sleep(0.005)
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == [0, 1, 2]


async def test_calls_ahead_come_in_order_and_are_never_more_than_may_be() -> None:
    running = most = 0

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 * (3 - number % 3))
        running -= 1
        return number

    results = run_ahead((partial(call, n) for n in range(10)), lambda: 3)
    assert [number async for number in results] == list(range(10))
    assert most == 3
