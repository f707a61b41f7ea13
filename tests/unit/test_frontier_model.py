"""The frontier agrees with its model, and the model finds the faults that it should.

The queue is the embedded one, near at hand or behind a bad network (``unreliable_backend``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from scrapy_apify_rq.backends.base import Claim
from scrapy_apify_rq.backends.sqlite.queue import connect
from scrapy_apify_rq.frontier.frontier import Frontier
from scrapy_apify_rq.frontier.idle import Idle, Question
from scrapy_apify_rq.frontier.leases import Leases
from scrapy_apify_rq.frontier.outbox import Outbox, _Lane
from scrapy_apify_rq.frontier.single import Single
from scrapy_apify_rq.frontier.supply import Local, Reader
from scrapy_apify_rq.frontier.window import Window
from tests.support.frontier_machine import FrontierMachine
from tests.support.virtual_time import Clock, in_thread, ruling


def check(folder: Path, *, is_far: bool, is_shared: bool, **options: Any) -> None:
    clock = Clock()
    values = {"folder": folder, "clock": clock, "is_far": is_far, "is_shared": is_shared}
    machine = type("Machine", (FrontierMachine,), {**values, "names": itertools.count()})
    how = settings(
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        stateful_step_count=40,
        **options,
    )
    # As long as somebody has the file open, SQLite need not tidy it up after each example.
    with closing(connect(folder)), ruling(clock):
        in_thread(lambda: run_state_machine_as_test(machine, settings=how))


@pytest.mark.parametrize("is_shared", [False, True], ids=["single", "shared"])
@pytest.mark.parametrize("is_far", [False, True], ids=["near", "far"])
def test_the_frontier_agrees_with_the_model(tmp_path: Path, is_far: bool, is_shared: bool) -> None:
    check(tmp_path, is_far=is_far, is_shared=is_shared, max_examples=60)


# Faults put in on purpose, each with the mode in which it shows.


def forget_adds_before_acks(patch: pytest.MonkeyPatch) -> None:
    cut = _Lane.cut
    patch.setattr(_Lane, "cut", lambda self, most, before: cut(self, most, math.inf))


def forget_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Local, "ids", lambda self: {*self.window.stored, *self.outbox.visits})
    patch.setattr(Local, "confirmed", lambda self, id: self.window.stored.get(id))


def end_without_asking_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Idle, "disturb", lambda self: None)


def forget_what_is_evicted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Single, "_grow_backlog", lambda self, id: None)


def end_before_the_lag_is_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Single, "hidden_until", -math.inf)


def forget_acks_that_a_claim_may_miss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Single, "acked", lambda self, id: None)


def keep_a_window_of_any_size(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Window, "evict", lambda self, last_size=0: [])


def believe_in_leases_for_ever(patch: pytest.MonkeyPatch) -> None:
    receive = Leases.receive

    def receive_for_ever(self: Leases, claim: Claim) -> int:
        entries = [claimed._replace(lease=math.inf) for claimed in claim.entries]
        return receive(self, claim._replace(entries=entries))

    patch.setattr(Leases, "receive", receive_for_ever)


def keep_leases_at_close(patch: pytest.MonkeyPatch) -> None:
    async def release(self: Leases) -> None:
        pass

    patch.setattr(Leases, "release", release)


def leave_while_others_work(patch: pytest.MonkeyPatch) -> None:
    receive_claim = Reader._consider_the_end

    async def consider(self: Reader, question: Question, claim: Claim) -> None:
        await receive_claim(self, question, claim._replace(leased=False))

    patch.setattr(Reader, "_consider_the_end", consider)


def wake_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Frontier, "confirmed", lambda self: None)


def close_without_flushing(patch: pytest.MonkeyPatch) -> None:
    async def flush(self: Outbox, patience: float) -> None:
        pass

    patch.setattr(Outbox, "flush", flush)


def report_each_failure(patch: pytest.MonkeyPatch) -> None:
    fail = Frontier._fail

    def fail_again(self: Frontier, error: Exception) -> None:
        self.error = None
        fail(self, error)

    patch.setattr(Frontier, "_fail", fail_again)


@pytest.mark.parametrize(
    ("put_in", "is_shared", "symptom"),
    [
        (forget_adds_before_acks, False, "does not wait for the adds"),
        (forget_what_is_in_flight, False, "is handed out"),
        (end_without_asking_again, False, "the crawl ends without"),
        (forget_what_is_evicted, False, "the crawl ends without"),
        (end_before_the_lag_is_over, False, "the crawl ends without"),
        (forget_acks_that_a_claim_may_miss, False, "is handed out and not pending"),
        (keep_a_window_of_any_size, False, "the window is too"),
        (wake_nobody, False, "does not end"),
        (close_without_flushing, False, "left unsaved"),
        (report_each_failure, False, "failures are reported"),
        (believe_in_leases_for_ever, True, "is handed out without a lease|another client has it"),
        (keep_leases_at_close, True, "a lease is left"),
        (leave_while_others_work, True, "the crawl ends without|another client is at work"),
    ],
)
def test_the_model_finds_a_fault(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    put_in: Callable[[pytest.MonkeyPatch], None],
    is_shared: bool,
    symptom: str,
) -> None:
    put_in(monkeypatch)
    with pytest.raises(AssertionError, match=symptom):
        check(
            tmp_path,
            is_far=True,
            is_shared=is_shared,
            max_examples=300,
            phases=[Phase.generate],
        )
