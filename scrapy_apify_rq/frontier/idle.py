"""Is the crawl over?

It is once the backend has answered "nothing pending" to a question asked while nothing was left
here (outbox, window, in flight), and the answer can be trusted. States:

    busy     something has happened since the last such answer
    quiet    the answers since then were "nothing", but they cannot be trusted yet
    over

Any event leads back to busy. An answer can be trusted at once if we are alone on the queue and have
made all of its entries ourselves. Otherwise what others wrote may not show yet, so the question is
repeated until it was asked

- the backend's consistency delay after the first "nothing", if other clients use the queue,
- the delay after opening, if the queue was not new then,
- after ``hidden_until``, when entries that we know of must show if they are still pending,
- ``idle_before_close`` seconds after the first "nothing", if the project wants it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

# Seconds between two questions: doubling, from and to.
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0


class Question(NamedTuple):
    """One call of the backend's ``claim``."""

    asked_at: float
    """By the monotonic clock, like all times here."""
    at_rest: bool
    """Nothing was left in this process when it was asked."""
    events: int
    """How many events there had been."""


@dataclass(slots=True)
class _Quiet:
    """What was found out since the last event."""

    events: int
    answers: int = 0
    """How many answers brought nothing."""
    since: float | None = None
    """When the first question was asked whose answer, like all later ones, was "nothing"."""
    next_at: float = 0.0
    """When to ask next."""
    is_over: bool = False


class Idle:
    def __init__(self, consistency_delay: float, idle_before_close: float) -> None:
        self._consistency_delay = consistency_delay
        self._idle_before_close = idle_before_close
        self._trusted_from = -math.inf
        """Questions asked before may miss what was written before we opened the queue."""
        self._events = 0
        self._state = _Quiet(0)

    def open(self, now: float, *, is_new: bool) -> None:
        if not is_new:
            self._trusted_from = now + self._consistency_delay

    def disturb(self) -> None:
        """Something happened: earlier answers are void. Called for each request, so it is cheap."""
        self._events += 1

    @property
    def _quiet(self) -> _Quiet:
        if self._state.events != self._events:
            self._state = _Quiet(self._events)
        return self._state

    @property
    def is_over(self) -> bool:
        return self._quiet.is_over

    @property
    def next_at(self) -> float:
        """When to ask the next question at rest."""
        return self._quiet.next_at

    @property
    def pause(self) -> float:
        """Seconds until a question that brought nothing should be repeated."""
        return min(_FIRST_PAUSE * 2.0 ** min(self._quiet.answers, 10), _LONGEST_PAUSE)

    # One question.

    def ask(self, now: float, *, at_rest: bool) -> Question:
        if at_rest:
            self._quiet.next_at = now + _LONGEST_PAUSE  # the answer sets an earlier time
        return Question(now, at_rest, self._events)

    def is_void(self, question: Question) -> bool:
        """Something has happened since it was asked."""
        return question.events != self._events

    def came_empty(self, question: Question) -> None:
        """The answer brought nothing that can be crawled here, so ask less often."""
        if not self.is_void(question):
            self._quiet.answers += 1

    def wait_for_others(self, question: Question) -> None:
        """Others have work, and may add more."""
        if self.is_void(question):
            return
        quiet = self._quiet
        quiet.since, quiet.is_over = None, False
        quiet.next_at = question.asked_at + self.pause

    def can_end(
        self, question: Question, *, found_nothing: bool, alone: bool, hidden_until: float
    ) -> bool:
        """Note the answer to a question asked at rest, and whether the crawl may end on it.

        ``found_nothing``: it shows no pending entry at all.
        """
        quiet = self._quiet
        quiet.since = question.asked_at if quiet.since is None else quiet.since
        trusted_from = max(
            quiet.since + self._idle_before_close,
            -math.inf if alone else quiet.since + self._consistency_delay,
            self._trusted_from,
            hidden_until,
        )
        wait = trusted_from - question.asked_at
        pause = min(self.pause, max(wait, _FIRST_PAUSE)) if wait > 0 else self.pause
        quiet.next_at = question.asked_at + pause
        quiet.is_over = quiet.is_over and found_nothing and wait <= 0
        return found_nothing and wait <= 0

    def quiet_for(self, question: Question) -> float:
        """Seconds for which the answers have been "nothing"."""
        since = self._quiet.since
        return 0.0 if since is None else question.asked_at - since

    def end(self) -> None:
        self._quiet.is_over = True
