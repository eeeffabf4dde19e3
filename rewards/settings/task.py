"""Settings of a task: which provider, which problems, how its problems divide into splits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class TaskSettings(BaseModel):
    """A task is a stream of problems with a verifier.

    `holdout_percent` of all problems, chosen by a hash of the question's text, are held out for evaluation and
    as many again for validation, so that every process agrees on the split and no held-out text is trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    provider: Literal["reasoning_gym", "keyword_story", "jsonl_math"]
    name: str = Field("", description="reasoning_gym: name of the dataset")
    path: str = Field("", description="jsonl_math: file of {question, answer} lines")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the provider")
    prompt_template: str = Field("{question}", description="text sent to the model; {question} is replaced")
    chat: bool = Field(False, description="wrap the prompt with the tokenizer's chat template")
    turns: int = Field(
        1, ge=1, le=10_000, description="answers that may be given to a problem, each but the first after feedback"
    )
    turn_discount: float = Field(1.0, gt=0, le=1, description="factor on the reward for every turn after the first")
    feedback: str = Field(
        "That is not right. Try again.",
        description="said after a wrong answer; {reasons} stands for the verifier's, which may tell the right one",
    )
    num_problems: int = Field(1_000_000, gt=0, le=2**40, description="problems generated before the stream repeats")
    holdout_percent: int = Field(5, ge=1, le=45)

    @field_validator("turn_discount", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value

    @field_validator("prompt_template")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError(
                f"expected {{question}} in it, which stands for the problem, got {value!r}: every prompt would "
                f"be the same"
            )
        return value

    @model_validator(mode="after")
    def _says_something(self) -> TaskSettings:
        if self.turns > 1 and not self.feedback.strip():
            raise ValueError("feedback is empty, but turns above 1 come after it: say something, or set turns to 1")
        return self
