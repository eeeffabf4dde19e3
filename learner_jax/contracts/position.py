"""Where a run stands: what a checkpoint says beside its arrays, and what a restart goes on from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """Where a run stands, saved with the state in the same commit. Producer: `Ledger`; consumers: it and the queue.

    Attributes:
      completed_steps: optimizer steps of reinforcement learning.
      trained_version: policy version that these weights were published as, -1 if not yet.
      prompt_cursor: index of the next prompt that was never dispatched.
      consumed_trajectory_ids: trained on since the queue last confirmed that it forgot them.
      kl_coefficient: where the adaptive controller of the KL stands.
      steps_of_versions: (policy version, `completed_steps` that it was published at), the recent ones in order.
      life: number of the learner's life that saved this; a later life of the same run has a larger one.
    """

    completed_steps: int
    trained_version: int
    prompt_cursor: int
    consumed_trajectory_ids: tuple[str, ...]
    kl_coefficient: float = 0.0
    steps_of_versions: tuple[tuple[int, int], ...] = ()
    life: int = 0

    @property
    def consumed_group_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.rsplit("/", 1)[0] for name in self.consumed_trajectory_ids))
