"""How far a crawl is: a line in the log at each LOGSTATS_INTERVAL.

The queue is asked for its counts once in each interval, beside the crawl. If it does not answer,
there is no line. There is no bar: Scrapy's log and what spiders print go to the same terminal, and
cannot share it with a bar unless their streams are replaced. ``scrapy rq status --watch`` has one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from scrapy_apify_rq.backends.base import Backend, Info
from scrapy_apify_rq.crawl.report import Report, Sample
from scrapy_apify_rq.errors import BackendError

if TYPE_CHECKING:
    from scrapy.crawler import Crawler


class Progress:
    """Reports from ``start`` to ``stop``, both called in the running loop."""

    def __init__(self, crawler: Crawler, backend: Backend, report: Report) -> None:
        self._backend = backend
        self._report = report
        self._interval = crawler.settings.getfloat("LOGSTATS_INTERVAL")
        self._line = _Line(report)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._interval > 0:
            self._task = asyncio.create_task(self._log_regularly())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _sample(self) -> Sample:
        info = await self._backend.info()
        return Sample(info, self._report.count("handled"), time.monotonic())

    async def _log_regularly(self) -> None:
        line = _Line(self._report)
        while True:
            await asyncio.sleep(self._interval)
            with suppress(BackendError):  # the frontier meets it, too, and reports it
                self._report.log(logging.INFO, line.text(await self._sample()))

    async def describe(self) -> str:
        """How far the crawl is since the last call of this. Raises BackendError."""
        return self._line.text(await self._sample())


class _Line:
    """The progress line: what has changed since the last one, or since this was made."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._since = Sample(Info("", None, 0, 0, 0), 0, time.monotonic())
        self._before: Sample | None = None

    def text(self, now: Sample) -> str:
        before, self._before = self._before, now
        return self._report.progress(before, now, self._since)
