"""The rollout workers' side of the queue: claims of prompts, and groups that are put."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from learner_jax.contracts import ContractError, Trajectory, check_integer
from learner_jax.runtime import crash_point
from serving_bridge.database import Database, Session
from serving_bridge.queue import claims, problems, rows, waiting
from serving_bridge.queue import view as queue_view
from serving_bridge.queue.bounds import QueueBounds, QueueFullError, check_room
from serving_bridge.queue.payloads import Payloader
from serving_bridge.queue.problems import ProblemOutcome
from serving_bridge.queue.rows import Record
from serving_bridge.queue.staleness import Pace
from serving_bridge.queue.view import Progress
from serving_bridge.queue.waiting import Awaiting, Delay, is_pending


class QueueProducer:
    """What a rollout worker does with the queue.

    Args:
      claim_lease_s: seconds until claims that a worker did not renew are handed on.
    """

    def __init__(
        self,
        database: Database,
        payloads: Payloader,
        *,
        bounds: QueueBounds,
        claim_lease_s: float,
        clock: Callable[[], float],
    ):
        self._db, self._payloads, self._bounds = database, payloads, bounds
        self._claim_lease_s, self._clock = claim_lease_s, clock

    def claim_prompts(self, worker: str, limit: int, pace: Pace, *, served_step: int) -> list[int]:
        """Claims up to `limit` prompt indices for `worker`, as far as the staleness gate has room.

        Claims that ran out are handed on before new prompts are started.
        """
        now = self._clock()
        expires_s = now + self._claim_lease_s

        def is_open(session: Session) -> bool:
            return bool(claims.expired(session, now, 1)) or claims.room(session, pace, served_step) > 0

        if limit < 1 or not self._db.read(is_open):
            return []  # the common case while the gate is closed costs no write
        claimed = self._db.write(
            lambda session: claims.claim(
                session, worker, limit, pace, served_step=served_step, now=now, expires_s=expires_s
            ),
            synced=False,
        )
        crash_point("claimed")
        return claimed

    def renew_claims(self, worker: str) -> list[int]:
        """A worker's sign of life: its claims last `claim_lease_s` from now. Returns them.

        What it works on and is not among them was handed on to another worker, put, or given up.
        """
        expires_s = self._clock() + self._claim_lease_s
        return self._db.write(lambda session: claims.renew(session, worker, expires_s), synced=False)

    def hand_on_claims(self, worker: str) -> None:
        """Lets others take a worker's claims at once: it stops, and won't finish them."""
        self._db.write(lambda session: session.execute("UPDATE claims SET expires_s = -1 WHERE worker = ?", (worker,)))

    def resume_claims(self, worker: str) -> list[int]:
        """Prompts that an earlier life of this worker claimed and never finished; they stay claimed."""
        return self.renew_claims(worker)

    def release_claim(self, prompt_index: int, *, worker: str | None = None) -> None:
        """Gives up a claim; its place is refunded and the prompt is skipped.

        Args:
          worker: its holder; a claim that was handed on to another one then stays.
        """
        held, by = ("", ()) if worker is None else (" AND worker = ?", (worker,))
        self._db.write(
            lambda session: session.execute(f"DELETE FROM claims WHERE prompt_index = ?{held}", (prompt_index, *by))
        )

    def put(
        self,
        groups: Sequence[tuple[int, Sequence[Trajectory]]],
        *,
        priority: int = 0,
        worker: str | None = None,
        outcomes: Mapping[int, ProblemOutcome] | None = None,
        delays: Mapping[int, Delay] | None = None,
    ) -> int:
        """Accepts finished groups as (prompt index, trajectories) in one transaction; returns how many were new.

        A group that is already known under its id, in whatever state, is not added again.

        Args:
          priority: groups with a higher one are leased first; 32 bits.
          worker: who puts them; the prompts of new groups must then be claimed by it.
          outcomes: by prompt index, what new groups say of their problems; recorded with them.
          delays: by prompt index, how long groups wait of which a reward is still to come.

        Raises:
          ContractError: a group breaks its contract, the run's limits or the size limit, or another worker has claimed
            its prompt, or it waits for rewards and may not; none was accepted.
          QueueFullError: the queue holds as much as it may; none was accepted.
        """
        if not groups:
            return 0
        check_integer("priority", priority, -(2**31), 2**31 - 1)
        pending = [(index, group) for index, group in groups if is_pending(group)]
        held = _awaiting(self._payloads, pending, delays or {})
        records = self._payloads.pack([one for one in groups if not is_pending(one[1])] if pending else groups)
        now = self._clock()

        def work(session: Session) -> list[Record]:
            before = rows.queued(session)
            new = rows.insert(session, records, priority=priority, now=now, worker=worker)
            if held:
                new += waiting.insert(session, held, priority=priority, now=now, worker=worker)
            check_room(self._bounds, before, new)
            if outcomes:
                problems.record(session, outcomes, {record.prompt_index for record in new})
            return new

        try:
            new = self._db.write(work)
        except (QueueFullError, ContractError):
            self._payloads.confirm(records, [])
            raise
        crash_point("put")
        self._payloads.confirm(records, new)
        return len(new)

    def alike_groups(self, key: int) -> int:
        """Groups in a row of a problem, up to the latest, whose answers were all right or all wrong."""
        return self._db.read(lambda session: problems.alike_groups(session, key))

    def progress(self) -> Progress:
        return self._db.read(queue_view.progress)


def _awaiting(
    payloads: Payloader, groups: Sequence[tuple[int, Sequence[Trajectory]]], delays: Mapping[int, Delay]
) -> list[Awaiting]:
    """Groups that wait, as they are stored.

    Raises:
      ContractError: as `put`; or nothing says for how long one waits.
    """
    if unknown := [group for index, group in groups if index not in delays]:
        raise ContractError(f"group {unknown[0][0].group_id} waits for rewards, and nothing says for how long")
    return [
        Awaiting(
            record,
            tuple(trajectory.trajectory_id for trajectory in group if trajectory.verdict == "pending"),
            delays[record.prompt_index],
        )
        for record, (_, group) in zip(payloads.encode(groups), groups, strict=True)
    ]
