"""How far a crawl is: a line in the log at each LOGSTATS_INTERVAL, and a bar on a terminal.

The queue is asked for its counts once in each interval, beside the crawl. If it does not answer,
there is no line. In between, the bar counts what this process adds and handles.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from scrapy_apify_rq.backends.base import Backend, Info
from scrapy_apify_rq.crawl.report import Report, Sample
from scrapy_apify_rq.errors import BackendError

if TYPE_CHECKING:
    from rich.console import Console
    from scrapy.crawler import Crawler

# Seconds between two drawings of the bar.
_FRAME: Final = 0.25


class Progress:
    """Reports from ``start`` to ``stop``, both called in the running loop.

    ``bar`` asks for a bar; there is one only where the standard error is a terminal.
    """

    def __init__(self, crawler: Crawler, backend: Backend, report: Report, *, bar: bool) -> None:
        self._backend = backend
        self._report = report
        self._interval = crawler.settings.getfloat("LOGSTATS_INTERVAL")
        self._has_bar = bar and sys.stderr.isatty()
        self._sample: Sample | None = None
        self._line = _Line(report)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        work: list[Coroutine[Any, Any, None]] = []
        if self._interval > 0:
            work.append(self._log_regularly())
        if self._has_bar:
            work.append(self._draw())
        self._tasks = [asyncio.create_task(one) for one in work]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _sample_now(self, info: Info) -> Sample:
        count = self._report.count
        return Sample(info, count("handled"), count("enqueued"), time.monotonic())

    async def _ask(self) -> Sample:
        self._sample = self._sample_now(await self._backend.info())
        return self._sample

    async def _log_regularly(self) -> None:
        line = _Line(self._report)
        while True:
            await asyncio.sleep(self._interval)
            with suppress(BackendError):  # the frontier meets it, too, and reports it
                self._report.log(logging.INFO, line.text(await self._ask()))

    async def describe(self) -> str:
        """How far the crawl is since the last call of this. Raises BackendError."""
        return self._line.text(await self._ask())

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
        handled = sample.queue.handled + self._report.count("handled") - sample.handled
        added = self._report.count("enqueued") - sample.enqueued
        return handled, max(handled, sample.queue.handled + sample.queue.pending + added)


class _Line:
    """The progress line: what has changed since the last one, or since this was made."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._since = Sample(Info("", None, 0, 0, 0), 0, 0, time.monotonic())
        self._before: Sample | None = None

    def text(self, now: Sample) -> str:
        before, self._before = self._before, now
        return self._report.progress(before, now, self._since)


class Bar:
    """The bar at the bottom of the terminal, from now until ``close``. The log goes on above it."""

    def __init__(self) -> None:
        # Imported late, because most crawls have no bar.
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
