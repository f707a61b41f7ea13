"""How long a retry waits before it is handed out.

It goes to the front of the queue, so that without a wait all tries of a page would be over within a
second, and an outage of two seconds would cost every page that was in flight.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from scrapy_apify_rq import retry_after as header

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
        asked_for = header.seconds((retry_after or b"").decode("latin-1"), time.time())
        return max(wait, min(asked_for, LONGEST_ASKED_FOR))
