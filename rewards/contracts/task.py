"""What a task is to the rest of Weir: a deterministic stream of problems and a verifier that never raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from learner_jax.runtime import WeirError

Split = Literal["train", "validation", "heldout"]

#: Why an answer could not be judged: "timeout": the verifier passed its deadline; "crashed": its process died;
#: "refused": it does not judge such an answer or problem; "error": it raised, or its score is no finite number;
#: "pending": nothing failed, its reward comes later.
Failure = Literal["timeout", "crashed", "refused", "error", "pending"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
Verdict = Literal["pass", "fail", Failure]

#: A score counts as a pass from here on; below 1 by less than float32 rounding.
PASS_SCORE = 1.0 - 1e-6

#: Bounds of scores and parts that a record of the queue can hold (`learner_jax.contracts`).
MAX_REWARD = 1e6
REWARD_BOUNDS = f"a finite number from {-MAX_REWARD:,.0f} to {MAX_REWARD:,.0f}"
MAX_PARTS = 64
MAX_PART_NAME = 128


class TaskError(WeirError, ValueError):
    """A task's settings or data don't work: says the task, what was expected and the setting to change."""

    can_heal = False


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Attributes:
      index: position in its split; together with the task's settings and seed it names the problem.
      question: text put in place of `{question}` in the prompt template.
      answer: reference answer; empty where the verifier works without one.
      metadata: whatever the verifier needs besides.
      prompt: what the policy is given, where that is not the prompt template with the question: text, or messages
        with role and content, which need a chat template.
      tools: definitions as OpenAI has them, for the chat template.
      source: label of the source that it comes from; "" where there is one only.
    """

    index: int
    question: str
    answer: str
    metadata: Mapping[str, Any]
    prompt: str | Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    source: str = ""


@dataclass(frozen=True)
class RewardRequest:
    """One answer to be scored.

    Attributes:
      response: decoded text of the sampled tokens, without special tokens.
      finish_reason: `stop` if the model ended its answer, `length` if the token budget did.
    """

    problem: Problem
    response: str
    finish_reason: str


@dataclass(frozen=True)
class RewardResult:
    """The verifier's word on one answer. A failed verdict has no score: it says nothing about the answer.

    Attributes:
      score: the reward, from -MAX_REWARD to MAX_REWARD; None if, and only if, the verdict is one of `FAILURES`.
      parts: named components, for people and metrics.
      verdict: `pass` from `PASS_SCORE` on, `fail` below; else why the answer was not judged.
      reasons: why it is not a pass; for a failed verdict, what went wrong.
      finding: the verifier's own word for the verdict, such as "unparseable"; empty where it has none.
    """

    score: float | None
    parts: Mapping[str, float]
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    finding: str = ""

    def __post_init__(self) -> None:
        if (self.score is None) != is_failure(self.verdict):
            raise ValueError(
                f"score {self.score} with verdict {self.verdict!r}: a judged answer has a score, a failed verdict none"
            )


def prompt_text(problem: Problem, template: str) -> str:
    """What the policy is given, for people; of messages, each after its role.

    Args:
      template: in which {question} stands for the question, where the problem has no prompt of its own.
    """
    match problem.prompt:
        case None:
            return template.replace("{question}", problem.question)
        case str():
            return problem.prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in problem.prompt)


def is_failure(verdict: Verdict) -> bool:
    """Whether the answer was not judged."""
    return verdict in FAILURES


class Task(Protocol):
    """A stream of problems with a verifier. Safe to call from several threads."""

    @property
    def version(self) -> str:
        """Provider and library version, e.g. `reasoning_gym/basic_arithmetic@0.1.25`."""

    def problem(self, split: Split, index: int) -> Problem:
        """The problem at `index` >= 0 of a split: the same in every process with the same settings and seed.

        `train` never ends (it repeats); `validation` and `heldout` hold distinct questions that are in no other split.

        Raises:
          TaskError: the split holds fewer distinct problems than `index` + 1.
        """

    def num_distinct(self, split: Split) -> int | None:
        """Number of distinct questions in a split, None where only generating them all would tell."""

    def target(self, problem: Problem) -> str:
        """Text to imitate in the supervised warm start.

        Raises:
          TaskError: the task has no reference answers.
        """

    def score(self, request: RewardRequest) -> RewardResult:
        """Judges an answer; whatever the answer is, it returns. May block up to the verifier's deadline."""

    def close(self) -> None:
        """Ends worker processes, if the task has any."""


def scored(
    score: float, parts: Mapping[str, float], *, reasons: tuple[str, ...] = (), finding: str = ""
) -> RewardResult:
    """The result of a verifier that worked; a failed verdict if its score or its parts are beyond what records hold."""
    if len(parts) > MAX_PARTS:
        return failed(f"the verifier gave {len(parts)} parts, expected at most {MAX_PARTS}")
    if long := next((name for name in parts if len(name) > MAX_PART_NAME), ""):
        return failed(
            f"the verifier gave a part {long[:40]!r}..., expected a name of at most {MAX_PART_NAME} characters"
        )
    wrong = {name: value for name, value in {"score": score, **parts}.items() if not is_reward(value)}
    if wrong:
        told = ", ".join(f"{name} {value}" for name, value in wrong.items())
        return failed(f"the verifier gave {told}, expected {REWARD_BOUNDS}")
    passed = score >= PASS_SCORE
    verdict: Verdict = "pass" if passed else "fail"
    return RewardResult(float(score), dict(parts), verdict, () if passed else reasons, finding)


def failed(reason: str, failure: Failure = "error") -> RewardResult:
    """The result of a verifier that failed itself: no score."""
    return RewardResult(None, {}, failure, (reason,))


def is_reward(value: float) -> bool:
    """Whether it can be a reward: finite, and of a size that records hold."""
    return -MAX_REWARD <= value <= MAX_REWARD
