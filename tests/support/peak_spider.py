"""A spider that measures the memory of its process."""

from __future__ import annotations

from pathlib import Path

from tests.support.spiders import Links


class Peak(Links):
    """Its stat ``peak`` is in bytes."""

    def closed(self, reason: str) -> None:
        # Not ru_maxrss, in which a process starts with what its parent had.
        lines = Path("/proc/self/status").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        assert self.crawler.stats is not None
        self.crawler.stats.set_value("peak", int(kilobytes) * 1024)
