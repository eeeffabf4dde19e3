"""What a dialog with the policy is to the rest of Weir: it begins with a problem, and every answer earns something.

There are two protocols. An `Environment` is free of state, deterministic, and never raises: whatever it must remember
is in the state that it hands out, so that episodes can be broken off and played again with the same outcome. An
`AsyncEnvironment` may wait: for tools, for a model that plays the user, for a server. What it raises, and what takes
too long, is a failed verdict: the episode is no sample.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from rewards.contracts.messages import Message, ToolDefinition
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
      raw: decoded with special tokens, which mark the tool calls of some models, but for the one that ended it.
    """

    text: str
    finish_reason: str
    is_last: bool
    raw: str = ""

    @property
    def marked(self) -> str:
        """The text that tool calls are read from."""
        return self.raw or self.text


@dataclass(frozen=True)
class Outcome:
    """What an answer led to.

    Attributes:
      reward: earned by this answer; finite. None if, and only if, the verdict is a failure.
      parts: named components, for people and metrics.
      verdict: of this answer; a failure if the verifier, or the environment itself, failed. It ends the episode: what
        the whole of it earns can't be known any more.
      observation: what the policy is told next: text, or messages; None ends the episode. No messages at all: an
        `ObservingEnvironment` says them in `observe`.
      state: for the next answer.
      reasons: of a failure, what went wrong.
      earned_at: turn that earned the reward, from 0, where a later one pays it; None for the turn of this answer.
    """

    reward: float | None
    parts: Mapping[str, float]
    verdict: Verdict
    observation: str | tuple[Message, ...] | None
    state: EpisodeState
    reasons: tuple[str, ...] = ()
    earned_at: int | None = None

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


class AsyncEnvironment(Protocol):
    """Plays episodes by coroutines, each on the event loop of one rollout worker; several may run at the same time.

    Every call has `rollout.reward_timeout_s`. What one raises, `TimeoutError` included, fails the verdict.
    """

    @property
    def version(self) -> str:
        """Names whatever the rewards depend on."""

    @property
    def max_turns(self) -> int:
        """Most answers of one episode."""

    @property
    def tools(self) -> Sequence[ToolDefinition]:
        """What the policy may call; shown with every prompt."""

    async def reset(self, problem: Problem) -> EpisodeState:
        """The state before the first answer; the prompt is made of the problem."""

    async def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        """Takes an answer: what it earned, and whether the episode goes on."""

    async def close(self, state: EpisodeState) -> None:
        """Frees what an episode holds. Called once for each `reset`, with the latest state, however it ends."""


class ObservingEnvironment(AsyncEnvironment, Protocol):
    """An `AsyncEnvironment` with outcomes that leave open what the policy is told next: their observation is `()`."""

    async def observe(self, state: EpisodeState) -> str | Sequence[Message]:
        """What the policy is told next; nothing ends the episode."""


def is_async(environment: Environment | AsyncEnvironment) -> TypeGuard[AsyncEnvironment]:
    """Whether an environment is played by coroutines."""
    return inspect.iscoroutinefunction(environment.step)
