"""What happens to the queue that people should know. The crawl writes the texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from scrapy_apify_rq.entries.models import Entry


@dataclass(frozen=True, slots=True)
class RateReached:
    rate: str


@dataclass(frozen=True, slots=True)
class LeaseLost:
    entry: Entry
    while_: Literal["waiting", "in flight", "retried"]


@dataclass(frozen=True, slots=True)
class LeasesKept:
    lock_secs: int
    error: str


@dataclass(frozen=True, slots=True)
class OthersSeen:
    location: str


@dataclass(frozen=True, slots=True)
class Bug:
    error: Exception


Notice: TypeAlias = RateReached | LeaseLost | LeasesKept | OthersSeen | Bug
