"""Raters that are set aside: those who flood, agree too much or take everything back; and honest ones, who are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from serving_bridge.feedback import Verdict, binomial_tail, signals
from serving_bridge.settings import FeedbackSettings

SETTINGS = FeedbackSettings()


def honest(seed: int, raters: int = 8, answers: int = 60, error: float = 0.15) -> list[Verdict]:
    """Raters who see the same quality, each with own mistakes: they agree far more than independent ones."""
    draws = np.random.default_rng(seed)
    good = draws.random(answers) < 0.6
    return [
        Verdict(f"r{rater}", f"a{number}", bool(good[number] ^ (draws.random() < error)))
        for rater in range(raters)
        for number in range(answers)
    ]


def aside(verdicts: list[Verdict]) -> dict[str, str]:
    return {one.rater: one.reason(SETTINGS).split(":")[0] for one in signals("acme", verdicts) if one.reason(SETTINGS)}


@pytest.mark.parametrize("least", [0, 1, 17, 30])
def test_the_tail_is_the_binomials(least: int) -> None:
    assert binomial_tail(least, 30, 0.3) == pytest.approx(stats.binom.sf(least - 1, 30, 0.3), rel=1e-9)


def test_honest_raters_stay() -> None:
    assert [aside(honest(seed)) for seed in range(20)] == [{}] * 20


def test_two_accounts_of_one_hand() -> None:
    draws = np.random.default_rng(0)
    odd = [bool(draws.random() < 0.5) for _ in range(120)]
    pair = [Verdict(name, f"a{number}", odd[number]) for name in ("x", "y") for number in range(120)]
    assert aside(honest(0, answers=120) + pair) == {"x": "collusion", "y": "collusion"}


@pytest.mark.parametrize("size", [3, 6])
def test_a_ring_does_not_hide_among_its_own_pairs(size: int) -> None:
    """Fifteen pairs of a ring of six agree on all answers: beside them, that any two do would look usual."""
    draws = np.random.default_rng(1)
    odd = [bool(draws.random() < 0.5) for _ in range(40)]
    ring = [Verdict(f"x{one}", f"a{number}", odd[number]) for one in range(size) for number in range(40)]
    assert aside(honest(2, answers=40) + ring) == {f"x{one}": "collusion" for one in range(size)}


def test_careful_raters_are_no_ring_beside_a_careless_one() -> None:
    for seed in range(10):
        draws = np.random.default_rng(seed)
        careless = [Verdict("z", f"a{number}", bool(draws.random() < 0.5)) for number in range(60)]
        assert aside(honest(seed, error=0.005) + careless) == {}


def test_flooding_and_flip_flop() -> None:
    flood = [Verdict("x", f"b{number}", True) for number in range(60 * 21)]
    flips = [Verdict("y", f"a{number % 6}", number // 6 % 2 == 0) for number in range(60)]
    assert aside(honest(0) + flood + flips) == {"x": "flooding", "y": "flip-flop"}
