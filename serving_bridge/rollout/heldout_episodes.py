"""Held-out problems as whole episodes on one replica, played by the player that training has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from rewards.contracts import AsyncEnvironment, Environment, Failure, Problem, RewardResult, failed
from rewards.environments import AgentEnvironment, FeedbackEnvironment
from serving_bridge.evaluation import Examined, PromptEncoder, VerdictWatch, ask_each, versions_of
from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.episodes import Episode, EpisodeError
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, all_or_none
from serving_bridge.settings import EvaluationSettings, RolloutSettings
from serving_bridge.vllm import Completion, VllmClient

#: episodes that are played at a time; those of agents have a process each, and are as many as these
_AT_ONCE = 64
_BRANCH = "\n--- another branch ---\n"

PlayOne = Callable[[Problem, Sequence[int]], Awaitable[Episode]]


def plays_episodes(environment: Environment | AsyncEnvironment) -> bool:
    """Whether an episode is more than one answer that the task judges."""
    return not (isinstance(environment, FeedbackEnvironment) and environment.max_turns == 1)


class HeldOutEpisodes:
    """Plays each problem once with what one replica serves; a `serving_bridge.evaluation.Play`.

    Answers are sampled as the evaluation's settings say, with its priority. Turns, observations and budgets are those
    of training. An episode that can't go on, or takes longer than `rollout.episode_timeout_s`, is a failed verdict.

    Args:
      scoring: threads in which environments run that block.
    """

    def __init__(
        self,
        environment: Environment | AsyncEnvironment,
        encoder: PromptEncoder,
        evaluation: EvaluationSettings,
        rollout: RolloutSettings,
        *,
        scoring: Executor,
    ) -> None:
        self._environment, self._encoder, self._scoring = environment, encoder, scoring
        self._temperature = evaluation.temperature
        longest = evaluation.max_tokens or rollout.max_tokens
        room = max(rollout.episode_tokens(environment.max_turns), rollout.max_prompt_tokens + longest)
        self._settings = rollout.model_copy(update={"max_tokens": longest, "max_episode_tokens": room})
        is_agent = isinstance(environment, AgentEnvironment)
        self._at_once = environment.processes if isinstance(environment, AgentEnvironment) else _AT_ONCE
        self._shows_prompt = is_agent

    async def __call__(self, client: VllmClient, asked: Sequence[tuple[Problem, list[int]]]) -> list[Examined]:
        """What became of the episodes, in order.

        Raises:
          ReplicaError: the replica failed for good.
          OSError: the address that agents speak to can't be opened.
        """
        limit = asyncio.Semaphore(self._at_once)
        async with self._player(_OneReplica(client, self._encoder, self._settings, self._temperature)) as play:
            return await all_or_none(self._examined(play, problem, prompt, limit) for problem, prompt in asked)

    @asynccontextmanager
    async def _player(self, sampler: _OneReplica) -> AsyncIterator[PlayOne]:
        """The player while its sampler is in use; its counts and verdicts are the evaluation's alone."""
        environment, count = self._environment, Counter[str]()
        verdicts = VerdictWatch(1.0, count=count)
        if isinstance(environment, AgentEnvironment):
            agents = AgentPlayer(environment, self._encoder, sampler, self._settings, count=count, verdicts=verdicts)
            async with agents:
                yield lambda problem, _: agents.play(problem)
            return
        player = Player(
            environment,
            self._encoder,
            sampler,
            self._settings,
            scoring=self._scoring,
            count=count,
            verdicts=verdicts,
        )
        yield lambda problem, prompt: player.play(problem, prompt, Prefix())

    async def _examined(
        self, play: PlayOne, problem: Problem, prompt: Sequence[int], limit: asyncio.Semaphore
    ) -> Examined:
        limit_s = self._settings.episode_timeout_s
        async with limit:
            try:
                async with asyncio.timeout(limit_s):
                    episode = await play(problem, prompt)
            except EpisodeError as error:
                return _not_played(problem, str(error), "error")
            except TimeoutError:
                return _not_played(problem, f"not over after {limit_s:g} s (rollout.episode_timeout_s)", "timeout")
        last = episode.turns[-1]
        rewards = [turn.outcome.reward for turn in episode.turns]
        score = sum(reward or 0.0 for reward in rewards) if episode.is_judged else None
        return Examined(
            problem,
            self._said(episode),
            RewardResult(score, last.outcome.parts, last.outcome.verdict, last.outcome.reasons),
            last.answer.finish_reason == "length",
            versions_of([turn.answer for turn in episode.turns]),
        )

    def _said(self, episode: Episode) -> str:
        """All of the episode after its prompt, for people; with the prompt where a program made one of its own."""
        decode = self._encoder.tokenizer.decode
        said = ""
        for number, turn in enumerate(episode.turns):
            if turn.begins and number:
                said += _BRANCH
            if number or self._shows_prompt:
                said += decode(list(turn.given))
            said += decode(turn.answer.tokens.tolist())
        return said


class _OneReplica:
    """Samples whole answers from one replica; implements `serving_bridge.rollout.sampling.Samples`."""

    def __init__(
        self, client: VllmClient, encoder: PromptEncoder, settings: RolloutSettings, temperature: float
    ) -> None:
        self._client = client
        self._parameters = {
            "greedy": temperature == 0,
            "temperature": temperature or 1.0,
            "stop_token_ids": encoder.tokenizer.eos_ids,
            "timeout_s": settings.request_timeout_s,
        }

    async def sample(
        self, tokens: Sequence[int], *, n: int, max_tokens: int, prefix: Prefix
    ) -> tuple[list[Completion], str]:
        """As `Samples.sample`. Raises `ReplicaError` where the tries of an evaluation don't help."""
        answers = await ask_each(self._client, [tokens] * n, max_tokens=max_tokens, **self._parameters)
        return answers, self._client.base_url


def _not_played(problem: Problem, reason: str, failure: Failure) -> Examined:
    return Examined(problem, "", failed(reason, failure), False, None)
