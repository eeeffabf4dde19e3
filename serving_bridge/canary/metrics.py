"""The metrics that a canary is judged by: their range, scale, and which direction is worse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from learner_jax.contracts import quoted
from serving_bridge.canary.errors import PolicyError
from serving_bridge.canary.evidence import Kind

Worse = Literal["up", "down", "both"]
Source = Literal["answers", "scores", "feedback"]
#: Metrics of this prefix are scores that somebody gives to answers: reward models, judges.
SCORE_PREFIX = "score."


@dataclass(frozen=True)
class Measure:
    """One metric's values.

    Attributes:
      kind: `rate` for values of 0 and 1, `mean` for all others.
      is_log: whether the logarithm is compared: a margin of 0.1 then means 10%.
      low, high: values beyond are taken for these. The closer, the fewer samples a decision takes.
      worse: in which direction; `both` for a value that is to stay.
      in_shadow: whether answers that no user sees have it, and have it in the same way.
      tail_of, quantile: of a metric of the upper tail, the metric whose tail it is, and from where on. Its values are
        whether one is beyond a bar (`serving_bridge.canary.tails`).
    """

    kind: Kind
    is_log: bool
    low: float
    high: float
    worse: Worse
    source: Source
    in_shadow: bool
    tail_of: str = ""
    quantile: float = 0.0

    def scaled(self, value: object) -> float | None:
        """A value as a number in [0, 1]; None if it is no finite number."""
        if isinstance(value, bool):
            value = float(value)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        clipped = min(max(float(value), self.low), self.high)
        if self.is_log:
            return math.log(clipped / self.low) / math.log(self.high / self.low)
        return (clipped - self.low) / (self.high - self.low)

    def scaled_margin(self, margin: float) -> float:
        """A margin on the scale of `scaled`. Relative where `is_log`: 0.1 is a tenth more, or a tenth less.

        Of a tail it is 0: the margin is in the canary's bar.
        """
        if self.tail_of:
            return 0.0
        if self.is_log:
            return math.log1p(margin) / math.log(self.high / self.low)
        return margin / (self.high - self.low)

    def told(self, difference: float) -> float:
        """A difference on the scale of `scaled` as people read it: absolute, or relative where `is_log`."""
        if self.is_log:
            return math.expm1(min(difference * math.log(self.high / self.low), 700.0))
        return difference * (self.high - self.low)


def _rate(source: Source = "answers", *, in_shadow: bool = True) -> Measure:
    return Measure("rate", False, 0.0, 1.0, "up", source, in_shadow)


#: name -> what it is. Times of shadow answers are not compared: these have the lowest priority.
MEASURES: dict[str, Measure] = {
    "error": _rate(),
    "guard": _rate(),
    "refusal": _rate(),
    "ttft_s": Measure("mean", True, 0.02, 20.0, "up", "answers", False),
    "ttft_p95_s": Measure("rate", False, 0.0, 1.0, "up", "answers", False, "ttft_s", 0.95),
    "tokens_per_s": Measure("mean", True, 1.0, 1000.0, "down", "answers", False),
    "length": Measure("mean", True, 4.0, 4096.0, "both", "answers", True),
    "distinct": Measure("mean", False, 0.0, 1.0, "down", "answers", True),
    "thumbs_down": _rate("feedback", in_shadow=False),
    "regenerated": _rate("feedback", in_shadow=False),
}


def measure_of(name: str, low: float | None, high: float | None) -> Measure:
    """The metric of this name, with another range where one is given.

    Raises:
      PolicyError: there is no such metric, or the range is none.
    """
    if name in MEASURES:
        found = MEASURES[name]
    elif name.startswith(SCORE_PREFIX) and len(name) > len(SCORE_PREFIX):
        if low is None or high is None:
            raise PolicyError(f"metric {quoted(name, 60)}: expected low and high, between which its scores lie")
        found = Measure("mean", False, low, high, "down", "scores", True)
    else:
        raise PolicyError(
            f"metric {quoted(name, 60)} is unknown; expected one of {', '.join(MEASURES)}, or {SCORE_PREFIX}NAME for "
            f"scores that something of yours gives to answers"
        )
    found = replace(found, low=found.low if low is None else low, high=found.high if high is None else high)
    if found.tail_of and (low is not None or high is not None):
        raise PolicyError(f"metric {name}: low and high are of no use for a quantile; expected none")
    if not found.low < found.high or (found.is_log and found.low <= 0):
        least = "above 0" if found.is_log else "below high"
        raise PolicyError(f"metric {name}: low is {found.low} and high {found.high}; expected a low {least}")
    return found
