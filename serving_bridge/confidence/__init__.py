"""How sure an answer is: scores of its log-probs, calibrated on answers whose truth is known."""

from serving_bridge.confidence.calibration import (
    METHODS,
    Calibration,
    CalibrationError,
    Method,
    as_probability,
    read_calibration,
    write_calibration,
)
from serving_bridge.confidence.fitting import fitted
from serving_bridge.confidence.measuring import (
    Measured,
    Threshold,
    area_under_curve,
    calibration_error,
    measured,
    thresholds,
)
from serving_bridge.confidence.scores import SCORES, ScoreName, Sums, agreement, score_of

__all__ = [
    "METHODS",
    "SCORES",
    "Calibration",
    "CalibrationError",
    "Measured",
    "Method",
    "ScoreName",
    "Sums",
    "Threshold",
    "agreement",
    "area_under_curve",
    "as_probability",
    "calibration_error",
    "fitted",
    "measured",
    "read_calibration",
    "score_of",
    "thresholds",
    "write_calibration",
]
