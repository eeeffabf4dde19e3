"""Whether a task has enough problems for what is asked of it, and how many of its prompts fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rewards.contracts import Split, Task
from serving_bridge.checks.findings import Finding
from serving_bridge.checks.prompt_survey import Survey, golden_prompts, survey
from serving_bridge.evaluation import PromptEncoder

_LIMIT = "rollout.max_prompt_tokens"
#: Any observation: what is looked at is the chat template around it.
_SHORT = "No."


def length_findings(found: Survey, *, limit: int, answer: int) -> Iterator[Finding]:
    """How many prompts are too long, and which limits would take them all.

    Args:
      limit: `rollout.max_prompt_tokens`.
      answer: tokens that the answer and further turns may take.
    """
    skipped = found.too_long(limit)
    if not skipped:
        return
    longest = max(found.lengths)
    every = skipped == len(found.lengths)
    looked_at = f"{len(found.lengths)} {found.split} prompts" + ("" if found.is_whole else " that were looked at")
    yield Finding(
        _LIMIT,
        f"at least {longest if not every else min(found.lengths)}, the {'shortest' if every else 'longest'} prompt",
        f"{limit}: {'all' if every else skipped} of {looked_at} are longer and would be skipped",
        f"raise it; for prompts of {longest} tokens learner.sequence_length and serving.max_model_len need "
        f"{longest + answer}",
        "error" if every else "warning",
    )


def problem_findings(
    task: Task,
    encoder: PromptEncoder,
    *,
    asked: Mapping[Split, tuple[str, int]],
    answer: int,
    train_sample: int,
    limit_s: float,
) -> Iterator[Finding]:
    """Whether each split has as many problems as are asked for, and how many of its prompts are too long.

    Args:
      asked: by split, the setting that asks and how many it asks for.
      answer: tokens that the answer and further turns may take.
      train_sample: train problems that are looked at.
      limit_s: bound on the look at one split.
    """
    limit = encoder.max_prompt_tokens
    for split, (setting, number) in asked.items():
        found = survey(task, encoder, split, most=number, limit_s=limit_s)
        if found.available is not None and found.available < number:
            yield Finding(
                setting,
                f"at most {found.available}, the {split} problems that there are",
                str(number),
                "lower it, raise task.holdout_percent, or widen the task (task.options, a larger file)",
            )
        yield from length_findings(found, limit=limit, answer=answer)
    if train_sample:
        found = survey(task, encoder, "train", most=train_sample, limit_s=limit_s)
        yield from length_findings(found, limit=limit, answer=answer)


def golden_findings(task: Task, encoder: PromptEncoder, count: int) -> Iterator[Finding]:
    """Nothing where enough validation prompts fit. Raises `TaskError` where they don't."""
    golden_prompts(task, encoder, count)
    yield from ()


def supervised_findings(task: Task, encoder: PromptEncoder, *, sequence_length: int, sample: int) -> Iterator[Finding]:
    """Whether the answers of a supervised start fit into a sequence. Raises `TaskError` if the task has none."""
    lengths = []
    for index in range(sample):
        problem = task.problem("train", index)
        lengths.append(len(encoder.supervised(problem, task.target(problem))[0]))
    if lengths and max(lengths) > sequence_length:
        yield Finding(
            "learner.sequence_length",
            f"at least {max(lengths)}, the longest of {len(lengths)} prompts with the answer to imitate",
            str(sequence_length),
            "raise it",
        )


def dialog_findings(encoder: PromptEncoder, *, feedback: str | None, turns: int) -> Iterator[Finding]:
    """Whether what is said after a wrong answer can be said.

    Args:
      feedback: `task.feedback`; None where an environment of the user's own says something else.

    Raises:
      TokenizerError: the chat template can't show it.
    """
    if turns == 1:
        return
    length = len(encoder.observation(feedback or _SHORT, after=encoder.tokenizer.eos_ids[0]))
    if feedback is not None and not 0 < length <= encoder.max_prompt_tokens:
        yield Finding(
            "task.feedback",
            f"1 to {encoder.max_prompt_tokens} tokens ({_LIMIT})",
            f"{length} tokens",
            f"shorten it, or raise {_LIMIT}",
        )
