"""Episodes of environments with tools, coroutines or agents, played as a rollout worker plays them, on kept answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from rewards.environments import AgentEnvironment
from serving_bridge.evaluation import VerdictWatch
from serving_bridge.rollout import AgentPlayer, Episode, EpisodeError, Player, Prefix
from serving_bridge.settings import RolloutSettings
from serving_bridge.vllm import Completion
from tools.evaluation.answers import AnswerLog
from tools.evaluation.asking import Dialog, Request
from tools.evaluation.judged import Judged, short
from tools.evaluation.problems import OpenSuite, SuiteProblem
from tools.evaluation.reading import Reader
from tools.evaluation.replica import ReplicaModel, episode_encoder

#: Times that one episode may ask the very same; each gets an answer of its own.
_ASKED_AGAIN = 1_000_000


class KeptAnswers:
    """Answers of one episode, from the log where it has them; stands for `serving_bridge.rollout`'s sampler.

    Log-probs are not asked for: they are zeros.
    """

    def __init__(self, model: ReplicaModel, suite: OpenSuite, log: AnswerLog, about: dict[str, Any]) -> None:
        self._model, self._suite, self._log, self._about = model, suite, log, about
        self._asked: Counter[tuple[int, ...]] = Counter()
        self._turns = 0

    async def sample(
        self, tokens: Sequence[int], *, n: int, max_tokens: int, prefix: Prefix
    ) -> tuple[list[Completion], str]:
        """One answer to a context of token ids; raises what `ReplicaModel.answer` does."""
        context = tuple(tokens)
        sampling = self._suite.settings.sampling
        sampling = sampling.model_copy(update={"max_tokens": min(max_tokens, sampling.max_tokens)})
        number = self._about["sample"] + _ASKED_AGAIN * self._asked[context]
        self._asked[context] += 1
        turn, self._turns = self._turns, self._turns + 1
        request = Request(Dialog((), context), sampling, number, None).seeded()
        key = request.key(self._model.identity)
        answer = self._log.find(key)
        if answer is None:
            answer = await self._model.answer(request)
            prompt = self._model.prompts.tokenizer.decode(list(context))
            self._log.add(key, answer, **self._about, turn=turn, prompt=prompt)
        length = len(answer.tokens)
        ids = np.array(answer.tokens, np.int32)
        zeros = np.zeros(length, np.int32)
        return [Completion(ids, zeros.astype(np.float32), zeros, answer.finish_reason)], ""


class Episodes:
    """Plays the samples of one suite.

    Args:
      scoring: threads in which environments that block are played.
    """

    def __init__(self, model: ReplicaModel, suite: OpenSuite, log: AnswerLog, scoring: Executor) -> None:
        assert suite.environment is not None
        self._model, self._suite, self._log, self._scoring = model, suite, log, scoring
        self._environment, self._reader = suite.environment, Reader(suite.settings)
        self._encoder = episode_encoder(suite, model.prompts.tokenizer)
        self._settings = RolloutSettings(
            group_size=2,
            max_prompt_tokens=suite.settings.max_observation_tokens,
            max_tokens=suite.settings.sampling.max_tokens,
            max_episode_tokens=model.prompts.max_model_len,
        )
        processes = self._environment.processes if isinstance(self._environment, AgentEnvironment) else 1
        self._agents = asyncio.Semaphore(processes)

    async def play(self, problem: SuiteProblem, sample: int) -> Judged:
        """One episode. An environment or a program that fails is a failed verdict.

        Raises:
          ReplicaError: an answer could not be had.
        """
        about = {"suite": self._suite.name, "problem": problem.id, "sample": sample}
        kept = KeptAnswers(self._model, self._suite, self._log, about)
        try:
            episode = await self._played(kept, problem)
        except EpisodeError as error:
            return self._failed(problem, sample, str(error))
        return await self._judged(problem, sample, episode)

    async def _played(self, kept: Any, problem: SuiteProblem) -> Episode:
        count, encoder, settings = Counter[str](), self._encoder, self._settings
        verdicts = VerdictWatch(1.0, count=count)
        if isinstance(self._environment, AgentEnvironment):
            player = AgentPlayer(self._environment, encoder, kept, settings, count=count, verdicts=verdicts)
            async with self._agents, player:
                return await player.play(problem.problem)
        prompt = encoder.tokens(problem.problem)
        dialogs = Player(
            self._environment, encoder, kept, settings, scoring=self._scoring, count=count, verdicts=verdicts
        )
        return await dialogs.play(problem.problem, prompt, Prefix())

    async def _judged(self, problem: SuiteProblem, sample: int, episode: Episode) -> Judged:
        tokenizer = self._model.prompts.tokenizer
        texts = [tokenizer.decode(turn.answer.tokens.tolist()) for turn in episode.turns]
        said = [tokenizer.decode(list(turn.given)) for turn in episode.turns]
        pairs = zip(said, texts, strict=True)
        messages = [message for given, text in pairs for message in (("user", given), ("assistant", text))]
        reading = await asyncio.get_running_loop().run_in_executor(self._scoring, self._reader.read, texts[-1])
        last = episode.turns[-1]
        rewards = [turn.outcome.reward for turn in episode.turns]
        is_judged = episode.is_judged and not reading.problem
        return Judged(
            problem=problem.id,
            sample=sample,
            messages=tuple(messages),
            answer=texts[-1],
            finish_reason=last.answer.finish_reason,
            num_tokens=episode.num_sampled,
            score=sum(reward or 0.0 for reward in rewards) if is_judged else None,
            verdict="timeout" if reading.problem else last.outcome.verdict,
            reasons=short((reading.problem,) if reading.problem else last.outcome.reasons),
            refused=reading.refused,
            well_formed=reading.well_formed,
            vote=reading.vote,
            turns=len(episode.turns),
        )

    def _failed(self, problem: SuiteProblem, sample: int, reason: str) -> Judged:
        return Judged(
            problem=problem.id,
            sample=sample,
            messages=(("user", self._suite.prompt(problem)), ("assistant", "")),
            answer="",
            finish_reason="stop",
            num_tokens=None,
            score=None,
            verdict="error",
            reasons=short((reason,)),
            refused=False,
            well_formed=None,
            vote="",
            turns=0,
        )
