"""Plays a problem with the policy, token ids in and token ids out.

What the policy sampled is never encoded again: an observation is rendered to ids of its own and appended after the
sampler's. Re-encoding the text of a dialog gives other ids than were sampled (tokens merge across borders), for which
the sampler's log-probs would be wrong.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor

from rewards.contracts import Environment, EpisodeState, Outcome, Problem, Reply
from serving_bridge.evaluation import PromptEncoder, VerdictWatch, sound, unjudged
from serving_bridge.rollout.episodes import Episode, EpisodeError, PlayedTurn
from serving_bridge.rollout.groups import complete_group, within
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.settings import RolloutSettings
from serving_bridge.vllm import Completion


class Player:
    """Plays groups and episodes of one environment.

    Args:
      scoring: threads in which answers are decoded and scored; the event loop goes on meanwhile.
      count: "environment_turns", "deadline_hits" and "spares_used" are counted here.
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

    async def play_group(self, problem: Problem, prompt: Sequence[int], size: int) -> list[Episode]:
        """A complete group of `size` episodes; one request where all of it can be known beforehand.

        Raises:
          GroupError: too few episodes ended well.
          ReplicaError, TimeoutError: the one request was not answered, or not in `rollout.episode_timeout_s`.
          NoReplicaError, FailedVerdictsError: as `play`.
        """
        timeout_s = self._settings.episode_timeout_s
        if self._environment.max_turns == 1 and not self._settings.spare_samples:
            return await within(self.play_together(problem, prompt, size), timeout_s, self._count)
        shared = Prefix()
        return await complete_group(
            lambda _: self.play(problem, prompt, shared),
            size=size,
            spares=self._settings.spare_samples,
            timeout_s=timeout_s,
            count=self._count,
        )

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
