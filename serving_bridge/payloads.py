"""Groups on their way into rows and out again: encoded, held against the run's limits, the big ones in files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from learner_jax.contracts import ContractError, RecordLimits, Trajectory, check_group, decode_group, encode_group
from learner_jax.crash_points import crash_point
from serving_bridge.blobs import BlobError, BlobFolder
from serving_bridge.database import MEMORY, is_postgres, sqlite_path
from serving_bridge.queue_rows import Record

#: Blobs without a row that are younger may belong to a `put` that goes on.
_ORPHAN_AGE_S = 3600.0


def blobs_beside(database: str) -> Path | None:
    """Where the blobs of an SQLite file are; None for other databases.

    Args:
      database: its name.
    """
    return None if database == MEMORY or is_postgres(database) else Path(f"{sqlite_path(database)}-blobs")


class Payloader:
    """What stands between groups and the queue's rows.

    Args:
      limits: what the run takes in; None takes all.
      blobs: folder for payloads above `blob_bytes`; None keeps them in rows.
      max_bytes: of one group's payload.
    """

    def __init__(self, limits: RecordLimits | None, blobs: Path | None, *, blob_bytes: int, max_bytes: int):
        self._limits = limits
        self._blobs = None if blobs is None else BlobFolder(blobs)
        self._blob_bytes, self._max_bytes = blob_bytes, max_bytes

    @property
    def blobs(self) -> BlobFolder | None:
        return self._blobs

    def pack(self, prompt_index: int, group: Sequence[Trajectory]) -> Record:
        """Encodes a group, and writes it to a file if it is big.

        Raises:
          ContractError: it breaks its contract, the run's limits or the size limit.
        """
        payload = encode_group(group)
        if self._limits is not None:
            check_group(group, self._limits)
        if len(payload) > self._max_bytes:
            raise ContractError(
                f"group {group[0].group_id} has {len(payload)} bytes, expected at most {self._max_bytes} "
                f"(store.max_group_bytes)"
            )
        blob = None
        if self._blobs is not None and len(payload) > self._blob_bytes:
            blob = self._blobs.write(payload)
            crash_point("blob")
        return Record(
            group_id=group[0].group_id,
            prompt_index=prompt_index,
            oldest_version=min(trajectory.oldest_version for trajectory in group),
            payload=payload,
            blob=blob,
        )

    def unpack(self, blob: str | None, payload: bytes | None) -> list[Trajectory]:
        """The group of a row.

        Raises:
          ContractError: it holds none, or none of this run.
          BlobError: its file is missing or damaged.
        """
        if blob is not None:
            if self._blobs is None:
                raise BlobError(f"blob {blob} can't be read: this process was given no folder of blobs (store.blobs)")
            payload = self._blobs.read(blob)
        if payload is None:
            raise ContractError("the payload is missing")
        group = decode_group(payload)
        if self._limits is not None:
            check_group(group, self._limits)
        return group

    def keep(self, records: Sequence[Record]) -> None:
        """Called once their rows are there: writes files again that were taken for orphans just before."""
        for record in records:
            if self._blobs is not None and record.blob is not None and not self._blobs.holds(record.blob):
                self._blobs.write(record.payload)

    def delete(self, blobs: Sequence[str]) -> None:
        """Called once no row needs them: a process that dies in between leaves orphans."""
        if self._blobs is not None:
            self._blobs.delete(blobs)

    def sweep(self, wanted: Collection[str], now: float) -> int:
        """Deletes orphans; returns how many."""
        return 0 if self._blobs is None else self._blobs.sweep(wanted, before_s=now - _ORPHAN_AGE_S)
