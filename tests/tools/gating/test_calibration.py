"""The expected calibration error of a gate: its value against another computation, its bounds against known truths."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from serving_bridge.confidence import Calibration, calibration_error
from serving_bridge.safety import Checker
from serving_bridge.settings import SafetySettings
from tools.gating.calibration import Believed, believed, difference_bounds, error_bounds
from tools.gating.decisions import Bounds
from tools.gating.measures import values_of

NUM_ANSWERS = 300
LIMIT = 0.1


def answers(generator: np.random.Generator, shift: float, count: int = NUM_ANSWERS) -> list[Believed]:
    """Of a model whose confidence is its chance of being right, and `shift` more."""
    chances = np.clip(generator.beta(3, 2, count), 0.02, 0.7)
    right = generator.random(count) < chances
    told = zip(chances + shift, right, strict=True)
    return [Believed(f"p{at}", float(confidence), bool(is_right)) for at, (confidence, is_right) in enumerate(told)]


def alone(given: list[Believed]) -> dict[str, str]:
    return {one.problem: one.problem for one in given}


def bounds(given: list[Believed], confidence: float = 0.95) -> Bounds:
    return error_bounds(given, alone(given), confidence=confidence, looks=1)


def test_the_value_is_the_plug_in_error() -> None:
    given = answers(np.random.default_rng(0), 0.1)
    confidences, right = np.array([(one.confidence, one.is_right) for one in given]).T
    assert bounds(given).value == pytest.approx(calibration_error(confidences, right.astype(bool)), abs=1e-12)


def test_the_bounds_hold_the_truth_and_a_model_at_the_limit_seldom_passes() -> None:
    """A constant shift that leaves no bin with gaps of both signs: the true error is the shift."""
    generator = np.random.default_rng(1)
    found = [bounds(answers(generator, LIMIT)) for _ in range(60)]
    # Each is to hold in 95%; 60 draws of that stay at 87% or above with probability 0.99.
    assert np.mean([one.high >= LIMIT for one in found]) >= 0.87
    assert np.mean([one.low <= LIMIT for one in found]) >= 0.87
    assert np.mean([one.low for one in found]) > 0.02, "and they say something"
    assert np.mean([one.high for one in found]) < 0.2


def test_a_difference_is_not_believed_for_the_bias_of_the_better_one() -> None:
    """A calibrated stable version measures 0.06 and more; a plain difference would let a worse candidate pass."""
    generator = np.random.default_rng(2)
    passed, plain = 0, 0
    for _ in range(30):
        stable, candidate = (bounds(answers(generator, shift), 0.975) for shift in (0.0, LIMIT))
        passed += difference_bounds(candidate, stable).high < LIMIT
        plain += candidate.value - stable.value < LIMIT - 0.02
    assert passed <= 3
    assert plain > 20, "which this test would see"


def test_whole_clusters_are_drawn() -> None:
    """Ten copies of each answer in one cluster say no more than one."""
    given = answers(np.random.default_rng(3), LIMIT, 60)
    copies = [Believed(f"{one.problem}-{n}", one.confidence, one.is_right) for one in given for n in range(10)]
    clusters = {one.problem: one.problem.split("-")[0] for one in copies}
    single = bounds(given)
    grouped = error_bounds(copies, clusters, confidence=0.95, looks=1)
    assert grouped.value == pytest.approx(single.value)
    assert grouped.error == pytest.approx(single.error, rel=0.2)
    assert bounds(copies).error < single.error / 2


def test_three_answers_bound_nothing() -> None:
    given = answers(np.random.default_rng(4), 0.0, 3)
    assert (bounds(given).low, bounds(given).high) == (-math.inf, math.inf)


def sample(number: int, verdict: str, logprob: float | None, **more: Any) -> dict[str, Any]:
    told = {"num_tokens": 2, "seconds": 1.0 + number, "logprob": logprob, "least_logprob": logprob}
    fields = {"problem": "a", "sample": number, "answer": "x", "score": 1.0, "verdict": verdict, "measured": told}
    return fields | more


def test_confidence_is_the_mean_probability_of_the_tokens_or_what_a_calibration_says() -> None:
    given = [
        sample(0, "pass", 2 * math.log(0.8)),
        sample(1, "fail", 2 * math.log(0.6)),
        sample(2, "pass", None),  # an endpoint that tells no log-probs
        sample(3, "error", -1.0, score=None),
    ]
    assert [(one.confidence, one.is_right) for one in believed(given, None)] == [
        (pytest.approx(0.8), True),
        (pytest.approx(0.6), False),
    ]
    flat = Calibration("mean", "platt", 10, slope=0.0, offset=0.0)
    assert [one.confidence for one in believed(given, flat)] == [0.5, 0.5]
    agreeing = Calibration("agreement", "isotonic", 10, scores=(0.0, 1.0), probabilities=(0.0, 0.9))
    assert [one.confidence for one in believed(given, agreeing)] == [0.9, 0.9]
    assert values_of("brier", {}, given, Checker(SafetySettings())) == {
        "a": pytest.approx((0.2**2 + 0.6**2) / 2),
    }


def test_latencies_are_means_over_a_problems_answers() -> None:
    given = [sample(0, "pass", -1.0), sample(1, "fail", -1.0), sample(2, "fail", -1.0, measured=None)]
    checker = Checker(SafetySettings())
    assert values_of("seconds", {}, given, checker) == {"a": 1.5}
    assert values_of("seconds_per_token", {}, given, checker) == {"a": 0.75}
    assert json.dumps(given)
