"""What a dialog with the policy is to the rest of Weir: it begins with a problem, and every answer earns something.

An environment is free of state, deterministic, and never raises: whatever it must remember is in the state that it
hands out, so that episodes can run by the thousand, be broken off, and be played again with the same outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.contracts.task import Problem, Verdict, is_failure


@dataclass(frozen=True)
class EpisodeState:
    """What an environment knows of an episode between two answers.

    Attributes:
      turn: number of answers given so far.
      memory: the environment's own; not changed by anyone.
    """

    problem: Problem
    turn: int = 0
    memory: Any = None


@dataclass(frozen=True)
class Reply:
    """One answer of the policy.

    Attributes:
      text: decoded, without special tokens.
      finish_reason: "stop" if the policy ended its answer, "length" if the budget did.
      is_last: there is no room for another turn, whatever comes.
    """

    text: str
    finish_reason: str
    is_last: bool


@dataclass(frozen=True)
class Outcome:
    """What an answer led to.

    Attributes:
      reward: earned by this answer; finite. None if, and only if, the verdict is a failure.
      parts: named components, for people and metrics.
      verdict: of this answer; a failure if the verifier, or the environment itself, failed. It ends the episode: what
        the whole of it earns can't be known any more.
      observation: what the policy is told next; None ends the episode.
      state: for the next answer.
      reasons: of a failure, what went wrong.
    """

    reward: float | None
    parts: Mapping[str, float]
    verdict: Verdict
    observation: str | None
    state: EpisodeState
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        failed = is_failure(self.verdict)
        if (self.reward is None) != failed:
            raise ValueError(f"reward {self.reward} with verdict {self.verdict!r}: a failed verdict has none")
        if failed and self.observation is not None:
            raise ValueError(f"an observation after the verdict {self.verdict!r}: a failed verdict ends the episode")


class Environment(Protocol):
    """Plays episodes. Safe to call from several threads."""

    @property
    def version(self) -> str:
        """Names whatever the rewards depend on."""

    @property
    def max_turns(self) -> int:
        """Most answers of one episode."""

    def reset(self, problem: Problem) -> EpisodeState:
        """The state before the first answer; the prompt is made of the problem."""

    def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        """Takes an answer. May block up to the verifier's deadline."""
