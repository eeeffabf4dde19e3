"""Settings of supervised training on examples of one's own, before reinforcement learning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from learner_jax.contracts import Settings


class SupervisedSettings(Settings):
    """Supervised training on a file of examples: answers to imitate, or pairs of a better and a worse one."""

    data: str = Field(
        min_length=1,
        description="file of JSON lines, .csv, .tsv or .parquet, folder of a saved dataset, or package.module:name of "
        "a function that gives rows",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the function of data")
    loss: Literal["cross_entropy", "dpo"] = Field(
        "cross_entropy", description="imitate the answers; or DPO, on pairs of a chosen and a rejected answer"
    )
    question_column: str = Field("question", min_length=1, description="column of the question's text")
    answer_column: str = Field("answer", min_length=1, description="column of the answer; of pairs, of the chosen one")
    rejected_column: str = Field("rejected", min_length=1, description="dpo: column of the rejected answer")
    messages_column: str = Field(
        "", description="column of messages with role and content, in place of a question; needs task.chat"
    )
    system_column: str = Field("", description="column of the system message; needs task.chat")
    steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(gt=0, description="examples, or pairs, per step")
    learning_rate: float = Field(ge=1e-10, le=1, description="step size of AdamW in supervised training")
    beta: float = Field(0.1, gt=0, le=100, description="dpo: weight of the log-ratio to the start model")
    save_every: int = Field(50, gt=0, description="steps between checkpoints, from which a restart goes on")
    max_examples: int = Field(1_000_000, gt=0, le=2**31 - 1, description="rows that are read, from the first on")

    @model_validator(mode="after")
    def _answers_differ(self) -> SupervisedSettings:
        if self.loss == "dpo" and self.answer_column == self.rejected_column:
            raise ValueError(f"answer_column and rejected_column are both {self.answer_column!r}: nothing to compare")
        return self
