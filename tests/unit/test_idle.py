"""When a crawl is over: the rules, with the time as a number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scrapy_apify_rq.frontier.idle import Idle, Question

DELAY = 3.0


def idle_since_open(*, is_new: bool = True, idle_before_close: float = 0) -> Idle:
    idle = Idle(DELAY, idle_before_close)
    idle.open(100.0, is_new=is_new)
    idle.disturb()
    return idle


def ask(idle: Idle, now: float, *, at_rest: bool = True) -> Question:
    return idle.ask(now, at_rest=at_rest)


def can_end(idle: Idle, question: Question, **facts: Any) -> bool:
    """Whether the crawl may end on the answer "nothing"."""
    idle.came_empty(question)
    values = {"found_nothing": True, "alone": True, "hidden_until": -math.inf, **facts}
    return idle.can_end(question, **values)


OTHERS: dict[str, Any] = {"alone": False}
HIDDEN = {"hidden_until": 130.0}


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        pytest.param({}, [(100.1, {}, True)], id="alone on a new queue: one answer is enough"),
        pytest.param(
            {},
            [(110.0, OTHERS, False), (112.9, OTHERS, False), (113.0, OTHERS, True)],
            id="others may have written what does not show yet",
        ),
        pytest.param(
            {"is_new": False},
            [(102.9, {}, False), (103.0, {}, True)],
            id="a queue that is not new may not show all right after opening",
        ),
        pytest.param({"is_new": False}, [(150.0, {}, True)], id="but long after"),
        pytest.param(
            {},
            [(110.0, HIDDEN, False), (130.0, HIDDEN, True)],
            id="entries that we know of must have had the time to show",
        ),
        pytest.param(
            {"idle_before_close": 60},
            [(110.0, {}, False), (169.0, {}, False), (170.0, {}, True)],
            id="the project may want to wait for others",
        ),
        pytest.param(
            {},
            [(110.0, {"found_nothing": False}, False), (111.0, {}, True)],
            id="an answer with entries in it does not end the crawl",
        ),
    ],
)
def test_the_crawl_may_end_on_an_answer(
    options: dict[str, Any], answers: list[tuple[float, dict[str, Any], bool]]
) -> None:
    idle = idle_since_open(**options)
    for now, facts, may_end in answers:
        assert can_end(idle, ask(idle, now), **facts) == may_end
    idle.end()
    assert idle.is_over


def test_an_event_makes_all_earlier_answers_void() -> None:
    idle = idle_since_open()
    question = ask(idle, 110.0)
    idle.disturb()
    assert idle.is_void(question)
    # Nor does the time before count.
    assert not can_end(idle, ask(idle, 111.0), alone=False)
    idle.disturb()
    assert not can_end(idle, ask(idle, 113.5), alone=False)
    assert can_end(idle, ask(idle, 116.5), alone=False)
    idle.end()
    idle.disturb()
    assert not idle.is_over


def test_while_others_hold_leases_the_waiting_begins_anew() -> None:
    idle = idle_since_open()
    assert not can_end(idle, ask(idle, 110.0), alone=False)
    idle.wait_for_others(question := ask(idle, 111.0))
    assert idle.quiet_for(question) == 0
    assert not can_end(idle, ask(idle, 113.5), alone=False)
    assert can_end(idle, ask(idle, 116.5), alone=False)


def test_a_question_is_asked_once_and_then_less_and_less_often() -> None:
    idle = idle_since_open()
    assert idle.next_at == 0  # at once
    pauses = []
    now = 110.0
    for _ in range(8):
        question = ask(idle, now)
        assert idle.next_at > now  # not again while the answer is on its way
        idle.came_empty(question)
        idle.wait_for_others(question)
        pauses.append(idle.next_at - now)
        now = idle.next_at
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10, 10]
    idle.disturb()
    assert idle.next_at == 0


def test_the_last_question_is_asked_when_its_answer_can_be_trusted() -> None:
    idle = idle_since_open()
    asked = [110.0]
    while not can_end(idle, ask(idle, asked[-1]), alone=False):
        asked.append(idle.next_at)
    assert asked == pytest.approx([110, 110.5, 111.5, 113])


def test_a_question_asked_while_something_was_left_does_not_put_off_the_next() -> None:
    idle = idle_since_open()
    ask(idle, 110.0, at_rest=False)
    assert idle.next_at == 0
