"""The server misbehaves on request: its faults are exactly those that tests of clients ask for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from scrapy_apify_rq.limits import BATCH_RATE
from scrapy_apify_rq.server import faults as server_faults
from scrapy_apify_rq.server.faults import Faults
from tests.support.queues import ServedQueue
from tests.support.raw_calls import Caller, handled, keys, one, request
from tests.support.waiting import wait_until


def test_failures_have_no_effect(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(limited=1))
    assert remote.add("a").error == (429, "rate-limit-exceeded")
    served.faults(Faults(failed=1))
    assert remote.add("a").error == (500, "internal-server-error")
    for faults in (Faults(dropped=1), Faults(outage_until=time.time() + 60)):
        served.faults(faults)
        with pytest.raises(httpx.TransportError):
            remote.add("a")
    served.faults(Faults())
    assert remote.counts() == (0, 0, 0)


def test_lost_answer_has_its_effect(served: ServedQueue, remote: Caller) -> None:
    served.faults(Faults(lost=1, only=["POST requests"]))
    with pytest.raises(httpx.TransportError):
        remote("POST", "/requests", request("a"))
    assert remote.counts() == (1, 0, 1)
    served.faults(Faults())
    assert remote("POST", "/requests", request("a")).data["wasAlreadyPresent"] is True


def control(remote: Caller, **faults: Any) -> None:
    """Only so the faults begin with their seed."""
    assert remote.http.put("/_faults", json=faults).status_code == 204


def test_unprocessed_requests_are_not_stored(remote: Caller) -> None:
    control(remote, unprocessed=0.5, seed=1)
    names = [f"key-{n}" for n in range(25)]
    data = remote.add(*names).data
    processed = [one["uniqueKey"] for one in data["processedRequests"]]
    unprocessed = [one["uniqueKey"] for one in data["unprocessedRequests"]]
    assert 3 < len(unprocessed) < 22
    assert sorted(processed + unprocessed) == sorted(names)
    assert remote.head() == processed


def test_faults_are_reproducible(remote: Caller) -> None:
    def statuses() -> list[int]:
        control(remote, failed=0.3, limited=0.3, seed=7)
        return [remote("GET").status for _ in range(20)]

    first = statuses()
    assert set(first) == {200, 429, 500}
    assert statuses() == first


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


def test_locked_requests_can_be_hidden_from_the_head(served: ServedQueue, remote: Caller) -> None:
    remote.add("a", "b")
    remote.lock(limit=1)
    served.faults(Faults(hide_locked=True))
    assert remote.head() == ["b"]


def test_rates_of_the_platform(
    served: ServedQueue, remote: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0, time=time.time, monotonic=lambda: clock.now)
    monkeypatch.setattr(server_faults, "time", clock)
    served.faults(Faults(rates=True))
    statuses = [remote.add("a").status for _ in range(BATCH_RATE + 2)]
    assert statuses == [201] * BATCH_RATE + [429] * 2
    assert [remote("GET", one("a")).status for _ in range(100)] == [200] * 100
    clock.now = 0.5
    statuses = [remote.add("a").status for _ in range(BATCH_RATE)]
    assert statuses == [201] * (BATCH_RATE // 2) + [429] * (BATCH_RATE // 2)


def test_calls_are_counted(remote: Caller) -> None:
    assert remote.http.delete("/_calls").status_code == 204
    remote.add("a")
    remote.add("b")
    remote.get("a")
    remote("GET", one("nothing"))
    assert remote.http.get("/_calls").json() == {
        "total": 4,
        "operations": {"POST requests/batch": 2, "GET requests/{id}": 2},
        "outcomes": {"201": 2, "200": 1, "404": 1},
    }
