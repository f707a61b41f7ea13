"""How these tests are run: each is a coroutine on the reactor, in a pytest session of their own.

    python -m pytest tests/crawls -p twisted --reactor=asyncio

The tests of the folders beside this one call ``asyncio.run()``, which fails in a process whose
reactor runs, and it runs from the first of these tests to the end of the process. So the other
session leaves these tests out, and pytest-twisted is off there (pyproject.toml).
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import async_yield_fixture
from scrapy.utils.defer import deferred_from_coro

from tests.site import Site
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue, serving

_FOLDER = Path(__file__).parent
_OPTIONS = "-p twisted --reactor=asyncio"


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    if config.getoption("reactor", None) == "asyncio":
        return None
    named = [Path(arg.partition("::")[0]).absolute() for arg in config.args]
    if any(path.is_relative_to(_FOLDER) for path in named):
        raise pytest.UsageError(f"the tests in {_FOLDER} need the options {_OPTIONS}")
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Let a coroutine await what asyncio offers: pytest-twisted waits for Deferreds only."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return

    @functools.wraps(test)
    def run(**fixtures: Any) -> Any:
        return deferred_from_coro(test(**fixtures))

    pyfuncitem.obj = run


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what a developer's machine or a run on the platform would set."""
    for name in os.environ:
        if name.startswith(("APIFY_", "ACTOR_", "CRAWLEE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def site() -> Iterator[Site]:
    """A site without pages: tests say which with ``serve``."""
    with Site({}) as site:
        yield site


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """The embedded queue, empty."""
    return Queue(tmp_path / "storage")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedQueue]:
    """An empty queue behind the API."""
    with serving(tmp_path / "server") as queue:
        yield queue


@async_yield_fixture
async def crawls(queue: Queue) -> Any:
    crawls = Crawls(queue)
    yield crawls
    await deferred_from_coro(crawls.close())
