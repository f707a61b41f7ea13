"""The time, for leases: it does not jump when somebody sets the clock of the machine."""

from __future__ import annotations

import time
from typing import Final

_START: Final = time.time() - time.monotonic()


def now() -> float:
    """Unix time by the clock as it was when this process started."""
    return _START + time.monotonic()
