"""The time of leases."""

from __future__ import annotations

import time

import pytest

from scrapy_apify_rq import clock


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has this clock")
def test_it_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    gettime, before = time.clock_gettime, clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody sets the clock
    assert before <= clock.now() < before + 60
    slept = {time.CLOCK_BOOTTIME: 3600.0}
    monkeypatch.setattr(time, "clock_gettime", lambda id: gettime(id) + slept.get(id, 0))
    assert before + 3600 <= clock.now() < before + 3660
