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


def test_alone_on_a_new_queue_one_answer_is_enough() -> None:
    idle = idle_since_open()
    assert can_end(idle, ask(idle, 100.1))
    idle.end()
    assert idle.is_over


def test_others_may_have_written_what_does_not_show_yet() -> None:
    idle = idle_since_open()
    assert not can_end(idle, ask(idle, 110.0), alone=False)
    assert not can_end(idle, ask(idle, 112.9), alone=False)
    assert can_end(idle, ask(idle, 113.0), alone=False)


def test_a_queue_that_was_not_new_may_not_show_all_right_after_opening() -> None:
    idle = idle_since_open(is_new=False)
    assert not can_end(idle, ask(idle, 102.9))
    assert can_end(idle, ask(idle, 103.0))
    # Long after opening there is nothing to wait for.
    idle = idle_since_open(is_new=False)
    assert can_end(idle, ask(idle, 150.0))


def test_entries_that_we_know_of_must_have_had_the_time_to_show() -> None:
    idle = idle_since_open()
    assert not can_end(idle, ask(idle, 110.0), hidden_until=130.0)
    assert can_end(idle, ask(idle, 130.0), hidden_until=130.0)


def test_the_project_may_want_to_wait_for_others() -> None:
    idle = idle_since_open(idle_before_close=60)
    assert not can_end(idle, ask(idle, 110.0))
    assert not can_end(idle, ask(idle, 169.0))
    assert can_end(idle, ask(idle, 170.0))


def test_an_answer_with_entries_in_it_does_not_end_the_crawl() -> None:
    idle = idle_since_open()
    assert not can_end(idle, ask(idle, 110.0), found_nothing=False)
    assert can_end(idle, ask(idle, 111.0))


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
