"""The tail of latency: bars that are fixed before answers come, and error rates of the test by exceedances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from serving_bridge.canary import (
    OBSERVATIONS,
    CanaryPolicy,
    LogSource,
    Look,
    MetricPolicy,
    Observation,
    ObservationLog,
    State,
    StepPolicy,
    bar_of,
    decide,
    exceeds,
    lower_bounds,
    upper_bounds,
)
from serving_bridge.database import MEMORY, open_database

MARGIN, ALPHA = 0.25, 0.1
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.exp(0.8 * rng.standard_normal(shape))


def pareto(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """With an infinite variance."""
    return 1 + rng.pareto(1.5, shape)


def one_in_ten_waits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Lognormal times, of which a tenth is three times as long."""
    return lognormal(rng, shape) * np.where(rng.random(shape) < 0.1, 3.0, 1.0)


def rejected(draw: Draw, canary: Draw, *, factor: float, margin: float, runs: int, looks: int = 30) -> float:
    """Share of runs in which the canary was ever found to be worse, with 40 answers of it a look and 120 of stable."""
    rng = np.random.default_rng(5)
    n, total = np.zeros((2, runs)), np.zeros((2, runs))
    bars, found = np.full(runs, np.inf), np.zeros(runs, bool)
    levels = np.full(runs, ALPHA / 2)
    for look in range(looks):
        busy = 1 + 0.5 * np.sin(look / 4)  # both arms, by the hour
        values = busy * factor * canary(rng, (runs, 40)), busy * draw(rng, (runs, 120))
        if look:
            for arm, (times, of_arm) in enumerate(zip(values, (1 + margin, 1.0), strict=True)):
                n[arm] += times.shape[1]
                total[arm] += (times > (bars * of_arm)[:, None]).sum(axis=1)
            least = lower_bounds("rate", n[0], total[0], total[0], levels)
            found |= least > upper_bounds("rate", n[1], total[1], total[1], levels)
        bars = np.quantile(values[1], 0.95, axis=1)
    return float(found.mean())


@pytest.mark.parametrize("draw", [lognormal, pareto], ids=lambda draw: draw.__name__)
def test_a_tail_that_is_slower_by_the_margin_is_taken_for_worse_at_most_as_often_as_allowed(draw: Draw) -> None:
    """At the boundary, at any of 30 looks, while times rise and fall by the hour; against a binomial's 99.9% bound."""
    runs = 600
    share = rejected(draw, draw, factor=1 + MARGIN, margin=MARGIN, runs=runs)
    assert share * runs <= stats.binom.ppf(0.999, runs, ALPHA)
    slower = rejected(draw, draw, factor=1 + MARGIN, margin=0.0, runs=100)
    assert slower > 3 * share, "without the margin the same canary is worse"


def test_a_heavier_tail_is_found_where_the_mean_is_within_its_margin() -> None:
    assert np.log(3.0) * 0.1 < np.log1p(0.15), "the mean of the logarithms is 11% up"
    assert rejected(lognormal, one_in_ten_waits, factor=1.0, margin=0.1, runs=60, looks=200) > 0.5


@pytest.mark.soak
@pytest.mark.parametrize("draw", [lognormal, pareto], ids=lambda draw: draw.__name__)
def test_the_error_rate_over_many_runs_and_looks(draw: Draw) -> None:
    runs = 20_000
    share = rejected(draw, draw, factor=1 + MARGIN, margin=MARGIN, runs=runs, looks=200)
    low, high = stats.binomtest(round(share * runs), runs).proportion_ci(method="wilson")
    print(f"{draw.__name__}: {share:.3%} ({low:.3%} to {high:.3%}) at alpha {ALPHA}")
    assert high <= ALPHA


def test_bars_and_exceedances() -> None:
    assert bar_of(list(range(99)), 0.95) is None
    assert bar_of(list(range(101)), 0.95) == 95.0
    assert [exceeds(value, 1.0, 0.25, "stable") for value in (0.9, 1.0, 1.1)] == [0.0, 0.0, 1.0]
    assert [exceeds(value, 1.0, 0.25, "canary") for value in (1.2, 1.3)] == [0.0, 1.0]
    assert [exceeds(value, 1.0, 0.25, "stable") for value in (None, "fast", float("nan"), True)] == [None] * 4
    assert exceeds(2.0, None, 0.25, "stable") is None


POLICY = CanaryPolicy(
    interval_s=60.0,
    holdout=0.5,
    metrics=(MetricPolicy(name="ttft_p95_s", margin=MARGIN),),
    steps=(StepPolicy(share=0.5, min_samples=10, min_time_s=0.0), StepPolicy(share=1.0, min_time_s=0.0, proof="all")),
)


def looked(canary_slower: float, looks: int) -> list[tuple[State, str, str]]:
    """(state, verdict, first reason) after each look, by observations as gateways write them."""
    database = open_database(MEMORY, schema=OBSERVATIONS)
    log, state, rng, found = ObservationLog(database), State(), np.random.default_rng(2), []
    try:
        for look in range(looks):
            for arm, version, factor in (("canary", 2, canary_slower), ("stable", 1, 1.0)):
                log.add(
                    Observation("ns", "answer", arm, version, "t", f"{arm}{look}-{n}", {"ttft_s": float(time)})
                    for n, time in enumerate(factor * lognormal(rng, (400,)))
                )
            seen = LogSource(log).seen(
                "ns", state.until, canary=2, stable=1, shadow=False, metrics=POLICY.metrics, bars=state.bars
            )
            counts = (seen.answers, seen.conversations, seen.dropped, dict(seen.covered), list(seen.cells))
            state, decision = decide(POLICY, state, Look(0.0, 60.0, seen.until, *counts, dict(seen.bars)))
            found.append((state, decision.verdict, decision.reasons[0]))
    finally:
        database.close()
    return found


def test_the_first_look_gives_a_bar_and_later_ones_are_compared_by_it() -> None:
    first, second, *_, last = looked(2.0, 6)
    assert first[1] == "hold"
    assert first[2] == "ttft_p95_s: 0 of 1 values", "nothing is compared without a bar"
    assert first[0].bars["ttft_p95_s"] == pytest.approx(np.exp(0.8 * 1.645), rel=0.2)
    assert second[0].bars != first[0].bars
    assert last[1] == "failure"
    assert last[2].startswith("ttft_p95_s is worse: more by at least")
    assert [verdict for _, verdict, _ in looked(1.0, 8)][1:3] == ["next", "hold"]
