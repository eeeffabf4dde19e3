"""A curriculum by what the policy solves: what it always or never solves is asked rarely, and looked at again.

What was measured lies in the queue's database, and is written with the group that it was measured by. It survives a
restart, and all workers share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.contracts import Problem
from rewards.data import stable_hash
from serving_bridge.queue import ProblemOutcome
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.worker_queue import WorkerQueue


@dataclass(frozen=True)
class LeaveOut:
    """Which problems of a source are left out.

    Attributes:
      groups: groups in a row, all right or all wrong, from which on.
      kept_share: share of them that is asked all the same, drawn anew for each prompt.
    """

    groups: int
    kept_share: float


class MeasuredCurriculum:
    """Says which prompts are not asked.

    Args:
      by_source: by label; "" of a task with one source. Other sources leave nothing out.
      run: its name seeds the draws.
    """

    def __init__(self, by_source: Mapping[str, LeaveOut], queue: WorkerQueue, *, run: str) -> None:
        self._by_source, self._queue, self._run = by_source, queue, run

    async def leaves_out(self, index: int, problem: Problem) -> bool:
        """Whether the prompt of this index is passed over."""
        rule = self._by_source.get(problem.source)
        if rule is None or await self._queue.alike_groups(self._key(problem)) < rule.groups:
            return False
        return stable_hash("asked again", self._run, index) >= rule.kept_share * 2**64

    def outcome(self, problem: Problem, episodes: Sequence[Episode]) -> ProblemOutcome | None:
        """What a group says of its problem; None where that is nobody's business, or too little was judged."""
        verdicts = [episode.turns[-1].outcome.verdict for episode in episodes if episode.is_judged]
        if problem.source not in self._by_source or not verdicts:
            return None
        return ProblemOutcome(self._key(problem), len(set(verdicts)) == 1)

    def _key(self, problem: Problem) -> int:
        return stable_hash("problem", problem.source, problem.question) - 2**63
