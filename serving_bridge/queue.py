"""The durable queue between rollout workers and the learner.

A prompt is claimed by a worker, its group of answers is put, leased by the learner, trained on, and acknowledged
once a checkpoint holds that fact. States of a group:

    ready -> leased -> trained -> acknowledged
      ^        |          |
      |        v          '-> ready again, when the learner restarts from an older checkpoint
      |       nack, expired lease (dead after too many tries)
      '------------'
    ready -> dropped, when it is too stale to train on

Acknowledged, dropped and dead groups keep their row without payload (dead ones with it), so that putting the same
group again has no effect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.contracts import (
    ContractError,
    Lease,
    LeaseReport,
    Payloads,
    Trajectory,
    decode_group,
    encode_group,
)
from serving_bridge.database import open_database, transaction
from serving_bridge.staleness import Pace, dispatch_room, is_stale


class QueueError(RuntimeError):
    """The queue is not the one that was expected."""


class LeaseLostError(RuntimeError):
    """A group is no longer leased to this consumer: another one took it after the lease ran out."""


@dataclass(frozen=True)
class Progress:
    """What the learner has made known, and how full the queue is."""

    completed_steps: int
    trained_version: int
    finished: bool
    next_prompt: int
    num_ready: int
    num_leased: int
    num_trained: int
    num_acknowledged: int
    num_dropped: int
    num_dead: int
    num_claimed: int


class TrajectoryQueue:
    """One connection to the queue; implements `learner_jax.contracts.TrajectorySource`.

    Args:
      path: the SQLite file.
      lease_s: seconds until a lease or claim that nobody renewed is taken back.
      max_tries: leases of one group before it becomes a dead letter.
      clock: wall clock in seconds, common to all processes that share the file.
    """

    def __init__(
        self, path: str | Path, *, lease_s: float = 3600.0, max_tries: int = 3, clock: Callable[[], float] = time.time
    ):
        self._db = open_database(path)
        self._lease_s = lease_s
        self._max_tries = max_tries
        self._clock = clock
        self._tokens: dict[str, int] = {}

    def close(self) -> None:
        self._db.close()

    # Rollout side.

    def claim_prompts(self, worker: str, limit: int, pace: Pace, *, served_step: int) -> list[int]:
        """Claims up to `limit` prompt indices for `worker`, as far as the staleness gate has room.

        Claims that ran out are handed on before new prompts are started.
        """
        now = self._clock()
        if not self._expired_claims(now, limit) and not self._room(pace, served_step):
            return []  # the common case while the gate is closed costs no write
        with transaction(self._db) as db:
            expired = self._expired_claims(now, limit)
            start = self._get("next_prompt")
            fresh = range(start, start + min(self._room(pace, served_step), limit - len(expired)))
            self._set("next_prompt", fresh.stop)
            claimed = [*expired, *fresh]
            db.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)",
                [(index, worker, now + self._lease_s) for index in claimed],
            )
        return claimed

    def resume_claims(self, worker: str) -> list[int]:
        """Prompts that an earlier life of this worker claimed and never finished; they stay claimed."""
        with transaction(self._db) as db:
            db.execute("UPDATE claims SET expires_s = ? WHERE worker = ?", (self._clock() + self._lease_s, worker))
            rows = db.execute("SELECT prompt_index FROM claims WHERE worker = ? ORDER BY prompt_index", (worker,))
            return [row[0] for row in rows]

    def release_claim(self, prompt_index: int) -> None:
        """Gives up a claim; its place is refunded and the prompt is skipped."""
        with transaction(self._db) as db:
            db.execute("DELETE FROM claims WHERE prompt_index = ?", (prompt_index,))

    def put(self, groups: Sequence[tuple[int, Sequence[Trajectory]]]) -> int:
        """Accepts finished groups as (prompt index, trajectories) in one transaction; returns how many were new.

        A group that is already known under its id, in whatever state, is not added again.
        """
        rows = [
            (group[0].group_id, min(t.oldest_version for t in group), encode_group(group), self._clock())
            for _, group in groups
        ]
        num_new = 0
        with transaction(self._db) as db:
            for row in rows:
                db.execute(
                    "INSERT OR IGNORE INTO groups (group_id, state, oldest_version, payload, created_s) "
                    "VALUES (?, 'ready', ?, ?, ?)",
                    row,
                )
                num_new += db.changes()
            db.executemany("DELETE FROM claims WHERE prompt_index = ?", [(index,) for index, _ in groups])
        return num_new

    # Learner side.

    def lease_groups(self, count: int, *, trained_version: int, max_staleness: int) -> LeaseReport:
        """Leases up to `count` groups, oldest first. Stale ones are dropped, unreadable ones become dead letters."""
        groups: list[list[Trajectory]] = []
        with transaction(self._db):
            self._take_back_expired(self._clock())
            num_dropped = self._drop_stale(trained_version, max_staleness)
            for group_id, payload in self._ready("payload", count):
                try:
                    groups.append(decode_group(payload))
                except ContractError as error:
                    self._set_state(group_id, "dead", reason=str(error))
                else:
                    self._lease(group_id)
        return LeaseReport(groups=groups, num_dropped_stale=num_dropped)

    def lease(self, count: int, *, trained_version: int, max_staleness: int) -> Lease:
        """As `lease_groups`, for groups that other connections to this queue `read`."""
        with transaction(self._db):
            self._take_back_expired(self._clock())
            num_dropped = self._drop_stale(trained_version, max_staleness)
            leased = self._ready("length(payload)", count)
            for group_id, _ in leased:
                self._lease(group_id)
        return Lease(
            group_ids=[group_id for group_id, _ in leased],
            num_bytes=[size for _, size in leased],
            num_dropped_stale=num_dropped,
        )

    def read(self, group_ids: Sequence[str]) -> Payloads:
        """What leased groups hold, and why others can't be read; changes nothing.

        Raises:
          QueueError: a group is not leased in this queue.
        """
        read = Payloads({}, {})
        for group_id in group_ids:
            query = "SELECT payload FROM groups WHERE group_id = ? AND state = 'leased'"
            row = self._db.execute(query, (group_id,)).fetchone()
            if row is None:
                raise QueueError(
                    f"group {group_id} is not leased in {self._db.filename}: all hosts of the learner must open the "
                    f"same queue (store.database)"
                )
            try:
                read.groups[group_id] = decode_group(row[0])
            except ContractError as error:
                read.unreadable[group_id] = str(error)
        return read

    def bury(self, group_id: str, reason: str) -> None:
        """Makes a leased group a dead letter.

        Raises:
          LeaseLostError: it is not leased to this consumer any more.
        """
        with transaction(self._db):
            self._require_lease(group_id)
            self._set_state(group_id, "dead", reason=reason)
        self._tokens.pop(group_id, None)

    def mark_trained(self, group_ids: Sequence[str], *, completed_steps: int, trained_version: int) -> None:
        """Records that one optimizer step consumed these groups and that its weights are `trained_version`.

        Raises:
          LeaseLostError: a group is not leased to this consumer any more; nothing was recorded.
        """
        with transaction(self._db):
            for group_id in group_ids:
                self._require_lease(group_id)
                self._set_state(group_id, "trained")
            self._set("completed_steps", completed_steps)
            self._set("trained_version", trained_version)

    def acknowledge(self, group_ids: Sequence[str]) -> None:
        """Ends groups whose training is committed in a checkpoint; their payload is freed."""
        with transaction(self._db) as db:
            db.executemany(
                "UPDATE groups SET state = 'acknowledged', payload = NULL WHERE group_id = ? AND state = 'trained'",
                [(group_id,) for group_id in group_ids],
            )
        for group_id in group_ids:
            self._tokens.pop(group_id, None)

    def reject(self, group_id: str, reason: str) -> None:
        """Negative acknowledgement: the group goes back to ready, or becomes a dead letter after too many tries."""
        with transaction(self._db) as db:
            self._require_lease(group_id)
            tries = db.execute("SELECT tries FROM groups WHERE group_id = ?", (group_id,)).fetchone()[0]
            self._set_state(group_id, "dead" if tries >= self._max_tries else "ready", reason=reason)
        self._tokens.pop(group_id, None)

    def recover(self, consumed_group_ids: Sequence[str], *, completed_steps: int, prompt_cursor: int) -> None:
        """Makes the queue agree with the checkpoint that the learner (re)starts from.

        Groups that the checkpoint holds are acknowledged (also when this file never saw them); all others that an
        earlier life of the learner leased or trained on are ready again.
        """
        consumed = [(group_id,) for group_id in consumed_group_ids]
        with transaction(self._db) as db:
            db.executemany(
                "INSERT INTO groups (group_id, state, oldest_version, created_s) VALUES (?1, 'acknowledged', 0, 0) "
                "ON CONFLICT (group_id) DO UPDATE SET state = 'acknowledged', payload = NULL",
                consumed,
            )
            db.execute("UPDATE groups SET state = 'ready', tries = 0 WHERE state IN ('leased', 'trained')")
            self._set("completed_steps", completed_steps)
            self._set("next_prompt", max(prompt_cursor, self._get("next_prompt")))
            self._set("finished", 0)
        self._tokens.clear()

    def finish(self) -> None:
        """Tells the rollout workers that the learner needs nothing more."""
        with transaction(self._db):
            self._set("finished", 1)

    # For everybody.

    def prompt_cursor(self) -> int:
        return self._get("next_prompt")

    def progress(self) -> Progress:
        with self._db:  # one consistent snapshot
            return Progress(
                completed_steps=self._get("completed_steps"),
                trained_version=self._get("trained_version"),
                finished=bool(self._get("finished")),
                next_prompt=self._get("next_prompt"),
                num_ready=self._count("ready"),
                num_leased=self._count("leased"),
                num_trained=self._count("trained"),
                num_acknowledged=self._count("acknowledged"),
                num_dropped=self._count("dropped"),
                num_dead=self._count("dead"),
                num_claimed=self._num_claimed(),
            )

    def dead_letters(self) -> list[tuple[str, str]]:
        """(group id, reason) of every dead letter."""
        return self._db.execute("SELECT group_id, reason FROM groups WHERE state = 'dead' ORDER BY sequence").fetchall()

    # Pieces of the above, inside its transaction.

    def _expired_claims(self, now: float, limit: int) -> list[int]:
        query = "SELECT prompt_index FROM claims WHERE expires_s < ? ORDER BY prompt_index LIMIT ?"
        return [row[0] for row in self._db.execute(query, (now, limit))]

    def _room(self, pace: Pace, served_step: int) -> int:
        return dispatch_room(
            pace,
            completed_steps=self._get("completed_steps"),
            served_step=served_step,
            outstanding=self._count("ready") + self._count("leased"),
            running=self._num_claimed(),
        )

    def _num_claimed(self) -> int:
        return self._db.execute("SELECT count(*) FROM claims").fetchone()[0]

    def _ready(self, column: str, count: int) -> list[tuple[str, Any]]:
        """(id, `column`) of the oldest groups that may be leased."""
        query = f"SELECT group_id, {column} FROM groups WHERE state = 'ready' ORDER BY sequence LIMIT ?"
        return self._db.execute(query, (count,)).fetchall()

    def _lease(self, group_id: str) -> None:
        token = self._get("next_lease_token")
        self._set("next_lease_token", token + 1)
        self._db.execute(
            "UPDATE groups SET state = 'leased', tries = tries + 1, lease_token = ?, lease_expires_s = ? "
            "WHERE group_id = ?",
            (token, self._clock() + self._lease_s, group_id),
        )
        self._tokens[group_id] = token

    def _take_back_expired(self, now: float) -> None:
        self._db.execute(
            "UPDATE groups SET state = CASE WHEN tries >= ? THEN 'dead' ELSE 'ready' END, reason = 'lease expired' "
            "WHERE state = 'leased' AND lease_expires_s < ?",
            (self._max_tries, now),
        )

    def _drop_stale(self, trained_version: int, max_staleness: int) -> int:
        ready = self._db.execute("SELECT group_id, oldest_version FROM groups WHERE state = 'ready'").fetchall()
        stale = [
            group_id
            for group_id, oldest in ready
            if is_stale(trained_version=trained_version, oldest_version=oldest, max_staleness=max_staleness)
        ]
        for group_id in stale:
            self._db.execute(
                "UPDATE groups SET state = 'dropped', payload = NULL, reason = ? WHERE group_id = ?",
                (f"stale at version {trained_version}", group_id),
            )
        return len(stale)

    def _require_lease(self, group_id: str) -> None:
        row = self._db.execute("SELECT state, lease_token FROM groups WHERE group_id = ?", (group_id,)).fetchone()
        if row is None or row[0] != "leased" or row[1] != self._tokens.get(group_id):
            state = "unknown" if row is None else row[0]
            raise LeaseLostError(f"group {group_id} is {state} and no longer leased to this consumer")

    def _set_state(self, group_id: str, state: str, *, reason: str | None = None) -> None:
        self._db.execute("UPDATE groups SET state = ?, reason = ? WHERE group_id = ?", (state, reason, group_id))

    def _count(self, state: str) -> int:
        return self._db.execute("SELECT count(*) FROM groups WHERE state = ?", (state,)).fetchone()[0]

    def _get(self, key: str) -> int:
        row = self._db.execute("SELECT value FROM progress WHERE key = ?", (key,)).fetchone()
        return row[0] if row else 0

    def _set(self, key: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (key, value))
