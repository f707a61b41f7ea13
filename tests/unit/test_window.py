"""The order of what waits, and the limits of the window."""

from __future__ import annotations

from typing import Any

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


def test_the_greatest_priority_first_and_equals_first_in_first_out() -> None:
    window = a_window()
    for path, priority in (("/a", 0), ("/b", 5), ("/c", -5), ("/d", 5), ("/e", 0), ("/f", 5)):
        push(window, path, priority=priority, forefront=priority > 0)
    assert drain(window) == ["/b", "/d", "/f", "/a", "/e", "/c"]
    assert (len(window), window.size, window.stored) == (0, 0, {})


def test_retries_first_in_their_own_order() -> None:
    window = a_window()
    push(window, "/new", priority=9)
    push(window, "/retry-1", is_retry=True, forefront=True, priority=-1)
    push(window, "/retry-2", is_retry=True, forefront=True, priority=-1)
    assert drain(window) == ["/retry-1", "/retry-2", "/new"]


def test_retries_where_they_are_not_to_be_first() -> None:
    window = a_window(retries_first=False)
    push(window, "/retry", is_retry=True, priority=-1)
    push(window, "/new")
    assert drain(window) == ["/new", "/retry"]


def test_newest_first_is_last_in_first_out_within_a_priority() -> None:
    window = a_window()
    push(window, "/start")
    for path in ("/a", "/b"):
        push(window, path, newest_first=True)
    push(window, "/urgent", priority=1, newest_first=True)
    assert drain(window) == ["/urgent", "/b", "/a", "/start"]


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


def test_an_outranked_last() -> None:
    window = a_window()
    assert not window.outranks_last(Visit(make_entry("/any"), priority=9))
    push(window, "/low", priority=-1)
    push(window, "/high", priority=1)
    assert window.outranks_last(Visit(make_entry("/0")))
    assert not window.outranks_last(Visit(make_entry("/equal"), priority=-1))
    assert window.outranks_last(Visit(make_entry("/retry"), priority=-1, is_retry=True))


def test_leased_visits_can_be_dropped() -> None:
    window = a_window()
    push(window, "/a", lease=5.0)
    push(window, "/b")
    push(window, "/c", lease=6.0)
    assert window.drop_leased() == [make_entry(path).id for path in ("/a", "/c")]
    assert window.size == 1
    assert drain(window) == ["/b"]
