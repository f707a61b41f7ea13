"""Which requests the window hands out in turn: those of one download slot wait in one line."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from typing import Protocol

from scrapy_apify_rq.frontier.visit import Visit


class Slots(Protocol):
    """What the window needs to know of the downloader."""

    are_hosts: bool
    """Hosts take turns, so that entries of many hosts should wait."""

    def key(self, visit: Visit) -> str:
        """The name of the download slot that the visit will get."""

    def active(self, key: str) -> int:
        """How many requests this slot has."""

    def is_full(self, key: str) -> bool:
        """What this slot gets now has to wait in it."""

    def is_busy(self, key: str) -> bool:
        """This slot has requests, or has to wait before its next one."""


class OneLine:
    """All requests wait in one line, whatever their slots."""

    are_hosts = False

    def key(self, visit: Visit) -> str:
        return ""

    def active(self, key: str) -> int:
        return 0

    def is_full(self, key: str) -> bool:
        return False

    def is_busy(self, key: str) -> bool:
        return False


class Turns:
    """Whose turn it is: a slot with the fewest active requests, and among equals the one that
    follows the last by name, as in Scrapy's ``DownloaderAwarePriorityQueue``.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._keys: list[str] = []
        self._last = ""

    def join(self, key: str) -> None:
        insort(self._keys, key)

    def leave(self, key: str) -> None:
        del self._keys[bisect_right(self._keys, key) - 1]

    def next(self, is_held: Callable[[str], bool] | None = None) -> str | None:
        """None if nobody waits who is not held back."""
        keys = self._keys
        best, fewest = None, 0
        after_last = bisect_right(keys, self._last)
        for n in range(len(keys)):
            key = keys[(after_last + n) % len(keys)]
            if is_held is not None and is_held(key):
                continue
            active = self._slots.active(key)
            if best is None or active < fewest:
                best, fewest = key, active
            if not active:
                break  # so no more slots are looked at than have requests, and one
        if best is not None:
            self._last = best
        return best
