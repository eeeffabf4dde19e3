"""From a score to the probability that the answer is right: a fitted map, and the file that holds it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np

from learner_jax.runtime import PlainFileError, WeirError, printable, read_plain, write_whole
from serving_bridge.confidence.scores import ScoreName

Method = Literal["platt", "isotonic", "temperature"]
METHODS: tuple[Method, ...] = get_args(Method)
_MAX_BYTES = 4 << 20
#: probabilities keep this distance from 0 and 1, so that their log-odds are finite
_EDGE = 1e-6


class CalibrationError(WeirError, ValueError):
    """A calibration can't be fitted, read or written."""

    can_heal = False


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="weir-confidence-1", tag_field="schema"):
    """A fitted map; written by `tools.confidence`, read by the gateway.

    Attributes:
      slope, offset: "platt": sigmoid(slope * score + offset).
      temperature: "temperature": sigmoid(logit(p) / temperature), p being the score as a probability.
      scores, probabilities: "isotonic": corners of a rising line, linear between them, flat beyond.
      num_fitted: answers that it was fitted on.
      held_out: what was measured on other answers; for people.
    """

    score: ScoreName
    method: Method
    num_fitted: Annotated[int, msgspec.Meta(ge=1)]
    slope: float = 0.0
    offset: float = 0.0
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    scores: tuple[float, ...] = ()
    probabilities: tuple[Annotated[float, msgspec.Meta(ge=0, le=1)], ...] = ()
    held_out: dict[str, Any] = {}

    def __post_init__(self) -> None:
        values = (self.slope, self.offset, self.temperature, *self.scores, *self.probabilities)
        if not all(map(math.isfinite, values)):
            raise ValueError("a value is not finite")
        if self.method == "isotonic":
            rises = all(a <= b for a, b in zip(self.probabilities, self.probabilities[1:], strict=False))
            if not self.scores or len(self.scores) != len(self.probabilities) or not rises:
                raise ValueError("isotonic: expected as many scores as probabilities, at least one, and none falling")
            if any(a >= b for a, b in zip(self.scores, self.scores[1:], strict=False)):
                raise ValueError("isotonic: expected rising scores")

    def probability(self, score: float) -> float:
        """Probability that an answer of this score is right, within 0 to 1."""
        match self.method:
            case "platt":
                return sigmoid(self.slope * score + self.offset)
            case "temperature":
                return sigmoid(log_odds(as_probability(self.score, score)) / self.temperature)
            case "isotonic":
                return float(np.interp(score, self.scores, self.probabilities))


def as_probability(name: ScoreName, score: float) -> float:
    """A score as a probability before any calibration: exp of those in nats, agreement as it is."""
    return score if name == "agreement" else math.exp(min(score, 0.0))


def log_odds(probability: float) -> float:
    """The logit, of a probability kept a little away from 0 and 1."""
    kept = min(max(probability, _EDGE), 1 - _EDGE)
    return math.log(kept / (1 - kept))


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
      CalibrationError: there is none that can be used.
    """
    told = printable(str(path))[:300]
    try:
        return msgspec.json.decode(read_plain(path.parent, path.name, max_bytes=_MAX_BYTES), type=Calibration)
    except FileNotFoundError:
        raise CalibrationError(f"{told} is missing; `python -m tools.confidence fit` makes it") from None
    except (PlainFileError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CalibrationError(f"{told} holds no calibration: {printable(str(error))[:200]}") from None


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Replaces the file by atomic rename. Raises `CalibrationError`."""
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n")
    except OSError as error:
        raise CalibrationError(f"{printable(str(path))[:300]} can't be written: {error.strerror or error}") from None
