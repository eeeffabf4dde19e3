"""How long a task's actual prompts are: which problems would be skipped, and whether enough are left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rewards.contracts import Split, Task, TaskError
from serving_bridge.evaluation import PromptEncoder

#: Validation problems that are looked at for golden prompts.
_GOLDEN_TRIES = 2000
#: A model's log-probs begin with the second token.
_MIN_GOLDEN = 2


@dataclass(frozen=True)
class Survey:
    """Prompts of one split.

    Attributes:
      lengths: tokens of each prompt that was looked at.
      available: problems in the split; None where more were not looked for.
      is_whole: whether all problems of the split were looked at.
    """

    split: Split
    lengths: Sequence[int]
    available: int | None
    is_whole: bool

    def too_long(self, limit: int) -> int:
        """Prompts of more than `limit` tokens."""
        return sum(length > limit for length in self.lengths)


def survey(
    task: Task,
    encoder: PromptEncoder,
    split: Split,
    *,
    most: int,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Survey:
    """Looks at the first `most` prompts of a split, or as many as it comes to within `limit_s`.

    Raises:
      TaskError: the split has no problem at all.
      TokenizerError: a prompt can't be made.
    """
    until = clock() + limit_s
    distinct = task.num_distinct(split)
    wanted = most if distinct is None else min(most, distinct)
    lengths: list[int] = []
    available = distinct
    for index in range(wanted):
        if clock() >= until and lengths:
            break
        try:
            problem = task.problem(split, index)
        except TaskError:
            if index == 0:
                raise
            available = index
            break
        lengths.append(len(encoder.tokens(problem)))
    return Survey(split, lengths, available, is_whole=len(lengths) == available)


def golden_prompts(task: Task, encoder: PromptEncoder, count: int) -> list[list[int]]:
    """The first `count` validation prompts that fit and have log-probs.

    Raises:
      TaskError: there are fewer; names learner.num_golden.
    """
    found: list[list[int]] = []
    seen = 0
    for prompt in _validation_prompts(task, encoder):
        seen += 1
        if prompt is not None and len(prompt) >= _MIN_GOLDEN:
            found.append(prompt)
        if len(found) == count:
            return found
    raise TaskError(
        f"learner.num_golden is {count}, but of {seen} validation problems {len(found)} make prompts of "
        f"{_MIN_GOLDEN} to {encoder.max_prompt_tokens} tokens: raise rollout.max_prompt_tokens or "
        f"task.holdout_percent, or lower learner.num_golden"
    )


def _validation_prompts(task: Task, encoder: PromptEncoder) -> Iterator[list[int] | None]:
    distinct = task.num_distinct("validation")
    for index in range(_GOLDEN_TRIES if distinct is None else min(distinct, _GOLDEN_TRIES)):
        try:
            problem = task.problem("validation", index)
        except TaskError:
            return
        yield encoder.encode(problem)
