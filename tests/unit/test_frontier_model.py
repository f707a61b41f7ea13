"""The frontier agrees with its model, and the model finds the faults that it should."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from scrapy_apify_rq.backends.sqlite.database import Database
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.idle import Idle
from scrapy_apify_rq.frontier.leases import Leases
from scrapy_apify_rq.frontier.outbox import Outbox, _Lane
from scrapy_apify_rq.frontier.single import Single
from scrapy_apify_rq.frontier.supply import Local, Reader
from scrapy_apify_rq.frontier.waiting import Waiting
from scrapy_apify_rq.frontier.window import Window
from tests.support.frontier_machine import FrontierMachine
from tests.support.virtual_time import Clock, in_thread, ruling


def check(folder: Path, *, is_shared: bool, **options: Any) -> None:
    clock = Clock()
    values = {"folder": folder, "clock": clock, "is_shared": is_shared, "names": itertools.count()}
    # With this seed, each fault below is found within 12 examples.
    machine = seed(9)(type("Machine", (FrontierMachine,), values))
    how = settings(
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        stateful_step_count=40,
        **options,
    )
    # As long as somebody has the file open, SQLite need not tidy it up after each example.
    database = Database(folder, patience=0)
    database.open()
    with closing(database), ruling(clock):
        in_thread(lambda: run_state_machine_as_test(machine, settings=how))


@pytest.mark.parametrize("is_shared", [False, True], ids=["single", "shared"])
def test_the_frontier_agrees_with_the_model(tmp_path: Path, is_shared: bool) -> None:
    check(tmp_path, is_shared=is_shared, max_examples=12)


# Faults put in on purpose.


async def do_nothing(*_: Any) -> None:
    pass


def believe_in_leases_for_ever(self: Leases, claim: Any, whole: Any = Leases.receive) -> Any:
    entries = [claimed._replace(lease=math.inf) for claimed in claim.entries]
    return whole(self, claim._replace(entries=entries))


async def leave_while_others_work(
    self: Reader, question: Any, claim: Any, whole: Any = Reader._consider_the_end
) -> None:
    await whole(self, question, claim._replace(leased=False))


def report_each_failure(self: Frontier, error: Exception, whole: Any = Frontier._fail) -> None:
    self.error = None
    whole(self, error)


def forget_adds_before_acks(self: Any, most: int, before: Any, whole: Any = _Lane.cut) -> Any:
    return whole(self, most, math.inf)


def release_at_once(self: Waiting, now: float, whole: Any = Waiting.due) -> Any:
    return whole(self, math.inf)


IN_FLIGHT_IS_FORGOTTEN = (
    (Local, "ids", lambda self: {*self.window.stored, *self.outbox.visits}),
    (Local, "confirmed", lambda self, id: self.window.stored.get(id)),
)
TOO_EARLY = "the crawl ends without"
NO_LEASE = "is handed out without a lease|another client has it"
STILL_AT_WORK = f"{TOO_EARLY}|another client is at work"


@pytest.mark.parametrize(
    ("is_shared", "symptom", "faults"),
    [
        (False, "does not wait for the adds", [(_Lane, "cut", forget_adds_before_acks)]),
        (False, "is handed out|KeyError", IN_FLIGHT_IS_FORGOTTEN),
        (False, TOO_EARLY, [(Idle, "disturb", lambda self: None)]),
        (False, TOO_EARLY, [(Single, "_grow_backlog", lambda self, id: None)]),
        (False, TOO_EARLY, [(Single, "hidden_until", -math.inf)]),
        (False, "is handed out and not pending", [(Single, "acked", lambda self, id: None)]),
        (False, "before its time", [(Waiting, "due", release_at_once)]),
        (False, "the window is too", [(Window, "evict", lambda self, last_size=0: [])]),
        (False, "does not end", [(Frontier, "confirmed", lambda self: None)]),
        (False, "left unsaved", [(Outbox, "flush", do_nothing)]),
        (False, "failures are reported", [(Frontier, "_fail", report_each_failure)]),
        (True, NO_LEASE, [(Leases, "receive", believe_in_leases_for_ever)]),
        (True, "a lease is left", [(Leases, "release", do_nothing)]),
        (True, STILL_AT_WORK, [(Reader, "_consider_the_end", leave_while_others_work)]),
    ],
)
def test_the_model_finds_a_fault(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_shared: bool,
    symptom: str,
    faults: list[tuple[type, str, Callable[..., Any]]],
) -> None:
    for fault in faults:
        monkeypatch.setattr(*fault)
    with pytest.raises(AssertionError, match=symptom):
        check(tmp_path, is_shared=is_shared, max_examples=300, phases=[Phase.generate])
