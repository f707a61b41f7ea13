"""Spiders that measure the memory of their process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy.http import Response

from tests.support.spiders import Links


class Peak(Links):
    """Its stat ``peak`` is in bytes."""

    def closed(self, reason: str) -> None:
        # Not ru_maxrss, in which a process starts with what its parent had.
        lines = Path("/proc/self/status").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        assert self.crawler.stats is not None
        self.crawler.stats.set_value("peak", int(kilobytes) * 1024)


class PeakOfYields(Peak):
    """Yields as many requests as its argument ``count`` says."""

    name = "yields"

    def parse(self, response: Response) -> Iterator[Any]:
        for n in range(int(self.count)):
            yield scrapy.Request(f"{self.site}/{n}", callback=self.note)
