"""Plays a problem with the policy, token ids in and token ids out, and writes down what happened as a trajectory.

What the policy sampled is never encoded again: an observation is rendered to ids of its own and appended after the
sampler's. Re-encoding the text of a dialog gives other ids than were sampled (tokens merge across borders), for which
the sampler's log-probs would be wrong.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.runtime import WeirError
from rewards.contracts import Environment, EpisodeState, Outcome, Problem, Reply
from serving_bridge.evaluation import PromptEncoder, VerdictWatch, reason_text, sound, unjudged
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.settings import RolloutSettings
from serving_bridge.vllm import Completion


class EpisodeError(WeirError, RuntimeError):
    """An episode can't go on: says why, and the setting to change."""


@dataclass(frozen=True)
class PlayedTurn:
    """One turn.

    Attributes:
      given: token ids before the answer: the prompt, or an observation.
    """

    given: tuple[int, ...]
    answer: Completion
    outcome: Outcome


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
        return len(np.unique(np.concatenate([turn.answer.policy_version for turn in self.turns])))

    @property
    def is_judged(self) -> bool:
        """Whether its reward is known; a failed verdict is always the last one."""
        return self.turns[-1].outcome.reward is not None


@dataclass(frozen=True)
class Origin:
    """What the trajectories of a run have in common.

    Attributes:
      run: with the prompt's index and the sample's, the trajectory's id: deterministic, hence the idempotency key.
      tokenizer: fingerprint of the tokenizer behind the ids.
    """

    run: str
    group_size: int
    settings: RolloutSettings
    reward_version: str
    tokenizer: str


class Player:
    """Plays episodes of one environment.

    Args:
      scoring: threads in which answers are decoded and scored; the event loop goes on meanwhile.
      count: "environment_turns" is counted here.
      verdicts: is told of every verdict.
    """

    def __init__(
        self,
        environment: Environment,
        encoder: PromptEncoder,
        sampler: Sampler,
        settings: RolloutSettings,
        *,
        scoring: Executor,
        count: Counter[str],
        verdicts: VerdictWatch | None = None,
    ) -> None:
        self._environment = environment
        self._encoder = encoder
        self._sampler = sampler
        self._settings = settings
        self._scoring = scoring
        self._count = count
        self._verdicts = verdicts or VerdictWatch(settings.max_failed_verdicts, count=count)
        self._max_tokens = settings.episode_tokens(environment.max_turns)

    async def play(self, problem: Problem, prompt: Sequence[int], shared: Prefix) -> Episode:
        """One episode to its end.

        Args:
          shared: where the prompt is cached; common to the episodes of a group.

        Raises:
          ReplicaError, NoReplicaError: no answer could be had.
          EpisodeError: it can't go on.
          FailedVerdictsError: too many answers of late have no verdict.
        """
        state, context, turns = self._environment.reset(problem), list(prompt), list[PlayedTurn]()
        given, prefix = tuple(prompt), shared
        while True:
            (answer,), replica = await self._sampler.sample(
                context, n=1, max_tokens=self._settings.max_tokens, prefix=prefix
            )
            prefix = Prefix(replica)
            context += answer.tokens.tolist()
            (outcome,) = await self._step(state, [answer], is_last=not self._has_room(context))
            turns.append(PlayedTurn(given, answer, outcome))
            if outcome.observation is None:
                return Episode(problem, tuple(turns))
            given = self._observation(outcome.observation, answer)
            context += given
            state = outcome.state
            self._count["environment_turns"] += 1

    async def play_together(self, problem: Problem, prompt: Sequence[int], count: int) -> list[Episode]:
        """`count` episodes of one turn in one request; raises what `play` does."""
        answers, _ = await self._sampler.sample(prompt, n=count, max_tokens=self._settings.max_tokens, prefix=Prefix())
        outcomes = await self._step(self._environment.reset(problem), answers, is_last=True)
        return [
            Episode(problem, (PlayedTurn(tuple(prompt), answer, outcome),))
            for answer, outcome in zip(answers, outcomes, strict=True)
        ]

    async def _step(self, state: EpisodeState, answers: Sequence[Completion], *, is_last: bool) -> list[Outcome]:
        """What each answer led to; those that are not judged in time have a failed verdict."""
        limit_s, judged = self._settings.reward_timeout_s, list[Outcome]()
        work = asyncio.get_running_loop().run_in_executor(self._scoring, self._judge, state, answers, is_last, judged)
        try:
            async with asyncio.timeout(limit_s):
                await work
        except TimeoutError:
            reason = (
                f"no verdict after {limit_s:g} s (rollout.reward_timeout_s); the verifier hangs, or "
                f"rollout.reward_threads are too few"
            )
            judged = list(judged)  # the thread may come back and add to the other one
            judged += [unjudged(state, "timeout", reason)] * (len(answers) - len(judged))
        self._verdicts.add(state.problem.index, judged)
        return judged

    def _judge(self, state: EpisodeState, answers: Sequence[Completion], is_last: bool, judged: list[Outcome]) -> None:
        """Adds one outcome per answer to `judged`, each as soon as it is known."""
        decode = self._encoder.tokenizer.decode
        for answer in answers:
            reply = Reply(decode(answer.tokens.tolist()), answer.finish_reason, is_last)
            try:
                outcome = sound(self._environment.step(state, reply))
            except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
                outcome = unjudged(state, "error", f"{type(error).__name__}: {error}")
            judged.append(outcome)

    def _has_room(self, context: Sequence[int]) -> bool:
        """For the longest observation and the longest answer: no answer's budget depends on what came before."""
        return len(context) + self._settings.max_prompt_tokens + self._settings.max_tokens <= self._max_tokens

    def _observation(self, text: str, answer: Completion) -> tuple[int, ...]:
        ids = self._encoder.observation(text, after=int(answer.tokens[-1]))
        if not 0 < len(ids) <= self._settings.max_prompt_tokens:
            raise EpisodeError(
                f"observation {text[:80]!r} has {len(ids)} tokens, expected 1 to {self._settings.max_prompt_tokens}: "
                f"raise rollout.max_prompt_tokens or shorten task.feedback"
            )
        return tuple(ids)


def make_trajectories(origin: Origin, index: int, episodes: Sequence[Episode]) -> list[Trajectory]:
    """The group of prompt `index`; ids never change between tries, token ids are exactly the sampler's."""
    group_id = f"{origin.run}/{index}"
    return [
        Trajectory(
            trajectory_id=f"{group_id}/{sample}",
            group_id=group_id,
            group_size=origin.group_size,
            prompt={"index": index, "question": episode.problem.question},
            **_arrays(episode.turns),
            reward_parts=dict(episode.turns[-1].outcome.parts),
            verdict=episode.turns[-1].outcome.verdict,
            finish_reason=episode.turns[-1].answer.finish_reason,  # type: ignore[arg-type]
            sampling={"temperature": origin.settings.temperature, "max_tokens": origin.settings.max_tokens},
            reward_version=origin.reward_version,
            tokenizer=origin.tokenizer,
            verdict_reason="" if episode.is_judged else reason_text(episode.turns[-1].outcome.reasons),
        )
        for sample, episode in enumerate(episodes)
    ]


def _arrays(turns: Sequence[PlayedTurn]) -> dict[str, Any]:
    """The arrays of a trajectory, all of one length; a turn is what was given and the answer to it."""
    lengths = [(len(turn.given), len(turn.answer)) for turn in turns]
    is_judged = turns[-1].outcome.reward is not None  # else what earlier turns earned is not the episode's reward
    ends = np.cumsum([given + answer for given, answer in lengths])
    length = int(ends[-1])
    found = {
        "tokens": np.empty(length, np.int32),
        "loss_mask": np.zeros(length, np.bool_),
        "behavior_logprobs": np.zeros(length, np.float32),
        "policy_version": np.full(length, NOT_SAMPLED, np.int32),
        "turn": np.repeat(np.arange(len(turns), dtype=np.int32), [given + answer for given, answer in lengths]),
        "rewards": np.zeros(length, np.float32),
    }
    for turn, (_, sampled), end in zip(turns, lengths, ends, strict=True):
        answer = slice(end - sampled, end)
        found["tokens"][end - sampled - len(turn.given) : end - sampled] = turn.given
        found["tokens"][answer] = turn.answer.tokens
        found["loss_mask"][answer] = True
        found["behavior_logprobs"][answer] = turn.answer.logprobs
        found["policy_version"][answer] = turn.answer.policy_version
        if is_judged:
            assert turn.outcome.reward is not None
            found["rewards"][end - 1] = turn.outcome.reward
    return found
