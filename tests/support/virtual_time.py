"""Time that passes only when nothing else can happen, for tests of what waits."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import scrapy_apify_rq.clock
from scrapy_apify_rq import frontier
from scrapy_apify_rq.backends import apify
from scrapy_apify_rq.frontier.leases import Leases

# Seconds that a turn of the loop takes, and a look at the clock: code which asks again and again at
# once gets on.
TURN = 0.0001
LOOK = 0.000001
# More turns than this in one run, and the code under test is in a busy loop.
MOST_TURNS = 100_000


class Clock:
    """Stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def time(self) -> float:
        self.now += LOOK
        return self.now

    monotonic = time


class _Selector(selectors.SelectSelector):
    """Lets the time pass that the loop would wait."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.turns = 0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for ever"
        self.turns += 1
        assert self.turns < MOST_TURNS, "busy loop"
        self._clock.now += max(timeout, TURN)
        return []  # no sockets, no threads, no signals


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jumps = _Selector(clock)
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._clock.now

    def run_forever(self) -> None:
        self._jumps.turns = 0
        super().run_forever()


def run_in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    """Run it with the time of the event loop, the frontier and the API's client made virtual."""
    clock = Clock()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
            runner.run(work)

    with ruling(clock):
        in_thread(run)


def in_thread(work: Callable[[], None]) -> None:
    """Run it where an event loop may run: the reactor's runs in the tests' own thread."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


@contextmanager
def ruling(clock: Clock) -> Iterator[None]:
    """Give this time to the frontier and to the API's client."""
    with pytest.MonkeyPatch.context() as patch:
        for package in (frontier, apify):
            for found in pkgutil.iter_modules(package.__path__):
                module = importlib.import_module(f"{package.__name__}.{found.name}")
                if hasattr(module, "time"):
                    patch.setattr(module, "time", clock)
        patch.setattr(scrapy_apify_rq.clock, "now", clock.time)
        patch.setitem(Leases.__init__.__kwdefaults__, "now", clock.time)
        yield
