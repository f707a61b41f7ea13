"""Time that passes only when nothing else can happen, for tests of what waits."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import selectors
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

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
        return super().select(0)


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


@contextmanager
def ruling(clock: Clock, package: ModuleType, *defaults: Callable[..., Any]) -> Iterator[None]:
    """Give this time to the modules of a package that import ``time``.

    ``defaults``: functions that have ``time.time`` as the default of ``now``.
    """
    with ExitStack() as patches:
        for module in _modules(package):
            if hasattr(module, "time"):
                patches.enter_context(mock.patch.object(module, "time", clock))
        for function in defaults:
            patches.enter_context(mock.patch.dict(function.__kwdefaults__, now=clock.time))
        yield


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{module.name}")
