"""Checkpoints that are copied to a place which outlives this host, and brought back from there."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from learner_jax.checkpoints.folder import TEMPORARY, lives_in, ousted_steps
from learner_jax.checkpoints.manifest import CheckpointError, read_manifest
from learner_jax.contracts import CheckpointCopies, CheckpointCopy
from learner_jax.runtime import Waits, crash_point, rename_durably, sync_tree

#: What a checkpoint is renamed to in whose place a copy comes.
_REPLACED = ".replaced"
_POLL_S = 0.02


class Copying:
    """Copies of the checkpoints of a folder.

    Args:
      directory: the folder, which one learner writes.
      log: told of "copied" with bytes and seconds.
      waits: where its waits are seen.
    """

    def __init__(
        self, copies: CheckpointCopies, directory: Path, *, log: Callable[..., None] | None, waits: Waits
    ) -> None:
        self._copies, self._directory = copies, directory
        self._log, self._waits = log, waits
        self._num_copied = 0

    def keep(self, step: int) -> None:
        """Copies a checkpoint, unless there is a copy.

        Raises:
          CheckpointError: it could not be copied.
        """
        started, folder = time.monotonic(), self._directory / str(step)
        try:
            position = read_manifest(folder).position
            num_bytes = self._copies.keep(folder, step=step, life=position.life, copied=self._was_copied)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {folder} is whole, but could not be copied to {self._copies.address}: {error}; the queue "
                f"keeps what it was trained on (store.checkpoints)"
            ) from error
        if self._log is not None and num_bytes:
            self._log("copied", step=step, bytes=num_bytes, seconds=time.monotonic() - started)

    def wait(self, name: str, is_copying: Callable[[], bool], *, limit_s: float) -> None:
        """Blocks while a copy is made.

        Args:
          limit_s: from one file of it that was copied to the next.
        Raises:
          CheckpointError: no file was copied for that long.
        """
        with self._waits.waiting(
            f"{name} to be copied",
            on=self._copies.address,
            limit_s=limit_s,
            setting="learner.max_wait_s",
            hint="no file of it arrived there in that time; what it was trained on is not forgotten",
            error=CheckpointError,
        ) as wait:
            num_copied = self._num_copied
            while is_copying():
                if num_copied != self._num_copied:
                    num_copied = self._num_copied
                    wait.progressed()
                wait.sleep(_POLL_S)

    def bring_newer(self) -> int | None:
        """Brings the newest copy into the folder, unless that holds it or a later one; returns its step.

        Raises:
          CheckpointError: the copy can't be brought.
        """
        try:
            newest = self._copies.newest()
            if newest is None or _newest_in(self._directory) >= (newest.life, newest.step):
                return None
            self._bring(newest)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the newest checkpoint in {self._copies.address} can't be brought to {self._directory}: {error}"
            ) from error
        return newest.step

    def _bring(self, copy: CheckpointCopy) -> None:
        partial = self._directory / f"{copy.step}{TEMPORARY}-{secrets.token_hex(4)}"
        try:
            self._copies.fetch(copy, partial)
            crash_point("fetched")
            position = read_manifest(partial).position
            if (position.life, position.completed_steps) != (copy.life, copy.step):
                raise CheckpointError(f"it is step {position.completed_steps} of life {position.life}")
            sync_tree(partial)
            target = self._directory / str(copy.step)
            if target.exists():  # damaged, or of a learner that was replaced
                target.rename(target.with_name(f"{target.name}{_REPLACED}.{secrets.token_hex(4)}"))
            rename_durably(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _was_copied(self, num_bytes: int) -> None:
        self._num_copied += num_bytes


def _newest_in(directory: Path) -> tuple[int, int]:
    """(life, step) of what a restart would go on from in a folder, below all others if there is nothing."""
    late = set(ousted_steps(directory))
    known = [(life, step) for step, life in lives_in(directory).items() if life is not None and step not in late]
    return max(known, default=(-1, -1))
