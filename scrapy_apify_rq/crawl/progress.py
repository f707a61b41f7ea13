"""How far a crawl is: a line in the log at each LOGSTATS_INTERVAL, and a bar on a terminal.

The queue is asked for its counts once in an interval, beside the crawl; where it does not answer,
there is no line. In between, the bar goes by what this process adds and handles.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scrapy_apify_rq.backends.base import Backend, Info
from scrapy_apify_rq.errors import BackendError

if TYPE_CHECKING:
    from rich.console import Console
    from scrapy.statscollectors import StatsCollector

# Seconds between two pictures of the bar.
_FRAME: Final = 0.25


class Sample(NamedTuple):
    """The queue's counts, which are those of all its consumers, and this run's at that time."""

    queue: Info
    handled: int
    enqueued: int
    time: float


class Progress:
    """Reports from ``start`` to ``stop``, both called in the running loop.

    ``interval`` is in seconds, 0 for no lines. ``bar`` asks for one where the standard error is a
    terminal. ``log`` takes each line.
    """

    def __init__(
        self,
        backend: Backend,
        stats: StatsCollector,
        *,
        interval: float,
        bar: bool,
        log: Callable[[int, str], None],
    ) -> None:
        self._backend = backend
        self._stats = stats
        self._interval = interval
        self._bar = bar and sys.stderr.isatty()
        self._log = log
        self._sample: Sample | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        work: list[Coroutine[Any, Any, None]] = []
        if self._interval > 0:
            work.append(self._report())
        if self._bar:
            work.append(self._draw())
        self._tasks = [asyncio.create_task(one) for one in work]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _count(self, stat: str) -> int:
        count: int = self._stats.get_value(f"apify_rq/{stat}", 0)
        return count

    async def _ask(self) -> Sample:
        info = await self._backend.info()
        self._sample = Sample(
            info, self._count("handled"), self._count("enqueued"), time.monotonic()
        )
        return self._sample

    # Lines.

    async def _report(self) -> None:
        before = Sample(Info("", None, 0, 0, 0), self._count("handled"), 0, time.monotonic())
        is_first = True
        while True:
            await asyncio.sleep(self._interval)
            with suppress(BackendError):  # the frontier meets it, too, and tells
                now = await self._ask()
                self._log(logging.INFO, self._line(before, now, is_first))
                before, is_first = now, False

    def _line(self, before: Sample, now: Sample, is_first: bool) -> str:
        seconds = now.time - before.time
        own = now.handled - before.handled
        # Other consumers shorten the time that is left. Before the first answer nothing is known
        # of them, and the API's counts may lag behind what we know of ourselves.
        all_of_them = own if is_first else max(own, now.queue.handled - before.queue.handled)
        queue = now.queue
        return (
            f"Request queue: {queue.handled} handled, {queue.pending} pending; this run:"
            f" {self._count('failed')} failed, {60 * own / seconds:.0f} pages/min;"
            f" {_time_left(queue.pending, all_of_them / seconds)}"
        )

    # The bar.

    async def _draw(self) -> None:
        while self._sample is None:
            with suppress(BackendError):
                await self._ask()
            await asyncio.sleep(_FRAME)
        bar = Bar()
        try:
            while True:
                bar.show(*self._estimate(self._sample))
                await asyncio.sleep(_FRAME)
        finally:
            bar.show(*self._estimate(self._sample))
            bar.close()

    def _estimate(self, sample: Sample) -> tuple[int, int]:
        """How many entries are handled now, and how many there are."""
        handled = sample.queue.handled + self._count("handled") - sample.handled
        added = self._count("enqueued") - sample.enqueued
        return handled, max(handled, sample.queue.handled + sample.queue.pending + added)


class Bar:
    """The bar at the bottom of the terminal, from now until ``close``; the log goes on above it."""

    def __init__(self) -> None:
        # Imported late: only who wants a bar pays for it.
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TaskProgressColumn(show_speed=True),
            progress.TimeRemainingColumn(),
            console=console,
            auto_refresh=False,  # it would need a thread
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=None)
        handlers = [one for one in logging.root.handlers if isinstance(one, logging.StreamHandler)]
        self._logs = [one for one in handlers if one.stream is sys.stderr]
        self._stderr = sys.stderr
        self._bar.start()
        for handler in self._logs:
            handler.setStream(_Above(console))
        # A second Ctrl-C ends the process at once, and must not leave the cursor hidden.
        atexit.register(self._bar.stop)

    def show(self, completed: int, total: int) -> None:
        self._bar.update(self._task, completed=completed, total=total)
        self._bar.refresh()

    def close(self) -> None:
        for handler in self._logs:
            handler.setStream(self._stderr)
        self._bar.stop()
        atexit.unregister(self._bar.stop)


class _Above:
    """Where a log handler writes while there is a bar.

    Not rich's own stream for this, which breaks lines at the width of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True)

    def flush(self) -> None:
        self._console.file.flush()


def _time_left(pending: int, per_second: float) -> str:
    if per_second <= 0:
        return "time left unknown" if pending else "none left"
    return f"about {timedelta(seconds=round(pending / per_second))} left at this pace"
