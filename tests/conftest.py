"""How tests run, and the fixtures of several folders.

pytest-twisted runs one asyncio reactor from the first test to the last of a process, and a test
that is a coroutine runs on it. CONTRIBUTING.md says how to run and debug one.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import async_yield_fixture
from scrapy.utils.defer import deferred_from_coro

from scrapy_apify_rq.backends.apify import http
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.frontier import idle
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue, serving
from tests.support.virtual_time import run_in_virtual_time
from tests.support.waiting import run_async
from tests.support.website import Site

# Some machines forbid it, and then each of our many processes would compile the package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What a script's shell starts in the background ignores Ctrl-C, and so would our processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the first crawl of a process does it: what the tests' own clients log is not in our log.
for _name in ("httpcore", "httpx"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# With Python's threshold of 700 objects, the collector takes 7 % of the CPU time; with this, 4 %.
gc.set_threshold(10_000)

# SQLite waits for the disk: a queue that is made, filled and closed takes 90 ms on one, and 3 ms in
# memory. The folders of tests that pass are removed at once, so a few hundred MB are enough.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with processes, for which one worker waits while others compute: at the end, it would
    wait alone.
    """
    items.sort(key=lambda item: "processes" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays: modules, and the tests that were collected."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Run a coroutine on the reactor; pytest-twisted by itself waits for Deferreds only.

    Other tests run beside the reactor, which stands still meanwhile; they may use ``run_async``.
    """
    names = pyfuncitem._fixtureinfo.argnames
    result = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    if inspect.iscoroutine(result):
        is_virtual = pyfuncitem.get_closest_marker("virtual_time") is not None
        run = run_in_virtual_time if is_virtual else run_async
        run(result)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what was captured of tests that fail only, and escape lone surrogates in it:
    pytest-xdist cannot send them.
    """
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode())
        for name, text in report.sections
        if not report.passed
    ]
    return report


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


@pytest.fixture(params=["sqlite", "apify"])
def any_queue(request: pytest.FixtureRequest) -> Queue:
    """The test runs twice: with the embedded queue, and over the API."""
    queue: Queue = request.getfixturevalue("queue" if request.param == "sqlite" else "served")
    return queue


@pytest.fixture
def short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crawls over the API wait less: for writes of others at their end, where nobody has anything
    for them, and before a call is made again.
    """
    monkeypatch.setattr(ApifyBackend, "consistency_delay", 0.1)
    monkeypatch.setattr(idle, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.02)


@async_yield_fixture
async def crawls(queue: Queue, short_delay: None) -> Any:
    crawls = Crawls(queue)
    yield crawls
    await deferred_from_coro(crawls.close())
