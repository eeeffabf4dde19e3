"""Settings of a task: which provider, which problems, how its problems divide into splits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class TaskSettings(BaseModel):
    """A task is a stream of problems with a verifier.

    `holdout_percent` of all problems, chosen by a hash of the question's text, are held out for evaluation and
    as many again for validation, so that every process agrees on the split and no held-out text is trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Literal["reasoning_gym", "keyword_story", "jsonl_math"]
    name: str = Field("", description="reasoning_gym: name of the dataset")
    path: str = Field("", description="jsonl_math: file of {question, answer} lines")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the provider")
    prompt_template: str = Field("{question}", description="text sent to the model; {question} is replaced")
    chat: bool = Field(False, description="wrap the prompt with the tokenizer's chat template")
    turns: int = Field(1, ge=1, description="answers that may be given to a problem, each but the first after feedback")
    turn_discount: float = Field(1.0, gt=0, le=1, description="factor on the reward for every turn after the first")
    feedback: str = Field(
        "That is not right. Try again.",
        description="said after a wrong answer; {reasons} stands for the verifier's, which may tell the right one",
    )
    num_problems: int = Field(1_000_000, gt=0, description="problems generated before the stream repeats")
    holdout_percent: int = Field(5, ge=1, le=45)
