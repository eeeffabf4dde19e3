"""The durable queue between rollout workers and the learner: loses nothing, and has every group trained on once.

A prompt is claimed by a worker, its group of answers is put, leased by the learner, trained on, and acknowledged once a
checkpoint holds that fact; `states` is the table of what may happen to a group. The rows are in SQLite or PostgreSQL,
big payloads in files beside them.

Groups that ended keep their row without payload, so that putting the same group again has no effect, until every
prompt up to theirs has ended; from then on the watermark stands for them all (`rows.purge`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from learner_jax.contracts import RecordLimits
from learner_jax.runtime import Waits
from serving_bridge.database import Database, is_postgres, open_database
from serving_bridge.queue.admin import QueueAdmin
from serving_bridge.queue.blobs import Blobs
from serving_bridge.queue.bounds import QueueBounds
from serving_bridge.queue.consumer import QueueConsumer
from serving_bridge.queue.payloads import Payloader, blobs_beside, open_blobs, require_one_folder
from serving_bridge.queue.producer import QueueProducer
from serving_bridge.queue.repair import RepairingDatabase
from serving_bridge.queue.rewards import QueueRewards


class TrajectoryQueue:
    """One connection to the queue, and the sides from which it is used: each process takes the one that it needs.

    Args:
      url: a path or `sqlite:///path`, `:memory:`, or `postgresql://...?schema=name`; may be left out with `database`.
      lease_s: seconds until the learner's lease of a group that it neither trained on nor gave back is taken back.
      claim_lease_s: seconds until a worker's claims that it did not renew are handed on.
      max_tries: leases of one group before it becomes a dead letter.
      clock: wall clock in seconds, common to all processes that share the queue.
      limits: what the run takes in; groups outside are refused by `put` and buried when leased. None takes all.
      bounds: what the queue holds at most.
      blobs: folder, or URL of a place in object storage, for payloads above `blob_bytes`, which all processes reach;
        by default a folder beside the SQLite file.
      storage_timeout_s: bound on requests to object storage.
      timeout_s: bound on waiting for the database.
      consumer: name of this process in leases, for people.
      erases: what ended leaves no bytes behind: deleted rows are overwritten, files that no row needs are deleted and
        not kept as spares. For queues of users' conversations.
      database: takes the place of `url`; its schema must be there (`database.open_database`, `migrations.migrate`).

    Attributes:
      producer: for rollout workers, which claim prompts and put groups.
      consumer: for the learner, which leases groups, trains on them and acknowledges them.
      rewards: for those who bring rewards later than the answers.
      admin: for people and tools, which look at the queue and requeue dead letters.

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
        storage_timeout_s: float = 60.0,
        timeout_s: float = 30.0,
        waits: Waits | None = None,
        consumer: str = "",
        erases: bool = False,
        database: Database | None = None,
    ):
        opened = open_database(url, timeout_s=timeout_s, waits=waits, erases=erases) if database is None else database
        self._db = db = RepairingDatabase(opened)
        bounds = QueueBounds() if bounds is None else bounds
        place = blobs if blobs is not None else blobs_beside(db.name) if database is None else None
        opened_blobs = (
            None if place is None else open_blobs(place, storage_timeout_s=storage_timeout_s, spares=not erases)
        )
        payloads = Payloader(limits, opened_blobs, blob_bytes=blob_bytes, max_bytes=bounds.max_group_bytes)
        self._blobs = payloads.blobs
        if self._blobs is not None and is_postgres(db.name):
            require_one_folder(db, self._blobs)
        self.producer = QueueProducer(db, payloads, bounds=bounds, claim_lease_s=claim_lease_s, clock=clock)
        self.consumer = QueueConsumer(
            db,
            payloads,
            bounds=bounds,
            name=consumer or f"{socket.gethostname()}:{os.getpid()}",
            lease_s=lease_s,
            max_tries=max_tries,
            clock=clock,
        )
        self.rewards = QueueRewards(db, clock=clock)
        self.admin = QueueAdmin(db, payloads, clock=clock)

    @property
    def database(self) -> Database:
        return self._db.inner

    @property
    def blobs(self) -> Blobs | None:
        return self._blobs

    def close(self) -> None:
        self._db.close()
