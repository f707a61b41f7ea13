"""Single access: what goes into the window, what is left to later claims, how much is claimed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from scrapy_apify_rq.backends.base import Claim, Claimed
from scrapy_apify_rq.frontier.outbox import Outbox
from scrapy_apify_rq.frontier.single import Single
from scrapy_apify_rq.frontier.slots import OneLine
from scrapy_apify_rq.frontier.supply import Local
from scrapy_apify_rq.frontier.visit import Visit
from scrapy_apify_rq.frontier.window import Window
from tests.support.frontier_driver import Driver, Remote, make_entry, path_of


def a_single(folder: Path, **limits: Any) -> tuple[Single, Window]:
    backend = Remote(folder)
    window = Window(**{"limit": 8, "memory": 1000, **limits})
    outbox = Outbox(backend, limit=10, memory=1000)
    single = Single(backend, Local(outbox, window, Driver(backend)))
    single.open(has_pending=False)
    return single, window


def a_visit(path: str, *, size: int = 1, **fields: Any) -> Visit:
    return Visit(make_entry(path), size=size, **fields)


def a_claim(*paths: str, more: bool = False) -> Claim:
    return Claim([Claimed(make_entry(path), None) for path in paths], more)


def receive(single: Single, *paths: str, more: bool = False) -> int:
    single.begin_claim(time.monotonic())
    return single.receive(a_claim(*paths, more=more))


def paths(window: Window) -> list[str]:
    return [visit.entry.unique_key for visit in window.stored.values() if visit.entry]


def test_new_entries_wait_behind_the_backlog(tmp_path: Path) -> None:
    single, window = a_single(tmp_path)
    receive(single, "/old", more=True)
    single.stored(a_visit("/equal"))
    single.stored(a_visit("/lower", priority=-1))
    assert paths(window) == ["/old"]
    single.stored(a_visit("/higher", priority=1))
    single.stored(a_visit("/front", forefront=True))
    single.requeued(a_visit("/retry"), refused=False)
    assert paths(window) == ["/old", "/higher", "/front", "/retry"]


def test_a_full_window_evicts_what_is_least_urgent(tmp_path: Path) -> None:
    single, window = a_single(tmp_path, limit=2)
    for n in range(3):
        single.stored(a_visit(f"/{n}", priority=-1))
    single.stored(a_visit("/urgent"))
    assert paths(window) == ["/0", "/urgent"]
    assert single.hidden_until > time.monotonic()


def test_a_claim_asks_for_as_many_entries_and_bytes_as_fit(tmp_path: Path) -> None:
    single, window = a_single(tmp_path)
    receive(single, more=True)
    for n in range(2):
        window.push(a_visit(f"/{n}", size=100))
    assert single.is_low()
    assert single.begin_claim(0.0)[:2] == (6, 800)
    window.push(a_visit("/2", size=100))
    assert not single.is_low()  # more than a quarter of the bytes
    assert single.begin_claim(0.0)[:2] == (5, 700)
    window.push(a_visit("/large", size=10_000))
    assert single.begin_claim(0.0)[:2] == (4, 1)


class Hosts(OneLine):
    are_hosts = True

    def key(self, visit: Visit) -> str:
        return path_of(visit)[1]


def test_a_slot_that_ran_dry_gets_more_at_the_cost_of_the_longest_line(tmp_path: Path) -> None:
    single, window = a_single(tmp_path, memory=10**6, slots=Hosts())
    receive(single, *(f"/a{n}" for n in range(7)), "/b0", more=True)
    assert not single.is_low()
    window.pop()
    assert path_of(window.pop()) == "/b0"
    assert single.is_low()
    assert single.again_at > time.monotonic()
    # What is in flight takes no place of what is to come.
    driver: Any = single._local.listener
    driver.in_flight |= {path: a_visit(path, slot=path[1]) for path in ("/a7", "/b1", "/b2")}
    entries, _, share = single.begin_claim(time.monotonic())
    assert (entries, share) == (2, 3 + 2)
    assert not single.is_low()  # until some slot runs dry again
    assert single.receive(a_claim("/b3", "/b4", "/b5", more=True)) == 3
    assert paths(window) == [f"/a{n}" for n in range(1, 6)] + ["/b3", "/b4", "/b5"]


def test_a_claim_may_show_what_was_settled_lately(tmp_path: Path) -> None:
    single, window = a_single(tmp_path)
    single.acked(make_entry("/acked").id)
    assert receive(single, "/acked", "/new") == 1
    assert paths(window) == ["/new"]


def test_what_a_lag_may_hide_is_counted_until_it_shows(tmp_path: Path) -> None:
    single, window = a_single(tmp_path)
    single.found(make_entry("/handled").id, was_handled=True)
    assert single.hidden_until == -math.inf
    single._local.seen.add(make_entry("/pending").id.encode())
    single.found(make_entry("/pending").id, was_handled=False)
    assert single.hidden_until > time.monotonic() + 29
    assert receive(single) == 0
    assert single.hidden_until > time.monotonic() + 29
    assert receive(single, "/pending") == 1
    assert single.hidden_until == -math.inf
    assert paths(window) == ["/pending"]


def test_an_entry_that_is_not_hidden_uncovers_no_other(tmp_path: Path) -> None:
    single, window = a_single(tmp_path, limit=1)
    single._local.seen.add(make_entry("/start").id.encode())  # the scheduler remembers starts
    for n in range(2):
        single.stored(a_visit(f"/{n}"))
    window.pop()
    assert receive(single, "/start") == 1
    assert single.hidden_until > time.monotonic() + 29  # "/1" has not shown yet
