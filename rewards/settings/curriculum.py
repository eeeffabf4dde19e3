"""Settings of a curriculum: which problems are asked when, by a column of the data or by what the policy solves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class CurriculumSettings(BaseModel):
    """Problems by difficulty, or without those that the policy always or never solves."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    column: str = Field("", description="rows: column with a number that is larger for harder problems")
    stages: tuple[float, ...] = Field(
        (), description="column: most difficulty of each stage; after the last one come all problems"
    )
    stage_prompts: int = Field(0, ge=0, le=2**31 - 1, description="column: prompts of a stage; 0: one epoch of its own")
    measured: bool = Field(False, description="leave out problems whose groups of late were all right, or all wrong")
    groups: int = Field(
        1, ge=1, le=1000, description="measured: groups in a row, all right or all wrong, after which one is left out"
    )
    kept_share: float = Field(
        0.1,
        ge=0.001,
        le=1,
        description="measured: share of the prompts to be left out that is asked all the same, to look at them again",
    )

    @field_validator("stages", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(float(item) if type(item) is int and abs(item) < 2**31 else item for item in value)
        return value

    @field_validator("kept_share", mode="before")
    @classmethod
    def _whole_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value

    @model_validator(mode="after")
    def _fits_together(self) -> CurriculumSettings:
        if not self.column and not self.measured:
            raise ValueError(
                "name the column that says how hard a problem is, set measured = true, or remove the table"
            )
        if not self.column and (self.stages or self.stage_prompts):
            raise ValueError("stages are of a column: name it")
        if list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages are {list(self.stages)}, expected rising numbers")
        return self
