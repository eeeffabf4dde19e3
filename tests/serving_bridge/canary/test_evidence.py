"""Bounds against an oracle written from the paper, and their error rate when somebody looks all the time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving_bridge.canary.evidence import Kind, Sums, log_evidence, lower_bounds, upper_bounds


def _oracle(kind: Kind, values: list[float], mean: float) -> float:
    """The mixture, value by value, as products of its factors (Howard et al. 2021, theorem 4 and section 3.3)."""
    grid = [12.0 * 0.58**k for k in range(14)] if kind == "rate" else [0.95 * 0.58**k for k in range(12)]
    total = 0.0
    for bet in grid:
        wealth, seen = 1.0, 0.0
        for count, value in enumerate(values):
            guess = seen / count if count else 0.5
            if kind == "rate":
                wealth *= math.exp(bet * value) / (1 - mean + mean * math.exp(bet))
            else:
                wealth *= math.exp(bet * (value - mean) - (-math.log(1 - bet) - bet) * (value - guess) ** 2)
            seen += value
        total += wealth / len(grid)
    return math.log(total)


@pytest.mark.parametrize("kind", ["rate", "mean"])
def test_evidence_from_sums_is_the_product_of_its_factors(kind: Kind) -> None:
    values = [0.25, 1.0, 0.5, 0.75, 0.0, 1.0, 0.625]
    sums = Sums()
    for value in values:
        sums = sums.plus(1, value, value * value, guess=sums.mean if sums.n else 0.5)
    for mean in (0.1, 0.3, 0.7):
        got = log_evidence(kind, *(np.array([x]) for x in (sums.n, sums.total, sums.variation, mean)))
        assert got[0] == pytest.approx(_oracle(kind, values, mean), abs=1e-12)


@pytest.mark.parametrize("kind", ["rate", "mean"])
def test_bounds_are_where_the_evidence_is_just_enough(kind: Kind) -> None:
    n, total, variation, alpha = (np.array([x]) for x in (400.0, 100.0, 60.0, 0.01))
    low, high = lower_bounds(kind, n, total, variation, alpha), upper_bounds(kind, n, total, variation, alpha)
    assert 0 < low < 0.25 < high < 1
    assert log_evidence(kind, n, total, variation, low) == pytest.approx(math.log(100), abs=1e-6)
    assert log_evidence(kind, n, n - total, variation, 1 - high) == pytest.approx(math.log(100), abs=1e-6)
    nothing = np.zeros(1)
    assert lower_bounds(kind, nothing, nothing, nothing, alpha) == pytest.approx(0, abs=1e-6)
    assert upper_bounds(kind, nothing, nothing, nothing, alpha) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("rate", "rare"), ("rate", "uniform"), ("rate", "moving"), ("mean", "narrow"), ("mean", "moving")],
)
def test_looking_after_every_batch_errs_at_most_as_often_as_said(kind: Kind, name: str) -> None:
    """1,500 streams, 60 looks each, alpha = 0.1: the share that ever excludes the truth, with its Wilson bound."""
    streams, looks, batch, alpha = 1500, 60, 20, 0.1
    rng = np.random.default_rng(7)
    sums = np.zeros((3, streams))
    truth_total, wrong = 0.0, np.zeros(streams, dtype=bool)
    for look in range(looks):
        mean = {"rare": 0.02, "uniform": 0.5, "narrow": 0.3}.get(name, 0.2 if look < 30 else 0.6)
        match name:
            case "rare" | "moving" if kind == "rate":
                values = (rng.random((batch, streams)) < mean).astype(float)
            case "uniform":
                values = rng.random((batch, streams))
            case _:
                values = np.clip(rng.beta(6 * mean, 6 * (1 - mean), (batch, streams)), 0, 1)
        guess = np.where(sums[0] > 0, sums[1] / np.maximum(sums[0], 1), 0.5)
        sums += np.stack([np.full(streams, batch), values.sum(0), ((values - guess) ** 2).sum(0)])
        truth_total += batch * mean
        running = np.full(streams, truth_total / sums[0, 0])
        wrong |= log_evidence(kind, *sums, running) >= math.log(1 / alpha)
        wrong_above = log_evidence(kind, sums[0], sums[0] - sums[1], sums[2], 1 - running) >= math.log(1 / alpha)
        assert wrong_above.mean() < 0.13
    share, z = wrong.mean(), 2.58
    low = (share + z**2 / (2 * streams) - z * math.sqrt(share * (1 - share) / streams + z**2 / (4 * streams**2))) / (
        1 + z**2 / streams
    )
    assert low <= alpha, f"{share:.3f} of the streams excluded the truth"
    if name in ("rare", "narrow"):  # the others have less variance than the bound must allow for
        assert share > 0, "the bound is so wide that it never errs: it would decide nothing"


def test_evidence_grows_where_the_mean_is_higher() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(2000) < 0.05
    n, total = np.array([2000.0]), np.array([float(values.sum())])
    assert lower_bounds("rate", n, total, total, np.array([1e-4])) > 0.02
    latencies = np.clip(rng.normal(0.4, 0.07, 3000), 0, 1)
    sums = Sums().plus(3000, latencies.sum(), (latencies**2).sum(), guess=0.4)
    low = lower_bounds("mean", *(np.array([x]) for x in (sums.n, sums.total, sums.variation)), np.array([1e-4]))
    assert low > 0.39, "values that vary little are known well: rates' bound would be far below"
