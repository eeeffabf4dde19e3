"""Fits a calibration on scores of answers that are known to be right or wrong: Platt, isotonic or temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving_bridge.confidence.calibration import Calibration, CalibrationError, Method, as_probability, log_odds
from serving_bridge.confidence.scores import ScoreName

_MIN_ANSWERS = 20
_MAX_STEPS = 100
_TOLERANCE = 1e-10
#: added to the diagonal of the Hessian, as Lin et al. do
_RIDGE = 1e-12
_TEMPERATURES = (0.01, 100.0)
_GOLDEN = (5**0.5 - 1) / 2


def fitted(name: ScoreName, method: Method, scores: Sequence[float], correct: Sequence[bool]) -> Calibration:
    """The calibration of one score by one method.

    Args:
      scores, correct: of as many answers.

    Raises:
      CalibrationError: they are fewer than 20, or all right, or all wrong, or a score is not finite.
    """
    values, right = np.asarray(scores, np.float64), np.asarray(correct, bool)
    if len(values) < _MIN_ANSWERS:
        raise CalibrationError(f"{len(values)} answers to fit on, expected at least {_MIN_ANSWERS}")
    if not np.isfinite(values).all():
        raise CalibrationError("a score is not finite")
    if right.all() or not right.any():
        raise CalibrationError(f"all {len(values)} answers are {'right' if right.all() else 'wrong'}: expected both")
    match method:
        case "platt":
            slope, offset = _platt(values, right)
            return Calibration(name, method, len(values), slope=slope, offset=offset)
        case "temperature":
            return Calibration(name, method, len(values), temperature=_temperature(name, values, right))
        case "isotonic":
            corners, probabilities = _isotonic(values, right)
            return Calibration(name, method, len(values), scores=corners, probabilities=probabilities)


def _platt(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and offset (Platt 1999), by Newton's method with backtracking (Lin, Lin and Weng 2007, algorithm 1).

    Targets are smoothed as Platt has it: (N+ + 1) / (N+ + 2) for right answers, 1 / (N- + 2) for wrong ones. Scores
    are standardised first, which changes the path and not the optimum.
    """
    middle, spread = float(scores.mean()), float(scores.std()) or 1.0
    design = np.stack([(scores - middle) / spread, np.ones_like(scores)], axis=1)
    num_right = int(right.sum())
    targets = np.where(right, (num_right + 1) / (num_right + 2), 1 / (len(right) - num_right + 2))
    weights = np.array([0.0, np.log((num_right + 1) / (len(right) - num_right + 1))])
    loss = _cross_entropy(design @ weights, targets)
    for _ in range(_MAX_STEPS):
        probabilities = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (probabilities - targets)
        if np.abs(gradient).max() < _TOLERANCE * len(scores):
            break
        curvature = probabilities * (1 - probabilities)
        step = np.linalg.solve((design * curvature[:, None]).T @ design + _RIDGE * np.eye(2), -gradient)
        size = 1.0
        while size > _TOLERANCE:
            tried = weights + size * step
            new_loss = _cross_entropy(design @ tried, targets)
            if new_loss < loss + 1e-4 * size * float(gradient @ step):
                weights, loss = tried, new_loss
                break
            size /= 2
        else:
            break
    return float(weights[0] / spread), float(weights[1] - weights[0] * middle / spread)


def _temperature(name: ScoreName, scores: np.ndarray, right: np.ndarray) -> float:
    """The temperature of least cross-entropy (Guo et al. 2017, arXiv 1706.04599, section 4.2), by golden section.

    The loss is convex in the inverse temperature, so what is searched has one minimum.
    """
    odds = np.array([log_odds(as_probability(name, float(score))) for score in scores])
    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]

    def loss(inverse: float) -> float:
        return _cross_entropy(odds * inverse, right.astype(np.float64))

    while high - low > _TOLERANCE * high:
        left, middle = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, middle) if loss(left) <= loss(middle) else (left, high)
    return 2 / (low + high)


@dataclass
class _Block:
    """Neighbouring answers that get one probability."""

    first: float
    last: float
    right: float
    count: int

    @property
    def mean(self) -> float:
        return self.right / self.count


def _isotonic(scores: np.ndarray, right: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Corners of the rising step function of least squares, by pooling neighbours that fall (Ayer et al. 1955).

    Between two blocks the line is linear; a block of several scores has a corner at each of its ends.
    """
    blocks: list[_Block] = []
    for score in np.unique(scores):
        here = right[scores == score]
        blocks.append(_Block(float(score), float(score), float(here.sum()), len(here)))
        while len(blocks) > 1 and blocks[-2].mean >= blocks[-1].mean:
            last = blocks.pop()
            blocks[-1] = _Block(
                blocks[-1].first, last.last, blocks[-1].right + last.right, blocks[-1].count + last.count
            )
    corners: list[tuple[float, float]] = []
    for block in blocks:
        corners.append((block.first, block.mean))
        if block.last > block.first:
            corners.append((block.last, block.mean))
    return tuple(corner for corner, _ in corners), tuple(mean for _, mean in corners)


def _cross_entropy(odds: np.ndarray, targets: np.ndarray) -> float:
    """Sum of -t log p - (1 - t) log (1 - p) with p = sigmoid(odds), in nats."""
    return float(np.sum(np.logaddexp(0.0, odds) - targets * odds))
