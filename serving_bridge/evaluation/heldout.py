"""Held-out evaluations amid training, one at a time, whenever the fleet has reached the step for the next one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict

from rewards.contracts import Task
from serving_bridge.evaluation.skill import EvaluationError, PromptEncoder, evaluate
from serving_bridge.routing import ReplicaRow
from serving_bridge.settings import EvaluationSettings, RolloutSettings
from serving_bridge.vllm import ReplicaError, VllmClient


class HeldOut:
    """Evaluates on single replicas: skill belongs to a version, and each serves its own.

    Args:
      scoring: threads in which answers are scored.
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
    ) -> None:
        self._task, self._encoder = task, encoder
        self._settings, self._rollout = settings, rollout
        self._scoring = scoring
        self._log = log
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
                num_problems=self._settings.num_problems,
                max_tokens=self._settings.max_tokens or self._rollout.max_tokens,
                num_samples=self._settings.num_samples_shown,
                timeout_s=self._rollout.request_timeout_s,
                temperature=self._settings.temperature,
                scoring=self._scoring,
                reward_timeout_s=self._rollout.reward_timeout_s,
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
