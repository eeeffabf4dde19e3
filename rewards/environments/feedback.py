"""Any verifiable task as a dialog: after a wrong answer the policy is told so and may try again."""

from __future__ import annotations

from dataclasses import replace

from rewards.contracts import EpisodeState, Outcome, Problem, Reply, RewardRequest, Task
from rewards.settings import TaskSettings

#: verifiers quote answers, which can be long
_MAX_REASON_CHARACTERS = 200


class FeedbackEnvironment:
    """The task's verifier as an environment; with one turn it is the task itself.

    The score of the last answer is the reward of the turn that gave it, discounted once for every turn before; wrong
    answers before it earn nothing, so that being right at once is never worth less than being right later. An answer
    that was cut by its budget ends the episode: it has no end after which anything could be said. So does a failed
    verdict: nobody knows what the policy should be told, nor what it has earned.

    Args:
      turns: most answers.
      discount: factor for every turn after the first.
      feedback: said after a wrong answer; `{reasons}` is replaced by the verifier's reasons. Several verifiers name the
        expected answer there, and a policy that is told it learns to repeat it.
    """

    def __init__(self, task: Task, *, turns: int = 1, discount: float = 1.0, feedback: str = "") -> None:
        self._task = task
        self._turns = turns
        self._discount = discount
        self._feedback = feedback

    @property
    def version(self) -> str:
        return self._task.version if self._turns == 1 else f"{self._task.version}+feedback{self._turns}"

    @property
    def max_turns(self) -> int:
        return self._turns

    def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem)

    def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        result = self._task.score(RewardRequest(state.problem, reply.text, reply.finish_reason))
        after = replace(state, turn=state.turn + 1)
        if result.score is None:
            return Outcome(None, {}, result.verdict, None, after, result.reasons)
        is_over = (
            reply.is_last or reply.finish_reason != "stop" or after.turn >= self._turns or result.verdict != "fail"
        )
        if not is_over:
            return Outcome(0.0, {}, result.verdict, self._observation(result.reasons), after)
        discount = self._discount**state.turn
        parts = dict(result.parts) if self._turns == 1 else {**result.parts, "turns": float(after.turn)}
        return Outcome(discount * result.score, parts, result.verdict, None, after)

    def _observation(self, reasons: tuple[str, ...]) -> str:
        return self._feedback.replace("{reasons}", "; ".join(reasons)[:_MAX_REASON_CHARACTERS])


def feedback(task: Task, settings: TaskSettings) -> FeedbackEnvironment:
    """The environment with the turns, the discount and the words that the settings ask for."""
    return FeedbackEnvironment(task, turns=settings.turns, discount=settings.turn_discount, feedback=settings.feedback)
