"""Settings of a task: which provider, which problems, how its problems divide into splits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rewards.settings.episode import EpisodeSettings


def names_file(data: str) -> bool:
    """Whether `task.data` is a file's path; otherwise it names a function."""
    return "/" in data or data.endswith((".jsonl", ".json"))


class TaskSettings(BaseModel):
    """A task is a stream of problems with a verifier.

    `holdout_percent` of all problems, chosen by a hash of the question's text, are held out for evaluation and
    as many again for validation, so that every process agrees on the split and no held-out text is trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    provider: str = Field(
        min_length=1,
        description="reasoning_gym, keyword_story, jsonl_math, rows (own data and reward), or package.module:name",
    )
    name: str = Field("", description="reasoning_gym: name of the dataset")
    path: str = Field("", description="jsonl_math: file of {question, answer} lines")
    data: str = Field("", description="rows: JSONL file, or package.module:name of a function that gives rows")
    question_column: str = Field("question", min_length=1, description="rows: column of the question's text")
    answer_column: str = Field("answer", description='rows: column of the reference answer; "" if there is none')
    reward: str = Field("", description="rows: exact, math, or package.module:name of a function (prompt, answer, row)")
    environment: str = Field(
        "feedback",
        min_length=1,
        description="feedback, tools, user_simulator, agent, or package.module:name of a class",
    )
    episode: EpisodeSettings = EpisodeSettings()
    score_timeout_s: float = Field(5.0, gt=0, le=3600, description="seconds; an answer not scored by then has no score")
    score_processes: int = Field(2, ge=1, le=256, description="processes that score answers, one each at a time")
    score_confined: bool = Field(
        True, description="own reward or environment: answers are scored without files, network and programs"
    )
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
    holdout_percent: int = Field(
        5, ge=1, le=45, description="percent of all problems held out for evaluation; as many again are for validation"
    )

    @field_validator("turn_discount", "score_timeout_s", mode="before")
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
    def _episodes_have_turns(self) -> TaskSettings:
        if self.environment in ("tools", "user_simulator") and (self.turns < 2 or not self.chat):
            raise ValueError(
                f'environment "{self.environment}" needs turns of 2 or more and chat = true, got turns = {self.turns} '
                f"and chat = {str(self.chat).lower()}"
            )
        if self.environment == "agent" and (not self.episode.agent or not self.chat):
            raise ValueError(
                f'environment "agent" needs episode.agent, a function (base_url, row), and chat = true, got '
                f"{self.episode.agent!r} and chat = {str(self.chat).lower()}"
            )
        if self.environment == "tools" and not self.episode.tools:
            raise ValueError('environment "tools" needs some: set episode.tools, e.g. ["calculator"]')
        if self.environment == "user_simulator" and not self.episode.user_url:
            raise ValueError('environment "user_simulator" needs episode.user_url: an address, or "fleet"')
        return self

    @model_validator(mode="after")
    def _says_something(self) -> TaskSettings:
        if self.turns > 1 and not self.feedback.strip():
            raise ValueError("feedback is empty, but turns above 1 come after it: say something, or set turns to 1")
        return self
