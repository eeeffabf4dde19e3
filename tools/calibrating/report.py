"""A calibration fitted on one half of known answers and measured on the other; and all of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec

from serving_bridge.confidence import (
    METHODS,
    SCORES,
    Calibration,
    CalibrationError,
    Measured,
    Method,
    ScoreName,
    as_probability,
    fitted,
    measured,
    thresholds,
)
from tools.calibrating.known import KnownAnswer, halves, scores_of


@dataclass(frozen=True)
class Compared:
    """One score by one method, on answers that it was not fitted on.

    Attributes:
      before: the score as a probability, uncalibrated.
    """

    calibration: Calibration
    before: Measured
    after: Measured


def fitted_on(answers: Sequence[KnownAnswer], name: ScoreName, method: Method) -> Compared:
    """Fits on one half of the questions and measures on the other; the calibration holds what was measured.

    Raises:
      CalibrationError: the answers don't allow it.
    """
    fit, held = halves(answers)
    if not held:
        raise CalibrationError("no answers are left to measure on: give more questions")
    calibration = fitted(name, method, scores_of(fit, name), [answer.correct for answer in fit])
    scores, right = scores_of(held, name), [answer.correct for answer in held]
    raw = [as_probability(name, score) for score in scores]
    told = [calibration.probability(score) for score in scores]
    before, after = measured(raw, right), measured(told, right)
    report = {
        "before": asdict(before),
        "after": asdict(after),
        "thresholds": [asdict(one) for one in thresholds(told, right)],
    }
    return Compared(msgspec.structs.replace(calibration, held_out=report), before, after)


def compared(answers: Sequence[KnownAnswer]) -> list[Compared]:
    """Every score that the answers have, by every method. Choosing by this table uses up the half it measures on."""
    found = []
    for name in SCORES:
        has = bool(answers[0].samples) if name == "agreement" else bool(answers[0].logprobs)
        found += [fitted_on(answers, name, method) for method in METHODS if has]
    return found
