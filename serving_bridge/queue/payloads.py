"""Groups on their way into rows and out again: encoded, held against the run's limits, the big ones in files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from learner_jax.contracts import (
    ContractError,
    Payloads,
    RecordLimits,
    Trajectory,
    check_group,
    check_identity,
    decode_group,
    encode_group,
)
from learner_jax.contracts import prompt_index as group_index
from learner_jax.runtime import crash_point
from serving_bridge.database import MEMORY, Database, Session, is_postgres, sqlite_path
from serving_bridge.queue import rows
from serving_bridge.queue.blob_objects import BlobObjects
from serving_bridge.queue.blobs import Blob, BlobError, BlobFolder, Blobs
from serving_bridge.queue.bounds import QueueError
from serving_bridge.queue.rows import Held, Record
from serving_bridge.storage import FsspecObjects, StorageTimeouts, is_url

#: Blobs without a row that are younger may belong to a `put` that goes on.
_ORPHAN_AGE_S = 3600.0


def blobs_beside(database: str) -> Path | None:
    """Where the blobs of an SQLite file are; None for other databases.

    Args:
      database: its name.
    """
    return None if database == MEMORY or is_postgres(database) else Path(f"{sqlite_path(database)}-blobs")


def open_blobs(place: str | Path, *, storage_timeout_s: float, spares: bool = True) -> Blobs:
    """The place of payloads that a path or a URL names.

    Args:
      spares: whether files that no row needs may be kept to be written over.

    Raises:
      StorageSetupError: the URL names nothing that can be opened here.
    """
    if not is_url(place):
        return BlobFolder(Path(place)) if spares else BlobFolder(Path(place), spare_bytes=0)
    return BlobObjects(FsspecObjects(str(place), timeouts=StorageTimeouts(give_up_s=storage_timeout_s)))


class Payloader:
    """What stands between groups and the queue's rows.

    Args:
      limits: what the run takes in; None takes all.
      blobs: place for payloads above `blob_bytes`; None keeps them in rows.
      max_bytes: of one group's payload.
    """

    def __init__(self, limits: RecordLimits | None, blobs: Blobs | None, *, blob_bytes: int, max_bytes: int):
        self._limits = limits
        self._blobs = blobs
        self._blob_bytes, self._max_bytes = blob_bytes, max_bytes

    @property
    def blobs(self) -> Blobs | None:
        return self._blobs

    def pack(self, groups: Sequence[tuple[int, Sequence[Trajectory]]]) -> list[Record]:
        """Encodes groups, given as (prompt index, trajectories), and writes the big ones to a file.

        Raises:
          ContractError: one of them breaks its contract, the run's limits or the size limit; nothing was written.
        """
        records = self.encode(groups)
        if self._blobs is None:
            return records
        big = [i for i, record in enumerate(records) if record.num_bytes > self._blob_bytes]
        if big:
            for i, blob in zip(big, self._blobs.write([records[i].payload for i in big]), strict=True):
                records[i] = replace(records[i], blob=blob)
            crash_point("blob")
        return records

    def encode(self, groups: Sequence[tuple[int, Sequence[Trajectory]]]) -> list[Record]:
        """As `pack`, and none is written to a file."""
        return [self._encoded(prompt_index, group) for prompt_index, group in groups]

    def unpack(self, held: Iterable[Held]) -> Payloads:
        """The groups of rows by id, and why others can't be taken."""
        found = Payloads({}, {})
        with _no_reader() if self._blobs is None else self._blobs.reader(self._max_bytes) as read:
            for row in held:
                try:
                    found.groups[row.group_id] = self._decoded(row, read)
                except (ContractError, BlobError) as error:
                    found.unreadable[row.group_id] = str(error)
        return found

    def confirm(self, records: Sequence[Record], accepted: Sequence[Record]) -> None:
        """Called once it is known which records got a row.

        A file that was taken for an orphan just before its row came is written again; one without any row is released.
        """
        file = next((record.blob.file for record in records if record.blob is not None), None)
        if self._blobs is None or file is None:
            return
        if all(record.blob is None for record in accepted):
            self._blobs.release([file])
        elif not self._blobs.holds(file):
            self._blobs.write_as(file, [record.payload for record in records if record.blob is not None])

    def release(self, files: Iterable[str]) -> None:
        """Called once no row needs these files: a process that dies in between leaves orphans."""
        if self._blobs is not None:
            self._blobs.release(files)

    def sweep(self, wanted: Collection[str], now: float) -> int:
        """Takes orphans back; returns how many."""
        return 0 if self._blobs is None else self._blobs.sweep(wanted, before_s=now - _ORPHAN_AGE_S)

    def _decoded(self, row: Held, read: Callable[[Blob], bytes]) -> list[Trajectory]:
        payload = row.payload if row.blob is None else read(row.blob)
        if payload is None:
            raise ContractError(f"the payload is missing, or larger than {self._max_bytes} bytes")
        group = decode_group(payload)
        if self._limits is not None:
            check_group(group, self._limits)
        if any(trajectory.verdict == "pending" for trajectory in group):
            raise ContractError("the rewards of its answers have not come")
        if group[0].group_id != row.group_id:
            raise ContractError(f"the row holds the payload of group {group[0].group_id}")
        oldest = min(trajectory.oldest_version for trajectory in group)
        if oldest != row.oldest_version:
            raise ContractError(f"the row's oldest version is {row.oldest_version}, its payload's is {oldest}")
        # A row may say a later prompt, which only makes it stay longer; it would be forgotten too early by one before.
        if row.prompt_index < (index := group_index(row.group_id)):
            raise ContractError(f"the row's prompt is {row.prompt_index}, expected {index}")
        return group

    def _encoded(self, prompt_index: int, group: Sequence[Trajectory]) -> Record:
        payload = encode_group(group)
        check_identity(group)
        if self._limits is not None:
            check_group(group, self._limits)
        if prompt_index != (index := group_index(group[0].group_id)):
            raise ContractError(
                f"group {group[0].group_id} is put as one of prompt {prompt_index!r:.80}, expected {index}"
            )
        if len(payload) > self._max_bytes:
            raise ContractError(
                f"group {group[0].group_id} has {len(payload)} bytes, expected at most {self._max_bytes} "
                f"(store.max_group_bytes)"
            )
        return Record(
            group_id=group[0].group_id,
            prompt_index=prompt_index,
            oldest_version=min(trajectory.oldest_version for trajectory in group),
            payload=payload,
        )


def require_one_folder(database: Database, blobs: Blobs) -> None:
    """Closes the database and raises `QueueError` where this host sees another folder than the one it was begun with.

    Hosts that share a server may see different folders under one path.
    """
    own = blobs.identity()

    def work(session: Session) -> int:
        known = rows.get(session, "blobs_id", session.dialect.for_update)
        if not known:
            rows.put(session, blobs_id=own)
        return known or own

    if database.write(work) != own:
        database.close()
        raise QueueError(
            f"{blobs.address} on this host is not the folder that {database.name} was begun with: all hosts must "
            f"see the same one there (store.blobs)"
        )


@contextmanager
def _no_reader() -> Iterator[Callable[[Blob], bytes]]:
    """For a process without a folder."""

    def refuse(blob: Blob) -> bytes:
        raise BlobError(f"blob {blob.file} can't be read: this process was given no folder of blobs (store.blobs)")

    yield refuse
