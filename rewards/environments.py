"""What a dialog with the policy is to the rest of Weir: it begins with a problem, and every answer earns something.

An environment is free of state, deterministic, and never raises: whatever it must remember is in the state that it
hands out, so that episodes can run by the thousand, be broken off, and be played again with the same outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.protocol import Problem, Verdict


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
      reward: earned by this answer; finite.
      parts: named components, for people and metrics.
      verdict: of this answer; "error" if the environment itself failed.
      observation: what the policy is told next; None ends the episode.
      state: for the next answer.
    """

    reward: float
    parts: Mapping[str, float]
    verdict: Verdict
    observation: str | None
    state: EpisodeState


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
