"""Several calls at the same time. No task started here outlives the function that started it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Iterator
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


async def run_both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, None]) -> None:
    """Run two calls at the same time. The error of the first one counts if both fail."""
    tasks = [asyncio.create_task(call) for call in (first, second)]
    try:
        for task in tasks:
            await task
    finally:
        await _end(tasks)


async def run_ahead(
    calls: Iterable[Callable[[], Coroutine[Any, Any, T]]], width: Callable[[], int]
) -> AsyncGenerator[T, None]:
    """Yield the results of the calls in order, with up to ``width()`` of them under way.

    A call is made only when there is room for it. Where the width shrinks, the last ones are
    cancelled and made again later. Closing the generator cancels those under way.
    """
    waiting = iter(calls)
    again: deque[Callable[[], Coroutine[Any, Any, T]]] = deque()
    running: deque[tuple[Callable[[], Coroutine[Any, Any, T]], asyncio.Task[T]]] = deque()
    try:
        while True:
            excess = [running.pop() for _ in range(len(running) - max(width(), 1))]
            again.extendleft(call for call, _ in excess)
            await _end([task for _, task in excess])
            while len(running) < width() and (call := _next(again, waiting)) is not None:
                running.append((call, asyncio.create_task(call())))
            if not running:
                return
            result = await running[0][1]
            running.popleft()
            yield result
    finally:
        await _end([task for _, task in running])


def _next(first: deque[T], then: Iterator[T]) -> T | None:
    return first.popleft() if first else next(then, None)


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
