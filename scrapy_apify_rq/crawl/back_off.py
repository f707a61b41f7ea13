"""How long a retry waits before it is handed out.

It goes to the front of the queue, so that without a wait all tries of a page would be over within a
second, and an outage of two seconds would cost every page that was in flight.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# Seconds: no wait grows beyond the first; what a site asks for is granted up to the second.
LONGEST: Final = 60.0
LONGEST_ASKED_FOR: Final = 300.0
# Requests that failed together are not repeated together. Upwards only: the delay is a promise.
_JITTER: Final = 0.5


class BackOff:
    """``delay`` is for the first retry and doubles with each one; 0 means that none waits."""

    def __init__(self, delay: float, chance: Callable[[], float] = random.random) -> None:
        self._delay = delay
        self._chance = chance

    def seconds(self, retries: int, retry_after: bytes | None = None) -> float:
        """How long to wait after so many retries before this one.

        ``retry_after`` is the header of the response, if it had one.
        """
        if not self._delay:
            return 0.0
        jitter = 1 + _JITTER * self._chance()
        wait = min(self._delay * 2.0 ** min(retries, 60) * jitter, LONGEST)
        return max(wait, min(_read(retry_after), LONGEST_ASKED_FOR))


def _read(retry_after: bytes | None) -> float:
    """The seconds that a site asks for: as a number, or until a date. 0 for anything else.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    text = (retry_after or b"").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return (date - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
