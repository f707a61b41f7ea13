"""A Scrapy extension that measures a crawl from inside its process."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from scrapy import signals

# Seconds between two beats of a task on the event loop. The less a loop is blocked, the more beats
# it has, so beats must be cheap. Otherwise a loop that is never blocked would look expensive.
BEAT = 0.002
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_STATUS = Path("/proc/self/status")


class Meter:
    """Measures pages and seconds from the first response to the last.

    CPU time is counted from the first response to the end of the crawl, with all that a queue still
    has to write. ``first_page`` is the time from the start of the process to the first response,
    ``opening`` the time from when Scrapy has loaded settings and add-ons, and ``closing`` the time
    from the last response to the end of the crawl. With BENCHMARK_STALLS it measures stalls, too,
    which takes CPU time all the while, even when the crawl only waits.
    """

    def __init__(self, crawler: Any) -> None:
        self._started_at = crawler.settings.getfloat("BENCHMARK_STARTED_AT")
        self._loaded_at = time.time()
        self._pages = 0
        self._first = self._last = self._stopped = 0.0
        self._first_cpu = self._stopped_cpu = 0.0
        self._stall = Stall() if crawler.settings.getbool("BENCHMARK_STALLS") else None
        self._beats: asyncio.Task[None] | None = None
        self._is_counted = crawler.settings.getbool("BENCHMARK_INSTRUCTIONS")
        for name in ("response_received", "engine_stopped"):
            crawler.signals.connect(getattr(self, name), getattr(signals, name))

    @classmethod
    def from_crawler(cls, crawler: Any) -> Meter:
        crawler.meter = cls(crawler)
        return crawler.meter  # type: ignore[no-any-return]

    def response_received(self) -> None:
        self._last = time.time()
        if not self._pages:
            self._first, self._first_cpu = self._last, time.process_time()
            self._count("on")
        elif self._stall is not None and self._beats is None:
            # Not earlier, because the first response has one-off costs.
            self._beats = asyncio.create_task(self._stall.watch())
        self._pages += 1

    def engine_stopped(self) -> None:
        self._stopped, self._stopped_cpu = time.time(), time.process_time()
        self._count("off")
        if self._beats is not None:
            self._beats.cancel()

    def _count(self, switch: str) -> None:
        """Let valgrind count the instructions of this process, or no longer."""
        if self._is_counted:
            command = ["callgrind_control", "--instr=" + switch, str(os.getpid())]
            subprocess.run(command, check=True, capture_output=True)

    def report(self) -> dict[str, Any]:
        """Times in seconds, memory in bytes."""
        return {
            "pages": self._pages,
            "seconds": self._last - self._first,
            "cpu": self._stopped_cpu - self._first_cpu,
            "first_at": self._first,
            "last_at": self._last,
            "first_page": self._first - self._started_at,
            "opening": self._first - self._loaded_at,
            "closing": self._stopped - self._last,
            "memory": peak_memory(),
            **({} if self._stall is None else self._stall.report()),
        }


class Stall:
    """The longest time between two beats, in seconds, by several clocks.

    ``wall``        includes everything
    ``own``         leaves out what a scheduler is not responsible for: the time in which the thread
                    was ready but other programs used the cores, as Linux counts it; and Python's
                    garbage collection, which comes at random and takes longer the more objects the
                    process has, most of which are Scrapy's. Blocking calls are included
    ``collection``  only garbage collection
    ``cpu``         only the CPU time of the thread
    """

    def __init__(self) -> None:
        self.wall = self.own = self.cpu = self.collection = 0.0
        self._collected = 0.0
        self._collecting_since = 0.0
        self._schedstat = os.open(_SCHEDSTAT, os.O_RDONLY) if _SCHEDSTAT.exists() else None

    def report(self) -> dict[str, float]:
        return {
            "stall": self.own,
            "stall_wall": self.wall,
            "stall_cpu": self.cpu,
            "collection": self.collection,
        }

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
        # CPU time, because time spent waiting for a core is subtracted already.
        if phase == "start":
            self._collecting_since = time.thread_time()
        else:
            self._collected += time.thread_time() - self._collecting_since

    def _time_queued(self) -> float:
        """Seconds in which this thread was ready but had no core to run on; 0 if unknown."""
        if self._schedstat is None:
            return 0.0
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9


def peak_memory() -> int:
    """Bytes of memory. Not ``ru_maxrss``, which starts at the value of the parent process."""
    try:
        (line,) = (li for li in _STATUS.read_text().splitlines() if li.startswith("VmHWM"))
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(line.split()[1]) * 1024
