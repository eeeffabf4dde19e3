"""What training costs whole answers of users, on a simulated engine: its steps are as long as what is in them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from serving_bridge.vllm_plugin.user_delays import UserDelays

SLOWDOWN = 0.15
ALONE_S, EXTRA_S, TRAINING_S = 0.010, 0.0014, 0.016


@dataclass
class Answered:
    """One answer: when it was asked for, when it ended, and its tokens."""

    since_s: float
    tokens: int
    ended_s: float = 0.0


class Engine:
    """Training fills it; users' answers come at set times, and each step gives every answer in it one token.

    Attributes:
      trained: steps beside users that training was in, of all beside users.
    """

    def __init__(self, delays: UserDelays, answers: list[Answered]) -> None:
        self.delays, self.pending, self.now_s = delays, sorted(answers, key=lambda answer: answer.since_s), 0.0
        self.trained: list[bool] = []

    def run(self) -> None:
        left: dict[str, tuple[Answered, int]] = {}
        while self.pending or left:
            while self.pending and self.pending[0].since_s <= self.now_s:
                answer = self.pending.pop(0)
                left[str(answer.since_s)] = answer, answer.tokens
                self.delays.begin(str(answer.since_s), answer.since_s)
            self.delays.keep(left)
            trains = self.delays.allow(ALONE_S, EXTRA_S)
            seconds = (ALONE_S + trains * EXTRA_S) if left else TRAINING_S
            self.delays.took(self.now_s, self.now_s + seconds, trains * EXTRA_S / seconds if left else 1.0)
            self.now_s += seconds
            if left:
                self.trained.append(trains)
            for name, (answer, tokens) in list(left.items()):
                left[name] = answer, tokens - 1
                if tokens == 1:
                    answer.ended_s = self.now_s
                    del left[name]


def test_a_delay_at_the_beginning_is_made_up_for_before_training_joins() -> None:
    """It waits for 12 ms, which is 15% of 80 ms: training joins the ninth step."""
    engine = Engine(UserDelays(SLOWDOWN), [Answered(0.004, tokens=30)])
    engine.run()
    assert engine.trained.index(True) == 8
    assert sum(engine.trained) >= 20


@pytest.mark.parametrize("per_second", [1, 5, 20])
def test_no_answer_that_has_the_time_for_it_is_slowed_down_by_more_than_the_share(per_second: int) -> None:
    """A wait for training's step of up to 16 ms is 15% of 107 ms; shorter answers have no more than that wait."""
    draws, answers, now_s = random.Random(per_second), list[Answered](), 0.0
    for _ in range(200):
        now_s += draws.expovariate(per_second)
        answers.append(Answered(now_s, draws.choice([4, 16, 64])))
    engine = Engine(UserDelays(SLOWDOWN), list(answers))
    engine.run()
    for answer in answers:
        alone_s = answer.tokens * ALONE_S
        # One who comes while others are there waits for the rest of a step, too, which is no fault of training's.
        allowed_s = max(SLOWDOWN * (alone_s + ALONE_S), TRAINING_S) + ALONE_S
        assert answer.ended_s - answer.since_s <= alone_s + allowed_s + 1e-9
    assert sum(engine.trained) > 0.3 * len(engine.trained), "training would starve"


def test_steps_before_the_engine_took_a_request_in_count() -> None:
    delays = UserDelays(SLOWDOWN)
    delays.took(0.0, 1.0, 1.0)
    delays.took(1.0, 2.0, 0.25)
    delays.begin("u", 0.5)
    assert not delays.allow(3.2, 0.0)  # 0.5 + 0.25 s by training, 0.75 s without
    assert delays.allow(4.26, 0.0)
    delays.keep({})
    assert delays.allow(0.0, 0.0)


def test_without_any_slowdown_nothing_is_allowed_that_costs_something() -> None:
    delays = UserDelays(0.0)
    delays.begin("u", 0.0)
    assert delays.allow(1.0, 0.0)
    assert not delays.allow(1.0, 1e-9)
