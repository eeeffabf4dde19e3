"""Held-out evaluations amid training, one at a time, whenever the fleet has reached the step for the next one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict

from rewards.contracts import Task
from serving_bridge.evaluation.figures import EvaluationError
from serving_bridge.evaluation.single_answers import SingleAnswers
from serving_bridge.evaluation.skill import Play, PromptEncoder, evaluate
from serving_bridge.routing import ReplicaRow
from serving_bridge.settings import EvaluationSettings, RolloutSettings
from serving_bridge.vllm import ReplicaError, VllmClient


class HeldOut:
    """Evaluates on single replicas: skill belongs to a version, and each serves its own.

    Args:
      scoring: threads in which answers are scored.
      play: plays the problems as episodes; each gets one answer if None.
    """

    def __init__(
        self,
        task: Task,
        encoder: PromptEncoder,
        settings: EvaluationSettings,
        rollout: RolloutSettings,
        *,
        scoring: Executor,
        log: Callable[..., None],
        play: Play | None = None,
    ) -> None:
        self._task, self._encoder = task, encoder
        self._settings, self._log = settings, log
        self._play = play or single_answers(task, encoder, settings, rollout, scoring=scoring)
        self._next_step = 0

    def is_due(self, step: int) -> bool:
        """Whether weights of this step are to be evaluated; the next ones are, `evaluation.every` steps later."""
        if not self._settings.every or step < self._next_step:
            return False
        self._next_step = (step // self._settings.every + 1) * self._settings.every
        return True

    async def evaluate(self, client: VllmClient, replica: ReplicaRow) -> None:
        """Writes the skill of what a replica serves; if it fails, that it did."""
        try:
            result = await evaluate(
                client,
                self._task,
                self._encoder,
                self._play,
                num_problems=self._settings.num_problems,
                num_samples=self._settings.num_samples_shown,
            )
        except (ReplicaError, EvaluationError) as error:
            self._log("retry", error=f"held-out evaluation at version {replica.version}: {error}")
            return
        self._log(
            "heldout",
            version=replica.version,
            step=replica.step,
            num_problems=result.num_problems,
            accuracy=result.accuracy,
            mean_score=result.mean_score,
            versions=result.versions,
            num_skipped=len(result.skipped),
            num_cut=result.num_cut,
            failed_verdicts=result.failed_verdicts,
            samples=[asdict(sample) for sample in result.samples],
            **({"sources": result.sources} if result.sources else {}),
        )


def single_answers(
    task: Task,
    encoder: PromptEncoder,
    settings: EvaluationSettings,
    rollout: RolloutSettings,
    *,
    scoring: Executor | None = None,
) -> SingleAnswers:
    """One answer to each problem, as a run's settings ask for it."""
    return SingleAnswers(
        task,
        encoder,
        max_tokens=settings.max_tokens or rollout.max_tokens,
        timeout_s=rollout.request_timeout_s,
        temperature=settings.temperature,
        scoring=scoring,
        reward_timeout_s=rollout.reward_timeout_s,
    )
