"""How many entries a worker of a shared queue claims."""

from __future__ import annotations

import pytest

from scrapy_apify_rq.frontier.appetite import Appetite


def most(appetite: Appetite, busy_hosts: int) -> int:
    """How many may wait before it claims no more."""
    return next(n for n in range(1000) if not appetite.is_low(n, busy_hosts=busy_hosts))


def test_it_grows_once_for_each_rich_claim_that_was_used_up() -> None:
    appetite = Appetite(20, chooses_hosts=False)
    claims = []
    for is_rich in (True, True, False, True, True):
        claims.append(appetite.claim(0))
        appetite.feed(is_rich=is_rich)
        appetite.starve()
    assert claims == [4, 8, 16, 16, 20]


@pytest.mark.parametrize(
    ("chooses_hosts", "busy_hosts", "waiting"),
    [
        *[(False, 0, 3), (False, 1, 3), (False, 3, 48), (False, 9, 100)],
        *[(True, 1, 3), (True, 3, 6), (True, 99, 100)],
    ],
)
def test_the_more_busy_hosts_the_more_may_wait(
    chooses_hosts: bool, busy_hosts: int, waiting: int
) -> None:
    appetite = Appetite(100, chooses_hosts=chooses_hosts)
    assert most(appetite, busy_hosts) == waiting
    assert appetite.claim(3, busy_hosts=busy_hosts) == max(waiting, 4) - 3
