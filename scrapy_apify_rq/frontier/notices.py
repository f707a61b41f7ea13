"""What the frontier reports for people. ``crawl.report`` writes the texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scrapy_apify_rq.entries.models import Entry


@dataclass(frozen=True, slots=True)
class RateReached:
    """Requests are held back because the queue takes no more updates a second. Sent once."""

    rate: str
    """For people, for example "400 updates a second"."""


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Another worker may have the entry by now."""

    entry: Entry
    while_: Literal["waiting", "in flight", "retried"]


@dataclass(frozen=True, slots=True)
class LeasesKept:
    """The leases could not be given back at close. They end by themselves."""

    lock_secs: int
    error: str
    """Empty if there was no answer in time."""


@dataclass(frozen=True, slots=True)
class OthersSeen:
    """Another program changes the queue of a crawl in single access. Sent once."""

    location: str


@dataclass(frozen=True, slots=True)
class Bug:
    """A task of the frontier ended with an unexpected exception."""

    error: Exception


Notice = RateReached | LeaseLost | LeasesKept | OthersSeen | Bug
