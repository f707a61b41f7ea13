"""The frontier's asyncio tasks: none ends silently, and none outlives ``end``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

# Seconds for tasks to end by themselves, and after each cancellation.
_GRACE: Final = 0.5
# A task may swallow a cancellation, as wait_for() of Python 3.11 does, but not many.
_CANCELLATIONS: Final = 10


class Tasks:
    """``failed`` is called with whatever exception ends one of them."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []

    def __bool__(self) -> bool:
        """They have been started and not ended."""
        return bool(self._tasks)

    def start(self, *work: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(self.guard(each)) for each in work]

    async def guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed(RuntimeError("A call of the backend was cancelled from inside"))
        except Exception as error:
            self._failed(error)

    async def end(self) -> None:
        """Wait until all have ended; cancel those that do not end by themselves."""
        tasks, self._tasks = self._tasks, []
        left = set(tasks)
        for attempt in range(_CANCELLATIONS + 1):
            if not left:
                return
            if attempt:
                for task in left:
                    task.cancel()
            _, left = await asyncio.wait(left, timeout=_GRACE)
        self._failed(RuntimeError(f"{len(left)} tasks do not end"))
