"""Sample sizes, adjusted differences and values from logs, each against an independent computation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from serving_bridge.canary import (
    CanaryError,
    Logged,
    Question,
    Value,
    cuped,
    fixed_size,
    looking_size,
    lower_bounds,
    off_policy,
    plain,
    stratified,
    upper_bounds,
)


def test_a_fixed_size_has_the_power_that_it_promises() -> None:
    """2,000 simulated comparisons of that size: the one-sided z-test at 5% finds the effect in 80% of them."""
    question = Question("rate", 0.1, 0.0, 0.08, 0.03, 0.25)
    size = fixed_size(question, 0.05, 0.8)
    rng = np.random.default_rng(5)
    canary, stable = round(size * 0.25), round(size * 0.75)
    means = rng.binomial(canary, 0.18, 2000) / canary, rng.binomial(stable, 0.1, 2000) / stable
    errors = np.sqrt(means[0] * (1 - means[0]) / canary + means[1] * (1 - means[1]) / stable)
    found = ((means[0] - means[1] - 0.03) / errors > 1.6449).mean()
    assert 0.76 < found < 0.84


@pytest.mark.parametrize("effect", [0.0, 0.08])
def test_a_size_for_looking_is_where_expected_sums_just_decide(effect: float) -> None:
    question = Question("rate", 0.1, 0.0, effect, 0.03, 0.5)
    size = looking_size(question, 0.01)
    for factor, decides in ((1.01, True), (0.97, False)):
        n = np.full(2, size * factor / 2)
        sums = n * np.array([0.1 + effect, 0.1])
        level = np.full(2, 0.005)
        low, high = lower_bounds("rate", n, sums, sums, level), upper_bounds("rate", n, sums, sums, level)
        outside = low[0] - high[1] > 0.03 if effect else high[0] - low[1] < 0.03
        assert outside == decides
    assert size > fixed_size(question, 0.01, 0.5), "looking all the time costs something"
    at_margin = Question("rate", 0.1, 0.0, 0.03, 0.03, 0.5)
    assert (fixed_size(at_margin, 0.01, 0.8), looking_size(at_margin, 0.01)) == (math.inf, math.inf)


@pytest.mark.parametrize("change", [{"share": 1.0}, {"baseline": -0.1}, {"effect": 0.99}, {"margin": 0.0}])
def test_questions_that_are_none(change: dict[str, float]) -> None:
    with pytest.raises(CanaryError, match="expected means and margin"):
        Question(
            **({"kind": "rate", "baseline": 0.1, "deviation": 0.0, "effect": 0.1, "margin": 0.1, "share": 0.5} | change)
        )


def _population(n: int, *, seed: int, effect: float = 0.2) -> list[Value]:
    rng = np.random.default_rng(seed)
    before, strata = rng.normal(0, 1, n), rng.integers(0, 3, n)
    chosen = rng.random(n) < 0.4
    after = 0.9 * before + strata + effect * chosen + rng.normal(0, 0.3, n)
    rows = zip(chosen, after, before, strata, strict=True)
    return [Value(bool(c), float(a), float(b), f"s{s}") for c, a, b, s in rows]


def test_cuped_is_the_difference_of_residuals_and_narrower() -> None:
    values = _population(600, seed=1)
    x, y = np.array([one.before for one in values], float), np.array([one.value for one in values])
    slope = np.polyfit(x, y, 1)[0]
    left = y - slope * (x - x.mean())
    chosen = np.array([one.is_canary for one in values])
    found = cuped(values)
    assert found.value == pytest.approx(left[chosen].mean() - left[~chosen].mean())
    half = 1.959964 * math.sqrt(left[chosen].var(ddof=1) / chosen.sum() + left[~chosen].var(ddof=1) / (~chosen).sum())
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))
    assert found.high - found.low < 0.9 * (plain(values).high - plain(values).low)
    assert 0.2 < found.explained < 1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    hits = np.zeros(3)
    for seed in range(200):
        values = _population(150, seed=seed)
        hits += [way(values).low < 0.2 < way(values).high for way in (plain, cuped, stratified)]
    assert ((hits > 0.89 * 200) & (hits < 0.99 * 200 + 2)).all(), hits


def test_strata_are_weighted_by_their_size() -> None:
    rows = [("a", True, 1.0), ("a", True, 3.0), ("a", False, 1.0), ("a", False, 1.0)] * 3
    rows += [("b", True, 10.0), ("b", False, 8.0)] * 6
    found = stratified([Value(is_canary, value, None, stratum) for stratum, is_canary, value in rows])
    assert found.value == pytest.approx(0.5 * 1.0 + 0.5 * 2.0)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([Value(True, 1.0)] * 20, "0 of stable: expected at least 10"),
        ([Value(True, 1.0), Value(False, 1.0)] * 10, "CUPED needs the value before"),
        ([Value(True, 1.0, 2.0), Value(False, 1.0, 2.0)] * 10, "all are the same"),
        ([Value(True, 1.0, 0.0, "a"), Value(False, 1.0, 1.0, "a")] * 10 + [Value(True, 1.0, 0.5, "b")], "stratum 'b'"),
    ],
    ids=["one arm", "no history", "constant", "thin stratum"],
)
def test_comparisons_that_can_not_be_made(values: list[Value], match: str) -> None:
    with pytest.raises(CanaryError, match=match):
        cuped(values) if "stratum" not in match else stratified(values)


BEHAVIOR = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
TARGET = np.array([[0.2, 0.5, 0.3], [0.5, 0.25, 0.25]])
REWARD = np.array([[0.1, 0.6, 0.9], [1.0, 0.2, 0.4]])
WRONG = np.full((2, 3), 0.35)


def _exact(guesses: np.ndarray, behavior: np.ndarray, *, counts: int = 1000) -> list[Logged]:
    """Logs in which each context and action stands as often as the true behaviour has it."""
    rows = []
    for context, action in itertools.product(range(2), range(3)):
        value = float((TARGET[context] * guesses[context]).sum())
        logs = math.log(behavior[context, action]), math.log(TARGET[context, action])
        row = Logged(REWARD[context, action], *logs, float(guesses[context, action]), value)
        rows += [row] * round(counts * BEHAVIOR[context, action])
    return rows


def test_estimators_give_the_targets_value_where_they_must() -> None:
    """Over exact expectations: all with right propensities; doubly robust also where one of its two models is wrong."""
    truth = float((TARGET * REWARD).sum(1).mean())
    found = off_policy(_exact(WRONG, BEHAVIOR))
    assert found.doubly_robust is not None
    for one in (found.ips, found.self_normalised, found.doubly_robust):
        assert one.value == pytest.approx(truth)
        assert one.low < truth < one.high
    weights = np.repeat(TARGET / BEHAVIOR, np.round(1000 * BEHAVIOR).astype(int).ravel())
    assert found.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    wrong_propensities = off_policy(_exact(REWARD, np.full((2, 3), 1 / 3)))
    assert wrong_propensities.ips.value != pytest.approx(truth, abs=0.02)
    assert wrong_propensities.doubly_robust is not None
    assert wrong_propensities.doubly_robust.value == pytest.approx(truth)
    assert found.behavior.value == pytest.approx(float((BEHAVIOR * REWARD).sum(1).mean()))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "0 rows"),
        ([Logged(float("nan"), -1.0, -1.0)] * 200, "finite rewards"),
        ([Logged(1.0, -1.0, -1.0)] * 99, "effective sample size is 99.0 of 99 rows"),
        ([Logged(1.0, -1.0, -9.0)] * 5000 + [Logged(1.0, -9.0, -1.0)], "effective sample size is 1"),
        ([Logged(1.0, -90.0, -1.0)] * 200, "share no ground"),
        ([Logged(1.0, -1.0, -1.0, 0.5, 0.5)] * 100 + [Logged(1.0, -1.0, -1.0)] * 100, "100 of 200 rows have guess"),
    ],
    ids=["none", "nan", "few", "one row decides", "apart", "guesses in part"],
)
def test_it_refuses_to_speak_where_logs_say_nothing(rows: list[Logged], match: str) -> None:
    with pytest.raises(CanaryError, match=match):
        off_policy(rows)
