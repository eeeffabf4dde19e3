"""A wait that stands while a condition holds: bounded from when it began, or since the last progress."""

from __future__ import annotations

import pytest

from learner_jax.runtime import StandingWait, Waits, WaitTimeoutError


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waits(clock: Clock) -> Waits:
    return Waits(clock)


@pytest.fixture
def standing(waits: Waits) -> StandingWait:
    return StandingWait(waits, "room", on="learner", limit_s=4.0, setting="a.b", error=WaitTimeoutError)


def test_it_stands_only_while_the_condition_holds(standing: StandingWait, waits: Waits) -> None:
    assert (waits.current(), standing.remaining_s) == ([], float("inf"))
    standing.look(False)
    assert waits.current() == []
    standing.look(True)
    assert [(wait.what, wait.on) for wait in waits.current()] == [("room", "learner")]
    standing.look(False)
    assert (waits.current(), standing.remaining_s) == ([], float("inf"))


def test_it_is_one_wait_from_look_to_look(standing: StandingWait, waits: Waits, clock: Clock) -> None:
    for _ in range(4):
        standing.look(True)
        clock.now_s += 1.0
    assert len(waits.current()) == 1
    assert standing.remaining_s == 0.0
    with pytest.raises(WaitTimeoutError, match=r"waited 4\.0 s for room from learner .*\(a\.b = 4 s\)$"):
        standing.look(True)


def test_a_new_one_has_its_whole_bound(standing: StandingWait, clock: Clock) -> None:
    standing.look(True)
    clock.now_s += 3.0
    standing.end()
    standing.look(True)
    assert standing.remaining_s == 4.0


def test_progress_starts_the_bound_anew(standing: StandingWait, clock: Clock) -> None:
    standing.progressed()
    standing.look(True)
    clock.now_s += 3.0
    standing.progressed()
    assert standing.remaining_s == 4.0


def test_the_hint_is_made_at_the_bound_alone(standing: StandingWait, clock: Clock) -> None:
    made: list[float] = []

    def hint() -> str:
        made.append(clock.now_s)
        return "look there"

    standing.look(True, hint)
    clock.now_s += 3.9
    standing.look(True, hint)
    clock.now_s += 0.1
    with pytest.raises(WaitTimeoutError, match="look there$"):
        standing.look(True, hint)
    assert made == [9.0]
