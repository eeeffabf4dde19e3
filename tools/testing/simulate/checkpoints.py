"""A folder of checkpoints without arrays: Orbax's order of writing and renaming, and Weir's own proof after it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learner_jax.checkpoints import (
    ITEM,
    CheckpointError,
    Manifest,
    find_checkpoint,
    prove,
    read_manifest,
    steps_in,
)
from learner_jax.contracts import Position
from learner_jax.runtime import Code, Waits
from tools.testing.simulate.blocking import sleep
from tools.testing.simulate.loop import Process, ProcessDiedError
from tools.testing.simulate.weights import Parameters

_METADATA, _STATE = "metadata", "state"
_POLL_S = 0.1


class SimulatedCheckpoints:
    """What a learner uses of `learner_jax.checkpoints.Checkpoints`.

    Args:
      directory: that is there.
      save_s: seconds until a save is renamed, drawn for each, and then until it is proven, or until one is found.
      on_proven: told of each step that was proven.
      on_deleted: told of each step that is about to be deleted, since newer ones are proven.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        process: Process,
        waits: Waits,
        save_s: Callable[[], float],
        on_proven: Callable[[int], None],
        on_deleted: Callable[[int], None],
    ) -> None:
        self.directory = directory
        self._keep, self._process, self._waits = keep, process, waits
        self._save_s, self._on_proven, self._on_deleted = save_s, on_proven, on_deleted
        self._saving: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    def bring_copy(self) -> int | None:
        """None: nothing is copied to another place."""
        return None

    def keep_copy(self, step: int) -> None:
        """Nothing is copied."""

    def latest_step(self) -> int | None:
        sleep(self._save_s())  # whoever was replaced may go on meanwhile
        return find_checkpoint(self.directory).step if steps_in(self.directory) else None

    def check(self, step: int) -> bool:
        """There are no arrays to look at."""
        try:
            read_state(self.directory / str(step))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint {step} is damaged: {error}") from error
        return True

    def reload(self) -> None:
        """Nothing of the folder is remembered."""

    def holds_reference(self, step: int) -> bool:
        return False

    def restore(self, like: Any, *, step: int, **options: Any) -> tuple[Any, Position, None]:
        folder = self.directory / str(step)
        return read_state(folder), read_manifest(folder).position, None

    def save(self, state: Any, position: Position, *, reference: Any = None) -> None:
        self._failure = None
        manifest = Manifest(position, "sim", {}, Code("sim", None), {})
        self._saving = self._process.spawn(self._save(state, manifest))

    def is_saving(self) -> bool:
        return self._saving is not None and not self._saving.done()

    def wait(self, timeout_s: float) -> None:
        with self._waits.waiting("the checkpoint", on="the disk", limit_s=timeout_s, error=CheckpointError) as wait:
            while self.is_saving():
                wait.sleep(_POLL_S)
        if self._failure is not None:
            raise self._failure

    async def _save(self, state: Any, manifest: Manifest) -> None:
        step = manifest.position.completed_steps
        temporary = self.directory / f"{step}.orbax-checkpoint-tmp-{manifest.position.life}"
        await asyncio.sleep(self._save_s())
        self._process.check()
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            write_state(temporary, state, manifest)
            await asyncio.sleep(self._save_s())
            os.rename(temporary, self.directory / str(step))
            await asyncio.sleep(self._save_s())
            prove(self.directory / str(step), manifest)
            self._on_proven(step)
            for old in steps_in(self.directory)[: -self._keep]:
                self._on_deleted(old)
                shutil.rmtree(self.directory / str(old))
        except ProcessDiedError:
            raise
        except OSError as error:
            self._failure = CheckpointError(f"checkpoint {step} could not be written: {error}")
        except CheckpointError as error:
            self._failure = error


def write_state(folder: Path, state: Any, manifest: Manifest) -> None:
    """A checkpoint's files, of which nothing is synced: Orbax leaves that to the system."""
    parameters: Parameters = state.params
    for item in (ITEM, _STATE):
        (folder / item).mkdir(parents=True)
    (folder / ITEM / _METADATA).write_text(json.dumps(manifest.encode()))
    (folder / _STATE / _METADATA).write_text(json.dumps([parameters.identity, parameters.history]))


def read_state(folder: Path) -> Any:
    """The state in a checkpoint. Raises `OSError` or `ValueError` where it is not whole."""
    identity, history = json.loads((folder / _STATE / _METADATA).read_text())
    return State(Parameters(identity, tuple((step, tuple(ids)) for step, ids in history)))


def files_of(folder: Path) -> list[Path]:
    """All files of a checkpoint."""
    return [folder / item / _METADATA for item in (ITEM, _STATE)]


class State:
    """As much of a train state as the loop looks at."""

    def __init__(self, params: Parameters) -> None:
        self.params = params
