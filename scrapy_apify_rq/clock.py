"""The time, for leases: it does not jump when somebody sets the clock of the machine."""

from __future__ import annotations

import time
from typing import Final

# It goes on while the machine is suspended, as a lease does. On Linux, time.monotonic() does not,
# nor on macOS, where CLOCK_MONOTONIC does. Windows has neither, and needs neither.
# https://docs.python.org/3/library/time.html#time.CLOCK_BOOTTIME
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def _elapsed() -> float:
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


_START: Final = time.time() - _elapsed()


def now() -> float:
    """Unix time by the clock as it was when this process started."""
    return _START + _elapsed()
