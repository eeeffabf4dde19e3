"""Settings of advantages: the estimator, the parts of the reward, credit by turn."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from learner_jax.contracts import Settings
from learner_jax.settings.doors import ESTIMATORS, OTHER_ESTIMATORS, EstimatorName


class PartSettings(Settings):
    """How one part of the reward counts where parts are normalised apart."""

    weight: float = Field(1.0, ge=-1e6, le=1e6, description="of the part, normalised within its group")
    clip: tuple[float, float] | None = Field(None, description="bounds of the part before that")
    gate: bool = Field(False, description="without weight: answers for which it is 0 or less have 0 in all other parts")

    @field_validator("clip", mode="before")
    @classmethod
    def _arrays_too(cls, value: Any) -> Any:
        return tuple(float(bound) for bound in value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> PartSettings:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip is {list(self.clip)}, expected [low, high] with low below high")
        if self.gate and self.clip is not None:
            raise ValueError("a gate has no clip: it counts as open above 0")
        return self


class AdvantageSettings(Settings):
    """How rewards become advantages; `losses.advantages` and `losses.returns` cite each paper."""

    estimator: EstimatorName = Field(
        "grpo",
        description=f'one of {ESTIMATORS}; or a function of your own, from the rewards of a group: "module:name"',
    )
    parts: dict[str, PartSettings] = Field(
        {},
        description="parts of the reward that are normalised apart within their group, then added (GDPO); the reward's "
        "own sum counts no more. With reinforce_pp the sum is normalised over the batch, with dr_grpo it is not",
    )
    credit: Literal["outcome", "turn"] = Field(
        "outcome",
        description="estimators of a group: one advantage for a whole dialog, or one for each turn, from the rewards "
        "of it and of those behind it, discounted by turn_discount",
    )
    segments: Literal["token", "turn"] = Field("token", description="what one decision is, for gae and vtrace")
    discount: float = Field(1.0, gt=0, le=1, description="per token, environment tokens included; gae and vtrace")
    turn_discount: float = Field(1.0, gt=0, le=1, description="further discount where one turn follows another")
    trace_decay: float = Field(1.0, ge=0, le=1, description="lambda of gae and vtrace")
    clip_rho: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=True,
        description="vtrace: bound of the ratio in the temporal difference and gradient; inf for none",
    )
    clip_c: float = Field(
        1.0, gt=0, allow_inf_nan=True, description="vtrace: bound of the ratio in the traces; inf for none"
    )
    turn_ratio: Literal["product", "geometric_mean"] = Field(
        "product", description="vtrace by turn: how a turn's token ratios become one; the mean is biased, not vanishing"
    )
    whiten: bool = Field(False, description="gae: normalise over the whole batch; costs one more forward pass")

    @model_validator(mode="after")
    def _parts_are_normalised_once(self) -> AdvantageSettings:
        if self.parts and (self.estimator not in ("reinforce_pp", "dr_grpo") or self.credit == "turn"):
            raise ValueError(
                f'parts are for estimator = "reinforce_pp" or "dr_grpo" with credit = "outcome", got '
                f"{self.estimator!r} and {self.credit!r}: others would normalise or divide the sum another way"
            )
        if self.parts and all(part.gate for part in self.parts.values()):
            raise ValueError("parts has gates alone: name a part that gives a reward")
        return self

    @model_validator(mode="after")
    def _turns_are_compared_within_groups(self) -> AdvantageSettings:
        if self.credit == "turn" and self.estimator in OTHER_ESTIMATORS:
            also = '; segments = "turn" gives credit by turn there' if self.uses_values else ""
            raise ValueError(
                f'credit = "turn" compares turns within a group, and {self.estimator} does not: set estimator to grpo, '
                f"dr_grpo, rloo or one of your own{also}"
            )
        return self

    @property
    def uses_values(self) -> bool:
        return self.estimator in ("gae", "vtrace")

    @property
    def has_group_baseline(self) -> bool:
        """True of estimators that compare an answer with the others of its group alone."""
        return self.estimator in ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")

    @property
    def compares_groups(self) -> bool:
        """True of estimators that normalise over the answers of the whole batch."""
        return self.estimator in ("reinforce_pp", "reinforce_pp_baseline")
