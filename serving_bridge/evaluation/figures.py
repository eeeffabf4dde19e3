"""What an evaluation measured: the figures over the problems that were asked and judged, and what to know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from learner_jax.runtime import WeirError
from rewards.contracts import Problem, RewardResult
from serving_bridge.evaluation.verdicts import reason_text
from serving_bridge.vllm import Completion

#: share of answers without verdict from which an evaluation says that its figures are not to be trusted
_MANY = 0.1


class Prompts(Protocol):
    """How problems are shown to the policy; `serving_bridge.evaluation.PromptEncoder` is one."""

    max_prompt_tokens: int

    def text(self, problem: Problem) -> str:
        """The prompt, for people."""


class EvaluationError(WeirError, RuntimeError):
    """No skill can be told: nothing was asked, or nothing was judged; says why, and the setting to change."""

    can_heal = False


@dataclass(frozen=True)
class Sample:
    """One answer, for people to read.

    Attributes:
      score: None where the answer was not judged.
      verdict: as of `rewards.contracts.task.RewardResult`.
      reason: why it has this score, where the verifier says so.
      is_cut: whether it reached the longest length.
    """

    prompt: str
    answer: str
    expected: str
    score: float | None
    verdict: str
    reason: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Skill on held-out problems.

    Attributes:
      accuracy: share of the judged answers that the verifier passed.
      mean_score: mean of the verifier's scores of the same answers.
      num_problems: judged answers or episodes: what both are over. Problems are `num_wanted` altogether: these, the
        skipped ones, and those whose verdict failed.
      skipped: indices of problems that were not asked, since their prompts are too long.
      failed_verdicts: number of answers without verdict, by kind.
      failed_verdict_example: one of them; "" if there are none.
      num_cut: judged answers that were cut at the longest length.
      versions: oldest and newest policy version among the tokens; they differ if weights changed meanwhile.
      scores: of problem 0, 1, ...; None where it was skipped or not judged.
      samples: the first few answers.
      notes: what a reader of the figures must know, a sentence each.
      sources: of a task with several, by label: num_problems, accuracy and mean_score of the judged answers.
    """

    accuracy: float
    mean_score: float
    num_problems: int
    num_wanted: int
    skipped: tuple[int, ...]
    failed_verdicts: dict[str, int]
    failed_verdict_example: str
    num_cut: int
    versions: tuple[int, int]
    scores: tuple[float | None, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Examined:
    """What became of one problem that was asked.

    Attributes:
      text: the answer; of an episode, all that was said after the prompt.
      result: of an episode, the sum of its rewards, and the verdict on its last answer.
      is_cut: whether the last answer reached the longest length.
      versions: oldest and newest policy version among the sampled tokens; None where none are known.
    """

    problem: Problem
    text: str
    result: RewardResult
    is_cut: bool
    versions: tuple[int, int] | None


def versions_of(answers: Sequence[Completion]) -> tuple[int, int]:
    """Oldest and newest policy version among the tokens of one or more answers."""
    found = np.concatenate([answer.policy_version for answer in answers])
    return int(found.min()), int(found.max())


def evaluation_of(found: Sequence[Examined | None], encoder: Prompts, num_samples: int) -> Evaluation:
    """The figures of problem 0, 1, ...; None stands for a problem that was not asked.

    Raises:
      EvaluationError: none was asked, or none was judged.
    """
    asked = [one for one in found if one is not None]
    skipped = tuple(index for index, one in enumerate(found) if one is None)
    if not asked:
        raise EvaluationError(
            f"none of {len(found)} held-out problems could be asked: every prompt has more than "
            f"{encoder.max_prompt_tokens} tokens; raise rollout.max_prompt_tokens"
        )
    unjudged = [one for one in asked if one.result.score is None]
    judged = [one for one in asked if one.result.score is not None]
    example = ""
    if unjudged:
        first = unjudged[0]
        example = f"problem {first.problem.index}: {first.result.verdict}: {reason_text(first.result.reasons)}"
    if not judged:
        raise EvaluationError(f"none of {len(asked)} held-out answers was judged; {example}. Repair the verifier")
    versions = [one.versions for one in asked if one.versions is not None]
    num_cut = sum(one.is_cut for one in judged)
    kinds = dict(Counter(one.result.verdict for one in unjudged))
    return Evaluation(
        accuracy=sum(one.result.verdict == "pass" for one in judged) / len(judged),
        mean_score=sum(one.result.score for one in judged if one.result.score is not None) / len(judged),
        num_problems=len(judged),
        num_wanted=len(found),
        skipped=skipped,
        failed_verdicts={str(kind): number for kind, number in kinds.items()},
        failed_verdict_example=example,
        num_cut=num_cut,
        versions=(min(oldest for oldest, _ in versions), max(newest for _, newest in versions)),
        scores=tuple(None if one is None else one.result.score for one in found),
        samples=tuple(
            Sample(
                encoder.text(one.problem),
                one.text,
                one.problem.answer,
                one.result.score,
                one.result.verdict,
                reason_text(one.result.reasons) if one.result.reasons else "",
                one.is_cut,
            )
            for one in asked[:num_samples]
        ),
        notes=tuple(_notes(skipped, len(found), encoder.max_prompt_tokens, len(asked), kinds, example, num_cut)),
        sources=_by_source(judged),
    )


def _by_source(judged: Sequence[Examined]) -> dict[str, dict[str, float]]:
    """Skill by the source of the problems; nothing where the task has one source."""
    found: dict[str, list[RewardResult]] = {}
    for one in judged:
        if one.problem.source:
            found.setdefault(one.problem.source, []).append(one.result)
    return {
        label: {
            "num_problems": len(results),
            "accuracy": sum(result.verdict == "pass" for result in results) / len(results),
            "mean_score": sum(result.score or 0.0 for result in results) / len(results),
        }
        for label, results in found.items()
    }


def _notes(
    skipped: Sequence[int],
    num_wanted: int,
    max_prompt_tokens: int,
    num_asked: int,
    kinds: dict[Any, int],
    example: str,
    num_cut: int,
) -> list[str]:
    notes = []
    if skipped:
        notes.append(
            f"{len(skipped)} of {num_wanted} problems were not asked: their prompts have more than "
            f"{max_prompt_tokens} tokens (rollout.max_prompt_tokens); the first is problem {skipped[0]}"
        )
    if number := sum(kinds.values()):
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        many = ", too many to trust the figures: repair the verifier" if number > _MANY * num_asked else ""
        notes.append(
            f"{number} of {num_asked} answers have no verdict and count neither as right nor as wrong ({listed}; "
            f"{example}){many}"
        )
    if num_cut:
        notes.append(f"{num_cut} of {num_asked - number} judged answers were cut at the longest length")
    return notes
