"""Waiting for what comes at once unless the code is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest_twisted
from scrapy.utils.defer import deferred_from_coro

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds until a test gives up: many, because others may need the processor, too."""


async def wait_until(
    condition: Callable[[], Any], what: str = "the condition", patience: float = PATIENCE
) -> None:
    """Wait until the condition holds, which is looked at 200 times a second."""
    try:
        async with asyncio.timeout(patience):
            while not condition():  # noqa: ASYNC110 (what Scrapy does sets no event)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true within {patience} s") from None


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """What ``asyncio.run()`` is elsewhere: for code that is not a coroutine itself.

    ``asyncio.run()`` fails in these tests, because the reactor's event loop runs in their thread.
    """
    result: T = pytest_twisted.blockon(deferred_from_coro(work))
    return result
