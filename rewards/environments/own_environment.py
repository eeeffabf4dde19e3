"""A user's class as an environment: it is played in processes that can be killed, and its errors are verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rewards.contracts import EpisodeState, Outcome, Problem, Reply, ToolDefinition, scored
from rewards.environments.own_tools import OwnTools, tools_of_class
from rewards.sandbox import ENVIRONMENT, Verified, VerifierError, VerifierPool, printable, to_json, user_pool
from rewards.settings import TaskSettings
from rewards.tools import parse_calls

#: keeps the ids of calls apart that are made in different turns
_CALLS_PER_TURN = 64


class OwnEnvironment:
    """Plays a class with `reset(row)` and `step(state, answer)`; implements `rewards.contracts.Environment`.

    The rewards of all its turns count, each where it was earned. An answer that was cut ends the episode, as the last
    turn does, whatever the class says then. An answer that calls tools of the class goes to these, not to `step`.

    Raises:
      TaskError, DoorError: the class can't be used.
    """

    def __init__(self, settings: TaskSettings, *, task_version: str) -> None:
        self._name = settings.environment
        self._turns = settings.turns
        self._version = f"{task_version}+{ENVIRONMENT.version(self._name)}:{self._turns}"
        self._pool = environment_pool(
            settings, deadline_s=settings.score_timeout_s, num_workers=settings.score_processes
        )
        self._form = settings.episode.call_format
        self.tools: Sequence[ToolDefinition] = tools_of_class(ENVIRONMENT.load(self._name), self._name)
        self._schemas = {tool.name: tool.parameters for tool in self.tools}
        self._own_tools = OwnTools(self.tools, self._pool, settings.episode)

    @property
    def version(self) -> str:
        return self._version

    @property
    def max_turns(self) -> int:
        return self._turns

    def reset(self, problem: Problem) -> EpisodeState:
        """The class's own `reset` runs with the first step: it may take its time."""
        return EpisodeState(problem)

    def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        after = replace(state, turn=state.turn + 1)
        is_over = reply.is_last or reply.finish_reason != "stop" or after.turn >= self._turns
        if self.tools and not is_over:
            parsed = parse_calls(reply.marked, self._form, first=_CALLS_PER_TURN * state.turn, schemas=self._schemas)
            if parsed.calls:
                return self._own_tools.run(parsed.calls, after)
        try:
            verified = played(self._pool, state.problem, reply.text, state.memory)
        except VerifierError as error:
            return Outcome(None, {}, error.failure, None, after, (f"task.environment {self._name!r}: {error}",))
        result = scored(verified.judged_score, {printable(name): value for name, value in verified.parts.items()})
        observation = None if is_over or result.score is None else verified.observation
        after = replace(after, memory=verified.state)
        return Outcome(result.score, result.parts, result.verdict, observation, after, result.reasons)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


def environment_pool(settings: TaskSettings, *, deadline_s: float, num_workers: int) -> VerifierPool:
    """Processes that play the class that the settings name; raises what `rewards.sandbox.user_pool` does."""
    return user_pool(
        "rewards.sandbox.environment_class",
        settings.environment,
        confined=settings.score_confined,
        deadline_s=deadline_s,
        num_workers=num_workers,
    )


def played(pool: VerifierPool, problem: Problem, answer: str, memory: Any = None) -> Verified:
    """What the class makes of an answer.

    Args:
      memory: `Verified.state` after the answer before; None before the first.

    Raises:
      VerifierError: it raised, died or took too long.
    """
    request = {"row": to_json(problem.metadata), "answer": answer, "state": memory}
    return pool.call(request, key=problem.question)
