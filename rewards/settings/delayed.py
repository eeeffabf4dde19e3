"""Settings of rewards that come later: how long answers wait for them, and what becomes of those without one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

#: What `task.reward` is set to.
DELAYED = "delayed"


class DelayedSettings(BaseModel):
    """How long a group of answers waits for its rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    window_s: float = Field(
        gt=0, le=31_536_000, description="seconds that a reward may take, from when its group is in the queue"
    )
    on_timeout: Literal["drop"] | float = Field(
        "drop",
        description='answers without a reward by then: "drop" leaves them out of their group; a number is their reward',
    )
    heldout_reward: str = Field(
        "",
        description="rows: judges held-out answers, whose score must be known at once; what task.reward may name else",
    )

    @field_validator("window_s", "on_timeout", mode="before")
    @classmethod
    def _whole_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value

    @field_validator("on_timeout")
    @classmethod
    def _is_a_reward(cls, value: str | float) -> str | float:
        if isinstance(value, float) and abs(value) > 1e6:
            raise ValueError(f'{value:g} is too large for a reward: expected "drop", or a number from -1e6 to 1e6')
        return value

    @property
    def timeout_score(self) -> float | None:
        """The reward of an answer without one; None where it is left out."""
        return self.on_timeout if isinstance(self.on_timeout, float) else None
