"""The learner's side of the queue: leases of groups, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from learner_jax.contracts import Lease, LeaseReport, Payloads, quoted
from learner_jax.runtime import WeirError
from serving_bridge.database import Database, Session
from serving_bridge.queue import leases, rows, waiting
from serving_bridge.queue.bounds import QueueBounds, QueueError
from serving_bridge.queue.leases import LeasedRow
from serving_bridge.queue.payloads import Payloader
from serving_bridge.queue.repair import repair
from serving_bridge.queue.states import Event


class LeaseLostError(WeirError, RuntimeError):
    """A group is no longer leased to this consumer, or another consumer has taken over the whole queue."""


class QueueConsumer:
    """What the learner does with the queue; implements `learner_jax.contracts.weights.TrajectorySource`.

    Args:
      name: of this process in leases, for people.
      lease_s: seconds until a lease of a group that was neither trained on nor given back is taken back.
      max_tries: leases of one group before it becomes a dead letter.
    """

    def __init__(
        self,
        database: Database,
        payloads: Payloader,
        *,
        bounds: QueueBounds,
        name: str,
        lease_s: float,
        max_tries: int,
        clock: Callable[[], float],
    ):
        self._db, self._payloads, self._bounds = database, payloads, bounds
        self._name, self._lease_s, self._max_tries = name, lease_s, max_tries
        self._clock = clock
        self._tokens: dict[str, int] = {}
        self._is_in_charge = False
        self._finds_groups = False
        self._needless: list[str] = []  # files that are to be released once it is durable that their groups ended
        self._epoch = self._db.read(lambda session: rows.get(session, "consumer_epoch"))

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
        found = self._db.read(lambda session: leases.payloads(session, group_ids, max_bytes))
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

    def prompt_cursor(self) -> int:
        """Index of the next prompt that was never dispatched: a checkpoint begins with it, and a learner that was
        replaced must not write one any more.

        All claims below it are durable when it returns. A checkpoint that outlived them would pass their prompts over.

        Raises:
          LeaseLostError: another learner has taken over.
        """

        def work(session: Session) -> int:
            self._require_epoch(session)
            cursor = rows.get(session, "next_prompt", session.dialect.for_update)
            rows.put(session, saved_cursor=cursor)  # a transaction that changes nothing would sync nothing
            return cursor

        return self._db.write(work, synced=True)

    # Pieces of the above.

    def _lease(
        self, count: int, trained_version: int, max_staleness: int, *, max_bytes: int
    ) -> tuple[list[LeasedRow], int]:
        now = self._clock()

        def has_any(session: Session) -> bool:
            self._require_epoch(session, lock=False)
            if waiting.any_stale(session, trained_version, max_staleness):
                return True
            return leases.can_lease(session, now)

        def work(session: Session) -> tuple[list[LeasedRow], int, list[str]]:
            self._require_epoch(session)
            if leases.any_expired(session, now):
                # Whoever asks for more lives: what it gathers for one step must not come to it a second time.
                leases.renew(session, self._tokens, now + self._lease_s)
                leases.take_back_expired(session, now, self._max_tries)
            if self._bounds.max_age_s is not None:
                rows.bury_old(session, now, self._bounds.max_age_s)
            dropped = rows.drop_stale(session, trained_version, max_staleness)
            num_unrewarded = waiting.drop_stale(session, trained_version, max_staleness, now)
            leased = leases.take_ready(
                session, count, consumer=self._name, expires_s=now + self._lease_s, max_bytes=max_bytes
            )
            return leased, len(dropped) + num_unrewarded, rows.needless_files(session, dropped)

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
        found = leases.lease_of(session, group_ids)
        for group_id in group_ids:
            state, token, _ = found.get(group_id, ("unknown", -1, 0))
            if state != "leased" or token != self._tokens.get(group_id):
                raise LeaseLostError(f"group {group_id} is {state} and no longer leased to this consumer")
        return {group_id: tries for group_id, (_, _, tries) in found.items()}

    def _forget(self, group_ids: Sequence[str]) -> None:
        for group_id in group_ids:
            self._tokens.pop(group_id, None)
