"""The two ways to use a queue: ``single`` takes no leases, ``shared`` takes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from scrapy_apify_rq.backends.base import Claim
from scrapy_apify_rq.entries.models import Entry


class Access(Protocol):
    """Claims entries. The backend reports to it every write that the API confirmed."""

    async def claim(
        self,
        limit: int,
        known: Collection[str],
        left: Collection[str],
        size: int,
        share: int | None,
    ) -> Claim:
        """As ``Backend.claim``. ``left`` are the ids of entries that are left to others."""

    def leave(self, id: str) -> None:
        """Note that a claimed entry is left to others."""

    async def prolong(self, ids: Collection[str]) -> dict[str, float]:
        """As ``Backend.prolong``."""

    async def unlock(self, ids: Collection[str] | None = None) -> None:
        """As ``Backend.unlock``."""

    def wrote(self, entry: Entry, text: bytes) -> None:
        """Note that the entry is pending, stored with this JSON."""

    def acked(self, id: str) -> None:
        """Note that the entry is handled."""

    def deleted(self, ids: Iterable[str]) -> None:
        """Note that these entries do not exist any more."""
