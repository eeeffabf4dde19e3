"""What a watcher sees of the queue: how full it is and its newest groups, by a look that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learner_jax.contracts import Trajectory
from serving_bridge.database import Session, look
from serving_bridge.queue import rows, view
from serving_bridge.queue.payloads import Payloader, open_blobs
from serving_bridge.queue.rows import Held
from serving_bridge.queue.states import LIVE
from serving_bridge.queue.view import Progress


@dataclass(frozen=True)
class Glance:
    """The queue at one moment.

    Attributes:
      groups: the newest ones that are still held, newest first.
    """

    progress: Progress
    groups: list[list[Trajectory]]


def glance(
    url: str | Path,
    *,
    blobs: str | Path | None = None,
    max_groups: int = 8,
    max_group_bytes: int = 2**20,
    timeout_s: float = 2.0,
) -> Glance:
    """Looks at a queue without opening it for writing.

    Args:
      blobs: folder, or URL, of payloads in files; None leaves those groups out.
      max_groups: groups whose payload is read, at most.
      max_group_bytes: bigger groups are left out.
      timeout_s: bound on a server.

    Raises:
      DatabaseError: the database can't be read now.
    """

    def work(session: Session) -> tuple[Progress, list[Held]]:
        states = ",".join(f"'{state}'" for state in LIVE)
        found = session.execute(
            f"SELECT group_id, {rows.ROW}, payload FROM groups LEFT JOIN payloads USING (sequence) "
            f"WHERE {session.dialect.unindexed('state')} IN ({states}) AND num_bytes BETWEEN 1 AND ? "
            "ORDER BY sequence DESC LIMIT ?",
            (max_group_bytes, max_groups),
        )
        held = [rows.held(group_id, place, payload) for group_id, *place, payload in found]
        return view.progress(session), held

    progress, held = look(url, work, timeout_s=timeout_s)
    place = None if blobs is None else open_blobs(blobs, storage_timeout_s=timeout_s)
    payloads = Payloader(None, place, blob_bytes=0, max_bytes=max_group_bytes)
    read = payloads.unpack(held).groups
    return Glance(progress, [read[row.group_id] for row in held if row.group_id in read])
