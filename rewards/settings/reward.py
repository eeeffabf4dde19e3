"""Settings of one reward of a weighted sum."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class RewardPart(BaseModel):
    """One reward of a weighted sum."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    use: str = Field(min_length=1, description="a verifier, package.module:name, or http(s)://... of a server")
    weight: float = Field(1.0, ge=-1e6, le=1e6, description="factor on its score; 0 shows it as a part only")
    name: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,50}$", description="of its part; made from `use` if empty")

    @field_validator("weight", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value

    @property
    def part(self) -> str:
        """Name of its part: `name`, else the last word of `use`."""
        return self.name or re.sub(r"[^A-Za-z0-9_-]+", "_", self.use.rpartition(":")[2]).strip("_")[-50:] or "reward"
