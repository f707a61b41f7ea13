"""Several calls at the same time. No task started here outlives the function that started it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


async def run_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all calls at the same time and return their results in order.

    When one fails, cancel the others and raise its exception.
    """
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def run_ahead(
    calls: Iterable[Coroutine[Any, Any, T]], width: Callable[[], int]
) -> AsyncGenerator[T, None]:
    """Yield the results of the calls in order, with up to ``width()`` of them under way.

    A call is made only when there is room for it. Closing the generator cancels those under way.
    """
    waiting = iter(calls)
    tasks: deque[asyncio.Task[T]] = deque()
    try:
        while True:
            room = max(width() - len(tasks), 0)
            tasks.extend(asyncio.create_task(call) for call in islice(waiting, room))
            if not tasks:
                return
            result = await tasks[0]
            tasks.popleft()
            yield result
    finally:
        await _end(tasks)


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for their end, even if we are cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # one of them was raised; asyncio would log the others as lost
    if cancelled is not None:
        raise cancelled
