"""Plays a problem with the policy, token ids in and token ids out.

What the policy sampled is never encoded again: an observation is rendered to ids of its own and appended after the
sampler's. Re-encoding the text of a dialog gives other ids than were sampled (tokens merge across borders), for which
the sampler's log-probs would be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

from learner_jax.runtime import NO_SPANS, Spans
from rewards.contracts import AsyncEnvironment, Environment, Message, Problem, Reply
from serving_bridge.evaluation import PromptEncoder, VerdictWatch
from serving_bridge.rollout.dialogs import Dialogs
from serving_bridge.rollout.episodes import Episode, EpisodeError, PlayedTurn
from serving_bridge.rollout.groups import complete_group, within
from serving_bridge.rollout.sampling import Prefix, Samples
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
        environment: Environment | AsyncEnvironment,
        encoder: PromptEncoder,
        sampler: Samples,
        settings: RolloutSettings,
        *,
        scoring: Executor,
        count: Counter[str],
        verdicts: VerdictWatch | None = None,
        spans: Spans = NO_SPANS,
    ) -> None:
        self._encoder = encoder
        self._shows_marks = bool(getattr(environment, "tools", ()))
        self._dialogs = Dialogs(
            environment,
            scoring,
            self._read,
            limit_s=settings.reward_timeout_s,
            num_helpers=settings.reward_threads * 3 // 4,
            count=count,
        )
        self._sampler = sampler
        self._settings = settings
        self._count, self._spans = count, spans
        self._verdicts = verdicts or VerdictWatch(settings.max_failed_verdicts, count=count)
        self._max_tokens = settings.episode_tokens(environment.max_turns)
        if bind := getattr(environment, "bind_fleet", None):
            bind(self._say)
        self._is_single = environment.max_turns == 1 and not self._dialogs.waits

    async def play_group(
        self, problem: Problem, prompt: Sequence[int], size: int, sampled: Callable[[], None] = lambda: None
    ) -> list[Episode]:
        """A complete group of `size` episodes; one request where all of it can be known beforehand.

        Args:
          sampled: called once verdicts alone are missing, where that is known before the end.

        Raises:
          GroupError: too few episodes ended well.
          ReplicaError, TimeoutError: the one request was not answered, or not in `rollout.episode_timeout_s`.
          NoReplicaError, FailedVerdictsError: as `play`.
        """
        timeout_s = self._settings.episode_timeout_s
        if self._is_single and not self._settings.spare_samples:
            return await within(self.play_together(problem, prompt, size, sampled), timeout_s, self._count)
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
        context, turns = list(prompt), list[PlayedTurn]()
        given, prefix = tuple(prompt), shared
        dialog = await self._dialogs.begin(problem)
        try:
            while True:
                (answer,), replica = await self._sampler.sample(
                    context, n=1, max_tokens=self._settings.max_tokens, prefix=prefix
                )
                prefix = Prefix(replica)
                context += answer.tokens.tolist()
                with self._spans.span("score", turn=len(turns)):
                    (outcome,) = await dialog.step([answer], is_last=not self._has_room(context))
                if outcome.observation == ():
                    outcome = await dialog.observe(outcome)
                self._verdicts.add(problem.index, [outcome])
                turns.append(PlayedTurn(given, answer, outcome))
                if outcome.observation is None:
                    return Episode(problem, tuple(turns))
                given = self._observation(outcome.observation, answer)
                context += given
                self._count["environment_turns"] += 1
        finally:
            await dialog.close()

    async def play_together(
        self, problem: Problem, prompt: Sequence[int], count: int, sampled: Callable[[], None] = lambda: None
    ) -> list[Episode]:
        """`count` episodes of one turn in one request; raises what `play` does."""
        answers, _ = await self._sampler.sample(prompt, n=count, max_tokens=self._settings.max_tokens, prefix=Prefix())
        sampled()
        dialog = await self._dialogs.begin(problem)
        with self._spans.span("score", answers=count):
            outcomes = await dialog.step(answers, is_last=True)
        self._verdicts.add(problem.index, outcomes)
        return [
            Episode(problem, (PlayedTurn(tuple(prompt), answer, outcome),))
            for answer, outcome in zip(answers, outcomes, strict=True)
        ]

    async def _say(self, messages: Sequence[Mapping[str, str]], max_tokens: int, seed: int) -> str:
        """What the policy's own replicas answer to messages; `seed` can't be kept by a fleet of many."""
        tokenizer = self._encoder.tokenizer
        clean = [{**message, "content": tokenizer.harmless(message["content"])} for message in messages]
        prompt = tokenizer.encode_chat(clean)
        (answer,), _ = await self._sampler.sample(prompt, n=1, max_tokens=max_tokens, prefix=Prefix())
        return tokenizer.decode(answer.tokens.tolist())

    def _read(self, answer: Completion, is_last: bool) -> Reply:
        tokens = answer.tokens.tolist()
        marked = self._encoder.marked(tokens) if self._shows_marks else ""
        return Reply(self._encoder.tokenizer.decode(tokens), answer.finish_reason, is_last, marked)

    def _has_room(self, context: Sequence[int]) -> bool:
        """For the longest observation and the longest answer: no answer's budget depends on what came before."""
        return len(context) + self._settings.max_prompt_tokens + self._settings.max_tokens <= self._max_tokens

    def _observation(self, said: str | tuple[Message, ...], answer: Completion) -> tuple[int, ...]:
        ids = self._encoder.observation(said, after=int(answer.tokens[-1]))
        if not 0 < len(ids) <= self._settings.max_prompt_tokens:
            shown = said if isinstance(said, str) else " / ".join(message.content[:80] for message in said)
            raise EpisodeError(
                f"observation {shown[:80]!r} has {len(ids)} tokens, expected 1 to {self._settings.max_prompt_tokens}: "
                f"raise rollout.max_prompt_tokens or shorten task.feedback"
            )
        return tuple(ids)
