"""What was played: the turns of an episode, with what the policy sampled and what it led to."""

from __future__ import annotations

from dataclasses import dataclass

from learner_jax.runtime import WeirError
from rewards.contracts import Outcome, Problem
from serving_bridge.vllm import Completion


class EpisodeError(WeirError, RuntimeError):
    """An episode can't go on: says why, and the setting to change."""


@dataclass(frozen=True)
class PlayedTurn:
    """One turn.

    Attributes:
      given: token ids before the answer: the prompt, or an observation; all of the context where a branch begins.
      begins: whether a branch begins: the answer does not go on from the turn before.
    """

    given: tuple[int, ...]
    answer: Completion
    outcome: Outcome
    begins: bool = False


@dataclass(frozen=True)
class Episode:
    problem: Problem
    turns: tuple[PlayedTurn, ...]

    @property
    def num_sampled(self) -> int:
        return sum(len(turn.answer) for turn in self.turns)

    @property
    def num_versions(self) -> int:
        """Policy versions that sampled it."""
        return len(set().union(*(turn.answer.policy_version.tolist() for turn in self.turns)))

    @property
    def is_judged(self) -> bool:
        """Whether its reward is known; a failed verdict is always the last one."""
        return self.turns[-1].outcome.reward is not None

    @property
    def is_pending(self) -> bool:
        """Whether its reward comes later."""
        return self.turns[-1].outcome.verdict == "pending"
