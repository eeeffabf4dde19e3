"""The durable queue between rollout workers and the learner: loses nothing, and has every group trained on once.

A prompt is claimed by a worker, its group of answers is put, leased by the learner, trained on, and acknowledged once a
checkpoint holds that fact; `queue_states` is the table of what may happen to a group. The rows are in SQLite or
PostgreSQL, big payloads in files beside them.

Groups that ended keep their row without payload, so that putting the same group again has no effect, until every
prompt up to theirs has ended; from then on the watermark stands for them all (`queue_rows.purge`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from learner_jax.contracts import (
    ContractError,
    Lease,
    LeaseReport,
    Payloads,
    RecordLimits,
    Trajectory,
    check_integer,
    quoted,
)
from learner_jax.runtime import Waits, WeirError, crash_point
from serving_bridge.database import Database, Session, is_postgres, open_database
from serving_bridge.queue import claims, rows
from serving_bridge.queue import view as queue_view
from serving_bridge.queue.blobs import BlobFolder
from serving_bridge.queue.bounds import QueueBounds, QueueError, QueueFullError, check_room
from serving_bridge.queue.payloads import Payloader, blobs_beside, require_one_folder
from serving_bridge.queue.repair import RepairingDatabase, repair
from serving_bridge.queue.rows import LeasedRow, Record
from serving_bridge.queue.staleness import Pace
from serving_bridge.queue.states import Event
from serving_bridge.queue.view import Overview, Progress

__all__ = ["LeaseLostError", "Overview", "Progress", "QueueBounds", "QueueError", "QueueFullError", "TrajectoryQueue"]


class LeaseLostError(WeirError, RuntimeError):
    """A group is no longer leased to this consumer, or another consumer has taken over the whole queue."""


class TrajectoryQueue:
    """One connection to the queue; implements `learner_jax.contracts.weights.TrajectorySource`.

    Args:
      url: a path or `sqlite:///path`, `:memory:`, or `postgresql://...?schema=name`; may be left out with `database`.
      lease_s: seconds until the learner's lease of a group that it neither trained on nor gave back is taken back.
      claim_lease_s: seconds until a worker's claims that it did not renew are handed on.
      max_tries: leases of one group before it becomes a dead letter.
      clock: wall clock in seconds, common to all processes that share the queue.
      limits: what the run takes in; groups outside are refused by `put` and buried when leased. None takes all.
      bounds: what the queue holds at most.
      blobs: folder for payloads above `blob_bytes`, which all processes see; by default beside the SQLite file.
      timeout_s: bound on waiting for the database.
      consumer: name of this process in leases, for people.
      database: takes the place of `url`; its schema must be there (`database.open_database`, `migrations.migrate`).

    Raises:
      DatabaseError: `open_database` does.
      QueueError: this host sees another folder of blobs than the others.
    """

    def __init__(
        self,
        url: str | Path = "",
        *,
        lease_s: float = 3600.0,
        claim_lease_s: float = 60.0,
        max_tries: int = 3,
        clock: Callable[[], float] = time.time,
        limits: RecordLimits | None = None,
        bounds: QueueBounds | None = None,
        blobs: str | Path | None = None,
        blob_bytes: int = 2**16,
        timeout_s: float = 30.0,
        waits: Waits | None = None,
        consumer: str = "",
        database: Database | None = None,
    ):
        opened = open_database(url, timeout_s=timeout_s, waits=waits) if database is None else database
        self._db = RepairingDatabase(opened)
        self._lease_s, self._claim_lease_s, self._max_tries = lease_s, claim_lease_s, max_tries
        self._clock = clock
        self._bounds = QueueBounds() if bounds is None else bounds
        folder = Path(blobs) if blobs is not None else blobs_beside(self._db.name) if database is None else None
        self._payloads = Payloader(limits, folder, blob_bytes=blob_bytes, max_bytes=self._bounds.max_group_bytes)
        self._consumer = consumer or f"{socket.gethostname()}:{os.getpid()}"
        self._tokens: dict[str, int] = {}
        self._is_in_charge = False
        self._finds_groups = False
        self._needless: list[str] = []  # files that are to be released once it is durable that their groups ended
        if self.blobs is not None and is_postgres(self._db.name):
            require_one_folder(self._db, self.blobs)
        self._epoch = self._db.read(lambda session: rows.get(session, "consumer_epoch"))

    @property
    def database(self) -> Database:
        return self._db.inner

    @property
    def blobs(self) -> BlobFolder | None:
        return self._payloads.blobs

    def close(self) -> None:
        self._db.close()

    # Rollout side.

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
        self, groups: Sequence[tuple[int, Sequence[Trajectory]]], *, priority: int = 0, worker: str | None = None
    ) -> int:
        """Accepts finished groups as (prompt index, trajectories) in one transaction; returns how many were new.

        A group that is already known under its id, in whatever state, is not added again.

        Args:
          priority: groups with a higher one are leased first; 32 bits.
          worker: who puts them; the prompts of new groups must then be claimed by it.

        Raises:
          ContractError: a group breaks its contract, the run's limits or the size limit, or another worker has claimed
            its prompt; none was accepted.
          QueueFullError: the queue holds as much as it may; none was accepted.
        """
        if not groups:
            return 0
        check_integer("priority", priority, -(2**31), 2**31 - 1)
        records = self._payloads.pack(groups)
        now = self._clock()

        def work(session: Session) -> list[Record]:
            before = rows.queued(session)
            new = rows.insert(session, records, priority=priority, now=now, worker=worker)
            check_room(self._bounds, before, new)
            return new

        try:
            new = self._db.write(work)
        except (QueueFullError, ContractError):
            self._payloads.confirm(records, [])
            raise
        crash_point("put")
        self._payloads.confirm(records, new)
        return len(new)

    # Learner side.

    def lease_groups(self, count: int, *, trained_version: int, max_staleness: int) -> LeaseReport:
        """Leases up to `count` groups, oldest first. Stale ones are dropped, unreadable ones become dead letters.

        Raises:
          LeaseLostError: another learner has taken over (as do `lease`, `mark_trained`, `acknowledge` and `finish`).
        """
        max_bytes = self._bounds.max_group_bytes
        leased, num_dropped = self._lease(count, trained_version, max_staleness, max_bytes=max_bytes)
        found = self._payloads.unpack(row.held for row in leased)
        if found.unreadable:
            self._bury(found.unreadable)
        return LeaseReport(groups=list(found.groups.values()), num_dropped_stale=num_dropped)

    def lease(self, count: int, *, trained_version: int, max_staleness: int) -> Lease:
        """As `lease_groups`, for groups that other connections to this queue `read`."""
        leased, num_dropped = self._lease(count, trained_version, max_staleness, max_bytes=0)
        return Lease(
            group_ids=[row.held.group_id for row in leased],
            num_bytes=[row.held.num_bytes for row in leased],
            num_dropped_stale=num_dropped,
        )

    def read(self, group_ids: Sequence[str]) -> Payloads:
        """What leased groups hold, and why others can't be read; changes nothing.

        Raises:
          QueueError: a group is not leased in this queue.
        """
        max_bytes = self._bounds.max_group_bytes
        found = self._db.read(lambda session: rows.leased_payloads(session, group_ids, max_bytes))
        if unknown := [group_id for group_id in group_ids if group_id not in found]:
            raise QueueError(
                f"group {unknown[0]} is not leased in {self._db.name}: all hosts of the learner must open the "
                f"same queue (store.database)"
            )
        return self._payloads.unpack(found[group_id] for group_id in group_ids)

    def bury(self, group_id: str, reason: str) -> None:
        """Makes a leased group a dead letter.

        Raises:
          LeaseLostError: it is not leased to this consumer any more.
        """
        self._bury({group_id: reason})

    def mark_trained(self, group_ids: Sequence[str], *, completed_steps: int, trained_version: int) -> None:
        """Records that one optimizer step consumed these groups and that its weights are `trained_version`.

        Raises:
          LeaseLostError: a group is not leased to this consumer any more; nothing was recorded.
        """

        def work(session: Session) -> None:
            self._require_epoch(session)
            self._require_leases(session, group_ids)
            rows.change_named(session, "train", group_ids)
            rows.put(session, completed_steps=completed_steps, trained_version=trained_version)

        self._db.write(work, synced=False)
        self._forget(group_ids)

    def acknowledge(self, group_ids: Sequence[str]) -> None:
        """Ends groups whose training is committed in a checkpoint; their payload is freed."""

        def work(session: Session) -> list[str]:
            self._require_epoch(session)
            ended = rows.free(session, rows.change_named(session, "acknowledge", group_ids))
            return rows.needless_files(session, ended + rows.purge(session, max_dead=self._bounds.max_dead))

        needless = self._db.write(work)
        self._payloads.release(self._needless + needless)
        self._needless.clear()

    def reject(self, group_id: str, reason: str) -> None:
        """Negative acknowledgement: the group goes back to ready, or becomes a dead letter after too many tries."""

        def work(session: Session) -> None:
            self._require_epoch(session)
            tries = self._require_leases(session, [group_id])[group_id]
            event: Event = "exhaust" if tries >= self._max_tries else "reject"
            rows.change_named(session, event, [group_id], also="reason = ?", values=(quoted(reason),))

        self._db.write(work)
        self._forget([group_id])

    def take_over(self) -> int:
        """Becomes the learner; an earlier one, should it still be alive, is refused from now on. Returns its turn.

        To be called before the checkpoint to go on from is chosen: from then on nobody else acknowledges anything, or
        begins to save a checkpoint.
        """

        def work(session: Session) -> int:
            repair(session)
            epoch = rows.get(session, "consumer_epoch", session.dialect.for_update) + 1
            rows.put(session, consumer_epoch=epoch)
            return epoch

        self._epoch = self._db.write(work)
        self._tokens.clear()
        self._is_in_charge = True
        return self._epoch

    def recover(self, consumed_group_ids: Sequence[str], *, completed_steps: int, prompt_cursor: int) -> None:
        """Makes the queue agree with the checkpoint that the learner (re)starts from; takes over if that is to be done.

        Groups that the checkpoint holds are acknowledged (also when this queue never saw them); all others that an
        earlier life of the learner leased or trained on are ready again.
        """
        if not self._is_in_charge:
            self.take_over()

        def work(session: Session) -> tuple[list[str], Collection[str]]:
            # Before all else: consumers read it first too, so that none of them is halfway through a change.
            self._require_epoch(session)
            ended = rows.recover(
                session, consumed_group_ids, completed_steps=completed_steps, prompt_cursor=prompt_cursor
            )
            return rows.needless_files(session, ended), rows.wanted_files(session)

        needless, wanted = self._db.write(work)
        self._tokens.clear()
        self._payloads.release(needless)
        self._payloads.sweep(wanted, self._clock())

    def finish(self) -> None:
        """Tells the rollout workers that the learner needs nothing more."""

        def work(session: Session) -> None:
            self._require_epoch(session)
            rows.put(session, finished=1)

        self._db.write(work)

    # For everybody.

    def prompt_cursor(self) -> int:
        """Index of the next prompt that was never dispatched: a checkpoint begins with it, and a learner that was
        replaced must not write one any more.

        Raises:
          LeaseLostError: another learner has taken over.
        """

        def work(session: Session) -> int:
            self._require_epoch(session, lock=False)
            return rows.get(session, "next_prompt")

        return self._db.read(work)

    def progress(self) -> Progress:
        return self._db.read(queue_view.progress)

    def dead_letters(self) -> list[tuple[str, str]]:
        """(group id, reason) of every dead letter."""
        return [(letter.group_id, letter.reason) for letter in self.overview().dead]

    def overview(self) -> Overview:
        """All that can be seen; costs more than `progress`."""
        return self._db.read(queue_view.overview)

    def sweep_blobs(self) -> int:
        """Takes back files that a process left behind that died; returns how many. `recover` does so too."""
        return self._payloads.sweep(self._db.read(rows.wanted_files), self._clock())

    def requeue(self, group_ids: Sequence[str] | None = None) -> list[str]:
        """Gives dead letters another chance, as if they had come now; None: all. Returns the ids of those that were."""
        now = self._clock()
        return self._db.write(lambda session: rows.requeue(session, group_ids, now))

    # Pieces of the above.

    def _lease(
        self, count: int, trained_version: int, max_staleness: int, *, max_bytes: int
    ) -> tuple[list[LeasedRow], int]:
        now = self._clock()

        def has_any(session: Session) -> bool:
            self._require_epoch(session, lock=False)
            return rows.can_lease(session, now)

        def work(session: Session) -> tuple[list[LeasedRow], int, list[str]]:
            self._require_epoch(session)
            if rows.any_expired(session, now):
                # Whoever asks for more lives: what it gathers for one step must not come to it a second time.
                rows.renew_leases(session, self._tokens, now + self._lease_s)
                rows.take_back_expired(session, now, self._max_tries)
            if self._bounds.max_age_s is not None:
                rows.bury_old(session, now, self._bounds.max_age_s)
            dropped = rows.drop_stale(session, trained_version, max_staleness)
            leased = rows.lease_ready(
                session, count, consumer=self._consumer, expires_s=now + self._lease_s, max_bytes=max_bytes
            )
            return leased, len(dropped), rows.needless_files(session, dropped)

        # Nothing is looked for without a lock where something was found just now.
        if not self._finds_groups and not self._db.read(has_any):
            return [], 0
        leased, num_dropped, needless = self._db.write(work, synced=False)
        self._finds_groups = bool(leased)
        self._tokens |= {row.held.group_id: row.token for row in leased}
        self._needless += needless
        return leased, num_dropped

    def _bury(self, reasons: dict[str, str]) -> None:
        def work(session: Session) -> None:
            self._require_epoch(session)
            self._require_leases(session, list(reasons))
            for group_id, reason in reasons.items():
                rows.change_named(session, "bury", [group_id], also="reason = ?", values=(quoted(reason),))

        self._db.write(work)
        self._forget(list(reasons))

    def _require_epoch(self, session: Session, *, lock: bool = True) -> None:
        epoch = rows.get(session, "consumer_epoch", session.dialect.for_share if lock else "")
        if epoch != self._epoch:
            raise LeaseLostError(
                f"another learner has taken over {self._db.name} (its turn is number {epoch}, this one's was "
                f"{self._epoch}): let only one run, and stop this one"
            )

    def _require_leases(self, session: Session, group_ids: Sequence[str]) -> dict[str, int]:
        """Tries of each group, all of them leased to this consumer, and none named twice."""
        if len(set(group_ids)) < len(group_ids):
            raise QueueError(f"a group is named twice among {list(group_ids)}: nothing was recorded")
        found = rows.lease_of(session, group_ids)
        for group_id in group_ids:
            state, token, _ = found.get(group_id, ("unknown", -1, 0))
            if state != "leased" or token != self._tokens.get(group_id):
                raise LeaseLostError(f"group {group_id} is {state} and no longer leased to this consumer")
        return {group_id: tries for group_id, (_, _, tries) in found.items()}

    def _forget(self, group_ids: Sequence[str]) -> None:
        for group_id in group_ids:
            self._tokens.pop(group_id, None)
