"""What users' answers had in a run's steps: their share, reward and staleness, apart from those of rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving_bridge.telemetry import Record
from tools.reporting.figures import RunHistory, steps_in_order, values


@dataclass(frozen=True)
class OnlineFigures:
    """Of the answers of users that steps trained on.

    Attributes:
      steps: that had any.
      token_share: of all sampled tokens of the steps.
      reward: mean over the answers; None where none was judged.
      staleness_mean, staleness_max: versions that their oldest tokens lagged.
    """

    steps: int
    groups: int
    answers: int
    token_share: float
    reward: float | None
    staleness_mean: float
    staleness_max: int


def online_figures(steps: Sequence[Record]) -> OnlineFigures | None:
    """The figures of `step` events; None where no step had an answer of a user."""
    own = [record for record in steps if record.get("online_answers")]
    if not own:
        return None
    answers = math.fsum(values(own, "online_answers"))
    judged = [record for record in own if record.get("online_reward") is not None]
    num_judged = math.fsum(values(judged, "online_answers"))
    tokens = math.fsum(values(steps, "num_tokens"))
    return OnlineFigures(
        steps=len(own),
        groups=int(math.fsum(values(own, "online_groups"))),
        answers=int(answers),
        token_share=math.fsum(values(own, "online_tokens")) / tokens if tokens else 0.0,
        reward=_weighted(judged, "online_reward") / num_judged if num_judged else None,
        staleness_mean=_weighted(own, "online_staleness_mean") / answers,
        staleness_max=int(max(values(own, "online_staleness_max"), default=0)),
    )


def online_summary(history: RunHistory) -> dict[str, Any] | None:
    """The same of a whole run, for `summary.json`."""
    found = online_figures(steps_in_order(history))
    return None if found is None else asdict(found)


def _weighted(records: Sequence[Record], key: str) -> float:
    """The sum of a mean over answers, each record weighing as many as it has."""
    return math.fsum(float(record.get(key) or 0.0) * record["online_answers"] for record in records)
