"""Training's share of an engine follows what its answers cost users, on a simulated engine whose costs are known."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean

import pytest

from serving_bridge.vllm_plugin.training_share import TrainingShare

SLOWDOWN = 0.15
ALONE_S = 0.010


class Engine:
    """Steps with one user: `ALONE_S` each, and so much more for each answer of training.

    Attributes:
      taken: (seconds, training answers) of each step.
    """

    def __init__(self, share: TrainingShare, per_answer_s: float, available: int = 1000) -> None:
        self.share, self.per_answer_s, self.available = share, per_answer_s, available
        self.noise: Callable[[], float] = lambda: 1.0
        self.taken: list[tuple[float, int]] = []

    def run(self, steps: int) -> None:
        for _ in range(steps):
            training = min(self.available, self.share.next_step())
            seconds = (ALONE_S + training * self.per_answer_s) * self.noise()
            self.taken.append((seconds, training))
            self.share.took(seconds, training)

    def slowdown(self, last: int) -> float:
        """Of the last steps, over users alone."""
        return fmean(seconds for seconds, _ in self.taken[-last:]) / ALONE_S - 1


@pytest.mark.parametrize("fitting", [1, 3, 10, 40, 200])
def test_training_gets_most_of_what_fits_and_no_more(fitting: int) -> None:
    engine = Engine(TrainingShare(SLOWDOWN, most=256), SLOWDOWN * ALONE_S / (fitting + 0.01))
    engine.run(30_000)
    assert engine.slowdown(20_000) <= SLOWDOWN
    got = fmean(training for _, training in engine.taken[-20_000:])
    assert got >= 0.5 * fitting  # a quarter of the steps is users' alone, and a limit is cut by 0.3


def test_what_is_too_much_even_alone_runs_seldom() -> None:
    engine = Engine(TrainingShare(SLOWDOWN, most=256), 0.5 * ALONE_S)
    engine.run(30_000)
    assert 0 < engine.slowdown(20_000) <= 0.08


def test_what_costs_nothing_is_limited_by_the_engine_alone() -> None:
    share = TrainingShare(SLOWDOWN, most=256)
    Engine(share, 0.0).run(1000)
    assert share.limit == 256


def test_without_any_slowdown_training_waits() -> None:
    engine = Engine(TrainingShare(0.0, most=256), 0.0)
    engine.run(5000)
    assert {training for _, training in engine.taken} == {0}


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    share = TrainingShare(SLOWDOWN, most=256)
    Engine(share, 0.0, available=3).run(5000)
    assert share.limit == 4  # doubled as long as all of it was in use


def test_it_follows_a_change_of_cost() -> None:
    engine = Engine(TrainingShare(SLOWDOWN, most=256), SLOWDOWN * ALONE_S / 50)
    engine.run(20_000)
    engine.per_answer_s = SLOWDOWN * ALONE_S / 5
    engine.run(2000)
    assert engine.slowdown(1000) <= SLOWDOWN
    engine.per_answer_s = SLOWDOWN * ALONE_S / 50
    engine.run(5000)
    assert fmean(training for _, training in engine.taken[-1000:]) > 15


def test_steps_that_something_else_holds_up_count_little() -> None:
    """One step in fifty takes thirty times as long, and all differ by a fifth."""
    draws = random.Random(0)
    engine = Engine(TrainingShare(SLOWDOWN, most=256), SLOWDOWN * ALONE_S / 20)
    engine.noise = lambda: draws.uniform(0.9, 1.1) * (30 if draws.random() < 0.02 else 1)
    engine.run(30_000)
    shares = [training for _, training in engine.taken[-20_000:]]
    assert fmean(shares) >= 7
    assert fmean(ALONE_S + n * engine.per_answer_s for n in shares) <= (1 + SLOWDOWN) * ALONE_S
