"""How long a retry waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from scrapy_apify_rq.crawl.back_off import LONGEST, LONGEST_ASKED_FOR, BackOff


def test_it_doubles_up_to_a_minute() -> None:
    back_off = BackOff(1.0, lambda: 0.0)
    waits = [back_off.seconds(retries) for retries in (0, 1, 2, 5, 6, 10**9)]
    assert waits == [1.0, 2.0, 4.0, 32.0, LONGEST, LONGEST]


def test_chance_makes_it_longer_by_up_to_a_half() -> None:
    assert [BackOff(2.0, lambda: share).seconds(1) for share in (0.0, 0.5, 1.0)] == [4, 5, 6]  # noqa: B023 (called at once)
    assert len({BackOff(1.0).seconds(0) for _ in range(9)}) > 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"5", 5.0),
        (b" 0 ", 1.0),
        (b"999999999999", LONGEST_ASKED_FOR),
        (b"-5", 1.0),
        (b"1e3", 1.0),
        (b"soon", 1.0),
        (b"Fri, 31 Dec 1999 23:59:59 GMT", 1.0),
        (b"Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_ASKED_FOR),
        ("\u0661".encode(), 1.0),
        (b"\xff", 1.0),
        (b"", 1.0),
        (None, 1.0),
    ],
)
def test_what_the_site_asks_for(header: bytes | None, seconds: float) -> None:
    assert BackOff(1.0, lambda: 0.0).seconds(0, header) == seconds


@pytest.mark.parametrize("usegmt", [True, False])
def test_a_date(usegmt: bool) -> None:
    date = datetime.now(UTC) + timedelta(seconds=100)
    header = format_datetime(date, usegmt).encode()
    assert 98 < BackOff(1.0).seconds(0, header) <= 100


def test_none_at_all() -> None:
    assert BackOff(0.0).seconds(3, b"100") == 0.0
