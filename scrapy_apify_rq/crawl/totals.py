"""The totals of a crawl over all its runs and workers."""

from __future__ import annotations

from typing import NamedTuple

from scrapy_apify_rq.entries.records import from_text, to_text
from scrapy_apify_rq.errors import CodecError


class Totals(NamedTuple):
    runs: int = 0
    pages: int = 0
    failed: int = 0
    """How many of the pages."""
    retries: int = 0
    items: int = 0
    seconds: float = 0.0

    def plus(self, other: Totals) -> Totals:
        return Totals._make(mine + theirs for mine, theirs in zip(self, other, strict=True))

    def to_text(self) -> bytes:
        return to_text(self._asdict())

    @classmethod
    def from_text(cls, text: bytes) -> Totals:
        """Raises CodecError for a text that ``to_text`` would not have written."""
        values = from_text(text)
        if type(values) is not dict or values.keys() != set(cls._fields):
            raise CodecError("the record does not hold totals")
        if not all(type(value) in (int, float) for value in values.values()):
            raise CodecError("the totals are not numbers")
        return cls(**values)  # type: ignore[arg-type]
