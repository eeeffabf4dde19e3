"""Plays groups of episodes whose other side is a program: it asks, over a session of its own, and the policy answers.

An episode is the whole session. A path through it that no answer goes on from is a branch: a sequence of tokens of its
own. Every answer is trained on once, in the first branch that it is on, and earns what the episode earned: the program
needed all of them to come to its end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from rewards.contracts import EpisodeState, Outcome, Problem, RewardResult, is_failure
from serving_bridge.evaluation import PromptEncoder, VerdictWatch, reason_text, sound
from serving_bridge.rollout.episodes import Episode, EpisodeError, PlayedTurn
from serving_bridge.rollout.groups import complete_group
from serving_bridge.rollout.sampling import Prefix, Samples
from serving_bridge.routing import NoReplicaError
from serving_bridge.sessions import Session, SessionEndpoint, SessionLimits
from serving_bridge.settings import RolloutSettings
from serving_bridge.vllm import Completion, ReplicaError

T = TypeVar("T")


class Agent(Protocol):
    """The program's side; see `rewards.environments.AgentEnvironment`."""

    max_turns: int
    processes: int

    def run(self, problem: Problem, base_url: str) -> RewardResult | None:
        """Plays one episode; blocks."""

    def judge(self, problem: Problem, answer: str, finish_reason: str) -> RewardResult:
        """The task's word on an answer; blocks."""


class AgentPlayer:
    """Plays groups while it is entered.

    Args:
      count: "agent_answers", "agent_side_answers" (not on the way to the last one), "agent_rebuilt" (requests
        that could not go on from recorded ids), "deadline_hits" and "spares_used" are counted here.
    """

    def __init__(
        self,
        agent: Agent,
        encoder: PromptEncoder,
        sampler: Samples,
        settings: RolloutSettings,
        *,
        count: Counter[str],
        verdicts: VerdictWatch | None = None,
    ) -> None:
        self._agent, self._text, self._sampler, self._settings = agent, encoder.tokenizer, sampler, settings
        self._count = count
        self._verdicts = verdicts or VerdictWatch(settings.max_failed_verdicts, count=count)
        context = settings.episode_tokens(agent.max_turns)
        self._limits = SessionLimits(agent.max_turns, settings.max_tokens, context, self._text.vocab_size)
        self._endpoint = SessionEndpoint(max_context=context)
        self._threads = ThreadPoolExecutor(agent.processes, thread_name_prefix="weir-agents")

    async def __aenter__(self) -> AgentPlayer:
        """Opens the endpoint. Raises `OSError`."""
        await self._endpoint.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the endpoint; programs that still run are left to their deadline."""
        await self._endpoint.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def play_group(
        self, problem: Problem, prompt: Sequence[int], size: int, sampled: Callable[[], None] = lambda: None
    ) -> list[Episode]:
        """A complete group of `size` episodes; the prompt is the program's to make.

        Args:
          sampled: not called: only a program's end tells that it has asked for all it wants.

        Raises:
          GroupError: too few episodes ended well.
          FailedVerdictsError: too many answers of late have no verdict.
        """
        return await complete_group(
            lambda _: self.play(problem),
            size=size,
            spares=self._settings.spare_samples,
            timeout_s=self._settings.episode_timeout_s,
            count=self._count,
        )

    async def play(self, problem: Problem) -> Episode:
        """One episode to its end.

        Raises:
          EpisodeError: the program asked for no answer.
          ReplicaError, NoReplicaError: an answer could not be had, and the episode failed.
          FailedVerdictsError: too many answers of late have no verdict.
        """
        line = _Line(self._sampler)
        session = Session(self._text, line.sample, self._limits)
        async with self._endpoint.opened(session) as url:
            result = await self._in_thread(self._agent.run, problem, url)
        if line.broken is not None and (result is None or is_failure(result.verdict)):
            raise line.broken  # the program was not answered: nothing that it made of that is a verdict
        if not session.answers:
            said = f": {reason_text(result.reasons)}" if result is not None else ""
            raise EpisodeError(f"task.episode.agent got no answer from the policy{said}")
        last = session.answers[-1]
        self._count["agent_answers"] += len(session.answers)
        self._count["agent_side_answers"] += len(session.answers) - len(session.path(last.number))
        self._count["agent_rebuilt"] += session.rebuilt
        if result is None:
            text = self._text.decode(last.answer.tokens.tolist())
            result = await self._in_thread(self._agent.judge, problem, text, last.answer.finish_reason)
        outcome = sound(
            Outcome(result.score, result.parts, result.verdict, None, EpisodeState(problem), result.reasons)
        )
        self._verdicts.add(problem.index, [outcome])
        return Episode(problem, played(session, problem, outcome))

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class _Line:
    """One episode's way to the replicas: all its requests go where its first one went, as long as that works.

    Attributes:
      broken: the latest error of a request that had no answer.
    """

    def __init__(self, sampler: Samples) -> None:
        self.broken: ReplicaError | NoReplicaError | None = None
        self._sampler, self._prefix = sampler, Prefix()

    async def sample(self, context: Sequence[int], max_tokens: int) -> Completion:
        """An answer; raises what `Sampler.sample` does."""
        try:
            answers, replica = await self._sampler.sample(
                context, n=1, max_tokens=max_tokens, prefix=Prefix(self._prefix.replica)
            )
        except (ReplicaError, NoReplicaError) as error:
            self.broken = error
            raise
        self._prefix.replica = replica
        return answers[0]


def played(session: Session, problem: Problem, last: Outcome) -> tuple[PlayedTurn, ...]:
    """All answers of a session as turns, branch after branch; what the program says of it stands at the last one."""
    before = Outcome(0.0, {}, "fail", "", EpisodeState(problem))
    shown: set[int] = set()
    turns: list[PlayedTurn] = []
    for branch in session.branches():
        own = [answered for answered in branch if answered.number not in shown]
        context = session.ids(own[0].parent)
        for answered in own:
            given = (*context, *answered.given)
            turns.append(PlayedTurn(given, answered.answer, before, begins=answered is own[0] and bool(turns)))
            context = []
        shown.update(answered.number for answered in own)
    turns[-1] = replace(turns[-1], outcome=last)
    return tuple(turns)
