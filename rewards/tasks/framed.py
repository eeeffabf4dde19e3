"""A task whose problems are asked with a system message, with tools, or by a prompt template of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.contracts import Problem, RewardRequest, RewardResult, Split, Task


class FramedTask:
    """Implements `rewards.contracts.Task` by another task, whose problems get a prompt where they have none.

    Args:
      template: in which {question} stands for the question.
      system: message before it; "" for none.
      tools: definitions as OpenAI has them.
    """

    def __init__(
        self,
        task: Task,
        *,
        template: str,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.inner = task
        self._template, self._system, self._tools = template, system, tuple(tools)

    @property
    def version(self) -> str:
        return self.inner.version

    def problem(self, split: Split, index: int) -> Problem:
        problem = self.inner.problem(split, index)
        if problem.prompt is not None:
            return problem
        return replace(problem, prompt=self._prompt(problem.question), tools=self._tools or problem.tools)

    def num_distinct(self, split: Split) -> int | None:
        return self.inner.num_distinct(split)

    def target(self, problem: Problem) -> str:
        return self.inner.target(problem)

    def score(self, request: RewardRequest) -> RewardResult:
        return self.inner.score(request)

    def close(self) -> None:
        self.inner.close()

    def _prompt(self, question: str) -> str | tuple[Mapping[str, Any], ...]:
        text = self._template.replace("{question}", question)
        if not self._system and not self._tools:
            return text
        system = ({"role": "system", "content": self._system},) if self._system else ()
        return (*system, {"role": "user", "content": text})
