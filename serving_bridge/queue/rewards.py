"""The side of those who bring rewards that come later: each joins its waiting group, and complete groups are released.

Whoever brings a reward may die at any moment and bring it again: what a call did is in the database when it returns,
and the same reward a second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learner_jax.contracts import Trajectory, decode_group
from learner_jax.runtime import crash_point
from serving_bridge.database import Database, Session
from serving_bridge.delayed_rewards import (
    Arrival,
    KeptReward,
    Outcome,
    any_early,
    counts,
    holders_of,
    join,
    join_kept,
    kept,
    overdue,
)
from serving_bridge.queue import waiting
from serving_bridge.queue.waiting import Settled, WaitingGroup

#: Rewards that one transaction takes: others wait for the end of it.
_AT_ONCE = 256
_SHOWN = 1000


@dataclass(frozen=True)
class RewardsOverview:
    """All of it at one moment.

    Attributes:
      counts: rewards by what became of them, from the first on.
      waiting: groups that wait, at most 1000, those that are due first.
      num_waiting: all of them.
      kept: rewards that joined nothing, at most 1000, newest first.
    """

    counts: dict[Outcome, int]
    waiting: list[WaitingGroup]
    num_waiting: int
    kept: list[KeptReward]


class QueueRewards:
    """What is done with rewards that come later than their answers."""

    def __init__(self, database: Database, *, clock: Callable[[], float]):
        self._db, self._clock = database, clock

    def bring(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Stores rewards, durably when this returns; says what became of each, in order."""
        outcomes: list[Outcome] = []
        for start in range(0, len(arrivals), _AT_ONCE):
            outcomes += self._bring(arrivals[start : start + _AT_ONCE])
        return outcomes

    def settle(self) -> Settled:
        """Decides groups whose window has closed. To be called every few seconds by some process of the run."""
        now = self._clock()

        def is_needed(session: Session) -> bool:
            return bool(overdue(session, now, 1)) or any_early(session)

        def work(session: Session) -> Settled:
            early = waiting.release(session, join_kept(session), now)
            late = waiting.settle_overdue(session, overdue(session, now, waiting.AT_ONCE), now)
            return Settled(early.released + late.released, early.dropped + late.dropped)

        if not self._db.read(is_needed):
            return Settled()
        settled = self._db.write(work)
        crash_point("settled")
        return settled

    def overview(self) -> RewardsOverview:
        def work(session: Session) -> RewardsOverview:
            ((num_waiting,),) = session.execute("SELECT count(*) FROM waiting_groups")
            return RewardsOverview(
                counts(session), waiting.overview(session, _SHOWN), num_waiting, kept(session, _SHOWN)
            )

        return self._db.read(work)

    def groups(self, group_ids: Sequence[str]) -> dict[str, list[Trajectory]]:
        """Waiting groups by id, as they were put."""
        found = self._db.read(lambda session: waiting.payloads(session, group_ids))
        return {group_id: decode_group(payload) for group_id, payload in found.items()}

    def _bring(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        now = self._clock()

        def work(session: Session) -> list[Outcome]:
            outcomes = join(session, arrivals, now)
            joined = [a.subject for a, outcome in zip(arrivals, outcomes, strict=True) if outcome == "joined"]
            waiting.release(session, holders_of(session, joined), now)
            return outcomes

        outcomes = self._db.write(work)
        crash_point("brought")
        return outcomes
