"""Measures a crawl from within its process: a Scrapy extension."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from pathlib import Path
from typing import Any

from scrapy import signals

# Seconds between two beats of the event loop's heart. A loop that is seldom blocked has more of
# them, so they must cost next to nothing, or it would look the more expensive one.
BEAT = 0.002
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_STATUS = Path("/proc/self/status")


class Meter:
    """From the first response to the last: pages, seconds, CPU, stalls of the event loop.

    So neither the start nor the wait for a queue that is surely empty is counted as crawling. They
    are ``first_page``, since the process was started; ``opening``, since Scrapy had loaded settings
    and add-ons; and ``closing``, until Scrapy had ended the crawl.
    """

    def __init__(self, crawler: Any) -> None:
        self._started_at = crawler.settings.getfloat("BENCHMARK_STARTED_AT")
        self._loaded_at = time.time()
        self._pages = 0
        self._first = self._last = self._stopped = 0.0
        self._first_cpu = self._last_cpu = 0.0
        self._stall = Stall()
        self._beats: asyncio.Task[None] | None = None
        for name in ("response_received", "engine_stopped"):
            crawler.signals.connect(getattr(self, name), getattr(signals, name))

    @classmethod
    def from_crawler(cls, crawler: Any) -> Meter:
        crawler.meter = cls(crawler)
        return crawler.meter  # type: ignore[no-any-return]

    def response_received(self) -> None:
        self._last, self._last_cpu = time.time(), time.process_time()
        if not self._pages:
            self._first, self._first_cpu = self._last, self._last_cpu
        elif self._beats is None:  # the first response pays for what is made but once
            self._beats = asyncio.create_task(self._stall.watch())
        self._pages += 1

    def engine_stopped(self) -> None:
        self._stopped = time.time()
        if self._beats is not None:
            self._beats.cancel()

    def report(self) -> dict[str, Any]:
        """Times in seconds, memory in bytes."""
        return {
            "pages": self._pages,
            "seconds": self._last - self._first,
            "cpu": self._last_cpu - self._first_cpu,
            "first_page": self._first - self._started_at,
            "opening": self._first - self._loaded_at,
            "closing": self._stopped - self._last,
            "stall": self._stall.own,
            "stall_wall": self._stall.wall,
            "stall_cpu": self._stall.cpu,
            "collection": self._stall.collection,
            "memory": peak_memory(),
        }


class Stall:
    """The longest time between two beats, in seconds, by several clocks.

    ``wall`` holds whatever kept the loop from its next beat. ``own`` leaves out what is no
    scheduler's doing: the time for which the thread was ready and waited for a core, as Linux
    counts it, because other programs kept it busy; and Python's garbage collection, which comes
    now or then and takes its time by all that the process has in memory, Scrapy for the most part.
    Blocking calls are in it. ``collection`` is the longest time that garbage collection took
    between two beats, and ``cpu`` is the longest by the thread's CPU time alone.
    """

    def __init__(self) -> None:
        self.wall = self.own = self.cpu = self.collection = 0.0
        self._collected = 0.0
        self._collecting_since = 0.0
        self._schedstat = os.open(_SCHEDSTAT, os.O_RDONLY) if _SCHEDSTAT.exists() else None

    async def watch(self) -> None:
        gc.callbacks.append(self._note_collection)
        try:
            while True:
                await self._beat()
        finally:
            gc.callbacks.remove(self._note_collection)
            if self._schedstat is not None:
                os.close(self._schedstat)

    async def _beat(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        queued, collected = self._time_queued(), self._collected
        await asyncio.sleep(BEAT)
        wall = time.perf_counter() - wall
        collected = self._collected - collected
        self.wall = max(self.wall, wall)
        self.own = max(self.own, wall - (self._time_queued() - queued) - collected)
        self.cpu = max(self.cpu, time.thread_time() - cpu)
        self.collection = max(self.collection, collected)

    def _note_collection(self, phase: str, _: object) -> None:
        # By CPU time, so that nothing is subtracted twice.
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting_since

    def _time_queued(self) -> float:
        """Seconds for which this thread was ready and had no core to run on; 0 if unknown."""
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9


def peak_memory() -> int:
    """Of this program alone: ``ru_maxrss`` starts with what the program that started it had."""
    try:
        (line,) = (li for li in _STATUS.read_text().splitlines() if li.startswith("VmHWM"))
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(line.split()[1]) * 1024
