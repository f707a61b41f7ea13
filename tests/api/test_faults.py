"""The server of the tests misbehaves as they ask it to: the check of that equipment."""

from __future__ import annotations

import time
from types import SimpleNamespace

import httpx
import pytest

from scrapy_apify_rq.limits import BATCH_RATE
from tests.support import faults
from tests.support.faults import Faults
from tests.support.queues import ServedQueue
from tests.support.raw_calls import Caller, handled, keys, one, request
from tests.support.waiting import wait_until


def test_failures_have_no_effect(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(limited=1))
    assert remote.add("a").error == (429, "rate-limit-exceeded")
    served.faults(Faults(failed=1))
    assert remote.add("a").error == (500, "internal-server-error")
    served.faults(Faults(dropped=1))
    with pytest.raises(httpx.TransportError):
        remote.add("a")
    served.faults(Faults())
    assert remote.counts() == (0, 0, 0)


def test_lost_answer_has_its_effect(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(lost=1))
    with pytest.raises(httpx.TransportError):
        remote.add("a")
    served.faults(Faults())
    assert remote.counts() == (1, 0, 1)


def test_unprocessed_requests_are_not_stored(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(unprocessed=0.5))
    names = [f"key-{n}" for n in range(25)]
    data = remote.add(*names).data
    processed = [one["uniqueKey"] for one in data["processedRequests"]]
    unprocessed = [one["uniqueKey"] for one in data["unprocessedRequests"]]
    assert 3 < len(unprocessed) < 22
    assert sorted(processed + unprocessed) == sorted(names)
    assert remote.head() == processed


def test_latency(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(latency=0.3))
    started = time.monotonic()
    remote("GET")
    assert time.monotonic() - started >= 0.3


async def test_head_lags(served: ServedQueue, remote: Caller) -> None:
    remote.add("old", "done", "back")
    served.faults(Faults(head_lag=600))
    remote.add("new", forefront=1)
    remote.put("new", request("new", retryCount=1), forefront=1)
    remote.put("done", handled("done"))
    remote.put("back", forefront=1)
    remote("DELETE", one("old"))
    assert remote.head() == ["old", "done", "back"]
    assert set(keys(remote("GET", "/requests", filter="pending"))) == {"old", "done", "back"}
    assert remote.lock() == []
    assert remote.get("done")["handledAt"]
    assert remote("GET", one("new")).status == 200
    assert remote.counts() == (3, 1, 2)
    served.faults(Faults(head_lag=0.3))
    remote.add("late")
    await wait_until(lambda: remote.head() == ["back", "new", "late"])
    assert remote.lock() == ["back", "new", "late"]


async def test_counters_lag(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(counter_lag=600))
    remote.add("a", "b")
    remote.put("a", handled("a"))
    assert remote.counts() == (0, 0, 0)
    assert remote.head() == ["b"]
    served.faults(Faults(counter_lag=0.3))
    remote.add("c")
    await wait_until(lambda: remote.counts() == (3, 1, 2))


def test_rates_of_the_platform(
    served: ServedQueue, remote: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(faults, "time", clock)
    served.faults(Faults(rates=True))
    statuses = [remote.add("a").status for _ in range(BATCH_RATE + 2)]
    assert statuses == [201] * BATCH_RATE + [429] * 2
    assert [remote("GET", one("a")).status for _ in range(100)] == [200] * 100
    clock.now = 0.5
    statuses = [remote.add("a").status for _ in range(BATCH_RATE)]
    assert statuses == [201] * (BATCH_RATE // 2) + [429] * (BATCH_RATE // 2)


def test_calls_are_counted(served: ServedQueue, remote: Caller) -> None:
    served.misbehaviour.forget()
    remote.add("a")
    remote.get("a")
    remote("GET", one("nothing"))
    remote("GET")
    calls = {"POST requests/batch": 1, "GET requests/{id}": 2, "GET queue": 1}
    assert served.misbehaviour.calls == calls
    assert served.misbehaviour.outcomes == {"201": 1, "200": 2, "404": 1}
