"""The order of what waits, and the limits of the window."""

from __future__ import annotations

import time
from typing import Any

import pytest

from scrapy_apify_rq.frontier.visit import Visit
from scrapy_apify_rq.frontier.window import Window
from tests.support.frontier_driver import make_entry


def a_window(**options: Any) -> Window:
    return Window(**{"limit": 100, "memory": 10_000, **options})


def push(window: Window, path: str, **fields: Any) -> Visit:
    visit = Visit(make_entry(path), **{"size": 1, **fields})
    window.push(visit)
    return visit


def drain(window: Window) -> list[str]:
    paths = []
    while (visit := window.pop()) is not None:
        paths.append(visit.entry.unique_key if visit.entry else "memory")
    return paths


FRONT: dict[str, Any] = {"is_retry": True, "forefront": True, "priority": -1}
NEWEST = {"newest_first": True}


@pytest.mark.parametrize(
    ("options", "pushed", "order"),
    [
        (  # the greatest priority first, and equals first in, first out
            {},
            {p: {"priority": n} for p, n in zip("abcdef", (0, 5, -5, 5, 0, 5), strict=True)},
            "bdfaec",
        ),
        ({}, {"n": {"priority": 9}, "r": FRONT, "s": FRONT}, "rsn"),  # retries first
        ({"retries_first": False}, {"r": FRONT, "n": {}}, "nr"),
        # Newest first is last in, first out within a priority.
        ({}, {"s": {}, "a": NEWEST, "b": NEWEST, "u": {**NEWEST, "priority": 1}}, "ubas"),
    ],
)
def test_order(options: dict[str, Any], pushed: dict[str, dict[str, Any]], order: str) -> None:
    window = a_window(**options)
    for path, fields in pushed.items():
        push(window, path, **fields)
    assert drain(window) == list(order)
    assert (len(window), window.size, window.stored) == (0, 0, {})


def test_requests_in_memory_take_their_turn_and_are_never_evicted() -> None:
    window = a_window(limit=2)
    push(window, "/a")
    window.push(Visit(None, size=10**6))
    window.push(Visit(None, priority=-9, size=10**6))
    for path in ("/b", "/c"):
        push(window, path)
    (evicted,) = window.evict()
    assert evicted == make_entry("/c").id
    assert window.size == 2
    assert drain(window) == ["/a", "memory", "/b", "memory"]


def test_the_least_urgent_are_evicted_beyond_the_limit() -> None:
    window = a_window(limit=2)
    for n, priority in enumerate((1, -1, 0, 2)):
        push(window, f"/{n}", priority=priority)
    assert window.evict() == [make_entry(path).id for path in ("/1", "/2")]
    assert drain(window) == ["/3", "/0"]


def test_what_exceeds_the_memory_is_evicted() -> None:
    window = a_window(memory=100)
    for n in range(10):
        push(window, f"/{n}", size=30)
    window.evict()
    assert window.size == 90
    assert drain(window) == ["/0", "/1", "/2"]


def test_one_entry_always_fits() -> None:
    window = a_window(memory=100)
    push(window, "/large", size=10**9)
    assert window.evict() == []
    # The last one may exceed the memory, so that a claim of one entry is not in vain.
    window = a_window(memory=100)
    push(window, "/a", size=60)
    push(window, "/large", size=500)
    assert window.evict(last_size=500) == []
    push(window, "/b", size=1)
    assert window.evict(last_size=1) == [make_entry("/b").id, make_entry("/large").id]


class Hosts:
    """Each path begins with its slot; ``busy`` are the requests that slots have."""

    are_hosts = True

    def __init__(self, **busy: int) -> None:
        self.busy = busy

    def key(self, visit: Visit) -> str:
        return visit.entry.unique_key[0] if visit.entry else "m"

    def active(self, key: str) -> int:
        return self.busy.get(key, 0)

    def is_full(self, key: str) -> bool:
        return self.active(key) >= 8

    def is_busy(self, key: str) -> bool:
        return self.active(key) > 0


@pytest.mark.parametrize(
    ("busy", "pushed", "order"),
    [
        ({}, ["a1", "a2", "a3", "b1", "b2", "c1"], ["a1", "b1", "c1", "a2", "b2", "a3"]),
        ({"a": 2, "b": 1, "c": 1}, ["a1", "b1", "c1", "b2"], ["b1", "c1", "b2", "a1"]),
        ({"a": 1}, ["a1", "a2", "b1"], ["b1", "a1", "a2"]),
    ],
)
def test_slots_take_turns(busy: dict[str, int], pushed: list[str], order: list[str]) -> None:
    window = a_window(slots=Hosts(**busy))
    for path in pushed:
        push(window, path)
    assert drain(window) == order


def test_a_full_slot_does_not_stop_others_of_less_priority() -> None:
    window = a_window(slots=Hosts(d=8))
    push(window, "d1", priority=1)
    push(window, "l1")
    visits = [window.pop(is_all=False) for _ in range(2)]
    assert [visit and visit.slot for visit in visits] == ["l", None]
    assert window.is_stuck
    assert drain(window) == ["d1"]
    assert not window.is_stuck


def test_busy_slots_are_counted_when_no_other_has_anything() -> None:
    window = a_window(slots=Hosts(a=1, b=8))
    found = []
    for path in ("a1", "a2", "b1", "c1"):
        push(window, path)
    for _ in range(4):  # c1, a1, a2, and nothing while b is full
        window.pop(is_all=False)
        found.append(window.busy_slots)
    assert found == [0, 2, 1, 1]


def test_retries_that_wait_leave_half_of_the_limits_to_others() -> None:
    window = a_window(slots=Hosts(), limit=4)
    later = time.monotonic() + 1000
    for n in range(3):
        push(window, f"a-late{n}", not_before=later, is_retry=True)
    for path in ("a1", "b1", "b2"):
        push(window, path)
    assert [*window.evict()] == [make_entry("b2").id]
    assert (len(window), window.ready, window.next_due_at) == (5, 2, later)
    # More than half of the window waits, so slot a gets nothing new, except for retries.
    assert drain(window) == ["b1"]
    push(window, "a-retry", is_retry=True)
    assert drain(window) == ["a-retry"]
    for n in range(2):
        push(window, f"b-late{n}", not_before=later, is_retry=True)
    push(window, "c1")
    assert drain(window) == []  # nobody gets anything new


@pytest.mark.parametrize("limits", [{"limit": 4}, {"memory": 40}])
def test_the_longest_line_is_evicted_from(limits: dict[str, int]) -> None:
    window = a_window(slots=Hosts(), **limits)
    for path in ("b1", "a1", "a2", "a3", "a4", "c1"):
        push(window, path, size=10)
    assert window.evict() == [make_entry(path).id for path in ("a4", "a3")]
    assert drain(window) == ["a1", "b1", "c1", "a2"]


def test_what_is_wanted_though_older_entries_wait_elsewhere() -> None:
    window = a_window(slots=Hosts(), limit=3)

    def is_wanted(path: str, **fields: Any) -> bool:
        return window.is_wanted(Visit(make_entry(path), **fields))

    assert not is_wanted("a", priority=9)
    push(window, "a-low", priority=-1)
    push(window, "a-high", priority=1)
    assert is_wanted("a")
    assert not is_wanted("a", priority=-1)
    assert is_wanted("a", priority=-1, is_retry=True)
    assert is_wanted("b", priority=-9)  # nothing waits for that slot
    push(window, "b")
    assert is_wanted("c")
    window.pop()
    push(window, "c")
    assert not is_wanted("d")  # each line has one already, and no more fit


def test_leased_visits_can_be_dropped() -> None:
    window = a_window(slots=Hosts())
    for path in ("a1", "a2", "c1"):
        push(window, path, lease=5.0)
    push(window, "b1")
    push(window, "c2")
    assert window.drop_leased() == [make_entry(path).id for path in ("a1", "a2", "c1")]
    assert window.size == 2
    assert drain(window) == ["b1", "c2"]
