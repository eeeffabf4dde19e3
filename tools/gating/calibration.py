"""How far a model's confidence can be believed: the expected calibration error of a suite, with bounds that hold.

The confidence of an answer is the probability that a fitted calibration gives it (`tools.confidence fit`), or, without
one, the geometric mean of its tokens' probabilities. The plug-in error over B bins (Guo et al. 2017, arXiv 1706.04599,
equation 3) is too high on average, since it adds up distances: by 0.045 for 600 answers of a model that is calibrated,
by 0.13 for 60, in 15 bins. A difference of two models inherits both biases, so neither the bootstrap of it nor a normal
bound holds. Here the upper bound is of the plug-in error, whose bias is on the safe side. The lower bound takes the
signs of the bins' gaps from one half of the problems and their sizes from the other: the mean of that is never above
the true error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from serving_bridge.confidence import Calibration, ScoreName, Sums, agreement, as_probability, score_of
from tools.gating.decisions import Bounds

_BINS = 15
_RESAMPLES = 400
#: A suite without a calibration of its own.
_RAW: ScoreName = "mean"


@dataclass(frozen=True)
class Believed:
    """One answer: how sure the model was, 0 to 1, and whether it was right."""

    problem: str
    confidence: float
    is_right: bool


def believed(samples: Sequence[Mapping[str, object]], calibration: Calibration | None) -> list[Believed]:
    """The judged answers whose log-probs are known.

    Args:
      samples: of scored.jsonl, with what was measured of each under "measured".
    """
    texts: dict[str, list[tuple[object, str]]] = {}
    for sample in samples:
        texts.setdefault(str(sample["problem"]), []).append((sample["sample"], str(sample["answer"])))
    found = []
    for sample in samples:
        name, told = str(sample["problem"]), sample["measured"]
        if sample["score"] is None or not isinstance(told, Mapping) or told.get("logprob") is None:
            continue
        sums = Sums(int(told["num_tokens"] or 0), float(told["logprob"]), float(told["least_logprob"]))
        others = [text for number, text in texts[name] if number != sample["sample"]]
        probability = _probability(sums, str(sample["answer"]), others, calibration)
        if probability is not None:
            found.append(Believed(name, probability, sample["verdict"] == "pass"))
    return found


def _probability(sums: Sums, answer: str, others: Sequence[str], calibration: Calibration | None) -> float | None:
    name = _RAW if calibration is None else calibration.score
    score = score_of(name, sums, agreement(answer, others))
    if score is None:
        return None
    return as_probability(name, score) if calibration is None else calibration.probability(score)


def error_bounds(
    answers: Sequence[Believed], clusters: Mapping[str, str], *, confidence: float, looks: int, seed: int = 0
) -> Bounds:
    """Expected calibration error of a model's answers, each bound at the confidence of one look.

    Args:
      clusters: problem -> its cluster; whole clusters are drawn.
    """
    gaps, counts = _gaps(answers, clusters)
    number, total = len(counts), float(counts.sum())
    error = float(np.abs(gaps.sum(0)).sum()) / total
    problems = len({one.problem for one in answers})
    if number < 4:
        return Bounds(error, -math.inf, math.inf, math.inf, problems, number)
    quantile = NormalDist().inv_cdf(1 - (1 - confidence) / looks)
    weights = _resamples(number, seed)
    drawn = np.abs(weights @ gaps).sum(1) / (weights @ counts)
    spread = float(drawn.std(ddof=1))
    half = np.arange(number) % 2
    signs = np.stack([np.sign(gaps[half == 1].sum(0)), np.sign(gaps[half == 0].sum(0))])
    known = (gaps * signs[half]).sum(1)
    mean = float(known.sum()) / total
    residuals = known - mean * counts
    deviation = math.sqrt(float(residuals @ residuals) * number / (number - 1)) / total
    low = max(0.0, mean - quantile * deviation)
    return Bounds(error, low, error + quantile * spread, spread, problems, number)


def difference_bounds(own: Bounds, other: Bounds) -> Bounds:
    """Bounds of candidate less stable; those given are at half the error that these may have (Bonferroni)."""
    return Bounds(
        own.value - other.value,
        own.low - other.high,
        own.high - other.low,
        math.hypot(own.error, other.error),
        min(own.num_problems, other.num_problems),
        min(own.num_clusters, other.num_clusters),
    )


def _resamples(number: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each resample: float64[resamples, clusters]."""
    drawn = np.random.default_rng(seed).integers(0, number, (_RESAMPLES, number))
    places = drawn + number * np.arange(_RESAMPLES)[:, None]
    return np.bincount(places.ravel(), minlength=_RESAMPLES * number).reshape(_RESAMPLES, number).astype(np.float64)


def _gaps(answers: Sequence[Believed], clusters: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """(confidence less truth, summed, float64[clusters, bins]; answers, float64[clusters])."""
    names = sorted({clusters[one.problem] for one in answers})
    place = {name: index for index, name in enumerate(names)}
    rows = np.array([place[clusters[one.problem]] for one in answers])
    values = np.array([one.confidence for one in answers])
    right = np.array([one.is_right for one in answers], np.float64)
    bins = np.minimum((values * _BINS).astype(int), _BINS - 1)
    gaps, counts = np.zeros((len(names), _BINS)), np.zeros(len(names))
    np.add.at(gaps, (rows, bins), values - right)
    np.add.at(counts, rows, 1.0)
    return gaps, counts
