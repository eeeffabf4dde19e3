"""The way of one claimed prompt: its problem is made, its group played, and put into the queue or given up."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from learner_jax.runtime import NO_SPANS, Spans, crash_point
from rewards.contracts import Task
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.delayed import DelayedRewards
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.groups import BREAKS, GroupError, is_final
from serving_bridge.rollout.measured import MeasuredCurriculum
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.trajectories import Origin, group_id_of, make_trajectories
from serving_bridge.rollout.worker_queue import WorkerQueue

#: tries of a group before it is given up; requests have tries of their own
_GROUP_TRIES = 2
#: groups that are sampled and wait for verdicts without a place, for each place
_SCORED_PER_PLACE = 3


class GroupMaker:
    """Makes groups of prompts.

    Args:
      places: groups that are played at the same time; prompts beyond wait for a place. A group gives its place to
        the next one as soon as verdicts alone are missing, so that slow rewards don't hold up sampling.
      count: what became of groups and answers is counted here.
      sources: the same by source, where a task has several.
      curriculum: passes prompts over; None asks all.
      delayed: of a task with rewards that come later.

    Attributes:
      playing: indices of the prompts whose groups are played now.
      scoring: those among them that gave their place away.
    """

    def __init__(
        self,
        task: Task,
        encoder: PromptEncoder,
        player: Player | AgentPlayer,
        queue: WorkerQueue,
        origin: Origin,
        *,
        places: int,
        count: Counter[str],
        sources: dict[str, Counter[str]],
        log: Callable[..., None],
        curriculum: MeasuredCurriculum | None,
        delayed: DelayedRewards | None = None,
        spans: Spans = NO_SPANS,
    ) -> None:
        self.playing: set[int] = set()
        self.scoring: set[int] = set()
        self._task, self._encoder = task, encoder
        self._player, self._queue, self._origin = player, queue, origin
        self._places, self._most_scored = asyncio.Semaphore(places), _SCORED_PER_PLACE * places
        self._count, self._sources = count, sources
        self._log, self._spans = log, spans
        self._curriculum, self._delayed = curriculum, delayed

    async def make(self, index: int) -> None:
        """As `_make`, told as one span."""
        with self._spans.group(group_id_of(self._origin.run, index)):
            await self._make(index)

    async def _make(self, index: int) -> None:
        """Has the group of a claimed prompt in the queue's hands, or the claim given up for good.

        Raises:
          NoReplicaError: no replica took requests within the bound.
          FailedVerdictsError: too many answers of late have no verdict.
        """
        problem = self._task.problem("train", index)
        if self._curriculum is not None and await self._curriculum.leaves_out(index, problem):
            self._count["left_out_prompts"] += 1
            await self._queue.skip(index)
            return
        prompt = self._encoder.encode(problem)
        if prompt is None:
            self._count["skipped_prompts"] += 1
            await self._queue.skip(index)
            return
        for attempt in range(1, _GROUP_TRIES + 1):
            try:
                async with self._place(index) as sampled:
                    episodes = await self._player.play_group(problem, prompt, self._origin.group_size, sampled)
                if self._teaches(index, episodes):
                    self._accept(index, episodes)
                else:
                    await self._queue.skip(index)
                return
            except (*BREAKS, GroupError) as error:
                self._log("retry", prompt_index=index, attempt=attempt, error=str(error) or repr(error))
                if is_final(error):
                    break
        self._count["failed_groups"] += 1
        await self._queue.skip(index)

    @asynccontextmanager
    async def _place(self, index: int) -> AsyncIterator[Callable[[], None]]:
        """Holds a place; gives what is called once verdicts alone are missing."""
        await self._places.acquire()
        self.playing.add(index)

        def sampled() -> None:
            if len(self.scoring) < self._most_scored and index not in self.scoring:
                self.scoring.add(index)
                self._places.release()

        try:
            yield sampled
        finally:
            self.playing.discard(index)
            if index in self.scoring:
                self.scoring.discard(index)
            else:
                self._places.release()

    def _teaches(self, index: int, episodes: Sequence[Episode]) -> bool:
        """Whether answers are left to compare; else the group's prompt is given up, and another takes its place."""
        judged = sum(episode.is_judged or episode.is_pending for episode in episodes)
        if judged >= min(2, len(episodes)):
            return True
        self._count["unjudged_groups"] += 1
        self._log("unjudged_group", prompt_index=index, answers=len(episodes), judged=judged)
        return False

    def _accept(self, index: int, episodes: Sequence[Episode]) -> None:
        crash_point("sampled")
        outcome = self._curriculum.outcome(episodes[0].problem, episodes) if self._curriculum is not None else None
        delay = self._delayed.delay(episodes) if self._delayed is not None else None
        self._queue.add(index, make_trajectories(self._origin, index, episodes), outcome, delay)
        self._count["groups"] += 1
        self._count["tokens"] += sum(episode.num_sampled for episode in episodes)
        self._count["mixed_version_answers"] += sum(episode.num_versions > 1 for episode in episodes)
        if source := episodes[0].problem.source:
            count_of_source(self._sources.setdefault(source, Counter()), episodes)


def count_of_source(count: Counter[str], episodes: Sequence[Episode]) -> None:
    """Adds a group of one source to its counters."""
    judged = [episode for episode in episodes if episode.is_judged]
    count["groups"] += 1
    count["episodes"] += len(episodes)
    count["tokens"] += sum(episode.num_sampled for episode in episodes)
    count["answers"] += len(judged)
    count["passes"] += sum(episode.turns[-1].outcome.verdict == "pass" for episode in judged)
    count["reward"] += math.fsum(turn.outcome.reward or 0.0 for episode in judged for turn in episode.turns)  # type: ignore[assignment]
