"""The circuit breaker on a clock of the test's own."""

from __future__ import annotations

import pytest

from mqttcollab.cloud.breaker import Breaker
from mqttcollab.errors import RequestError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(3, 30.0, clock)
    for _ in range(3):
        breaker.failed(breaker.admit())
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(3, 30.0, Clock())
    for _ in range(5):
        for _ in range(2):
            breaker.failed(breaker.admit())
        breaker.forgotten(breaker.admit())
        breaker.succeeded(breaker.admit())
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.failed(breaker.admit())
    assert breaker.state == "open"


def test_while_it_is_open_it_says_when_to_ask_again() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10.5
    with pytest.raises(RequestError, match=r"failed 3 times in a row and is left alone for 19.5 s more") as refused:
        breaker.admit()
    assert (refused.value.code, refused.value.retry_after_ms) == ("busy", 19_500)


def test_half_open_lets_one_call_through() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    assert breaker.state == "half-open"
    assert breaker.admit()
    with pytest.raises(RequestError, match="one call tries whether it works again") as refused:
        breaker.admit()
    assert (refused.value.code, refused.value.retry_after_ms) == ("busy", 1000)
    breaker.succeeded(trial=True)
    assert breaker.state == "closed"
    assert not breaker.admit()


def test_a_trial_that_fails_opens_it_again() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 31
    breaker.failed(breaker.admit())
    assert breaker.state == "open"
    clock.now += 29.9
    with pytest.raises(RequestError, match="failed 4 times"):
        breaker.admit()


def test_a_trial_that_was_given_up_makes_room_for_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 31
    breaker.forgotten(breaker.admit())
    assert breaker.state == "half-open"
    assert breaker.admit()


def test_a_call_from_before_it_opened_does_not_close_it() -> None:
    clock = Clock()
    breaker = Breaker(1, 30.0, clock)
    early, other = breaker.admit(), breaker.admit()
    breaker.failed(other)
    breaker.succeeded(early)
    assert breaker.state == "open"
    clock.now += 31
    assert breaker.admit()
    breaker.failed(early)  # and does not end the trial either
    with pytest.raises(RequestError):
        breaker.admit()
