"""Proves in the background that a checkpoint which was just committed can be gone on from, and hashes it.

Until it is proven, nothing that the checkpoint holds may be forgotten elsewhere. Proven means: a restart would pick
this step in this folder, its manifest is the one that was saved, all hosts' chunks of all arrays are there, every file
could be read from start to end, and files and folders are synced to the disk.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from learner_jax.checkpoints.folder import missing_arrays, newest_step
from learner_jax.checkpoints.hashes import Stopped, hash_files, keep_hashes
from learner_jax.checkpoints.manifest import CheckpointError, Manifest, read_manifest
from learner_jax.runtime import crash_point, sync_path, sync_tree

#: Longest wait for hashes once the rest is proven; the checkpoint goes without them then.
HASHES_WITHIN_S = 60.0
#: Beside training; two keep up with a disk.
_THREADS = 2
_POLL_S = 0.05


class Proof:
    """Proves and hashes one checkpoint, in a thread, once it is committed.

    Args:
      folder: where the checkpoint will be, `<directory>/<step>`.
      manifest: that was saved.
      is_writing: whether it is still being written.
      on_end: called in the thread with whether there are hashes now, and the seconds that they took.
      copy: called at the very end; raises `CheckpointError` if a copy could not be made.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        is_writing: Callable[[], bool],
        on_end: Callable[[bool, float], None],
        copy: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._manifest = folder, manifest
        self._is_writing, self._on_end, self._copy = is_writing, on_end, copy
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._is_copying = False
        self._thread = threading.Thread(target=self._run, name="checkpoint-proof", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_copying(self) -> bool:
        """Whether it is proven, and a copy of it being made."""
        return self._is_copying and self.is_running

    def stop(self) -> None:
        """Does without hashes, unless they are there."""
        self._stop.set()

    def require(self) -> None:
        """Raises what the thread ended with; to be called once it has ended.

        Raises:
          CheckpointError: the checkpoint can't be gone on from.
          OSError: what was to be told at the end could not be written.
        """
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while self._is_writing():
            time.sleep(_POLL_S)
        try:
            prove(self._folder, self._manifest)
            crash_point("proven")
            started = time.monotonic()
            hashed = self._hash()
            self._on_end(hashed, time.monotonic() - started)
            self._is_copying = True
            self._copy()
        except (CheckpointError, OSError) as error:
            self._failure = error

    def _hash(self) -> bool:
        """Reads all files; returns whether their hashes are written now."""
        try:
            found = hash_files(self._folder, should_stop=self._stop.is_set, threads=_THREADS)
        except Stopped:
            return False
        except OSError as error:
            raise CheckpointError(_not_proven(self._folder, f"it can't be read back: {error}")) from error
        with contextlib.suppress(OSError):  # a disk that is full just now; the checkpoint itself is there
            keep_hashes(self._folder, found)
            return True
        return False


def prove(folder: Path, saved: Manifest) -> None:
    """Returns if a restart would go on from this checkpoint with all that was saved.

    Raises:
      CheckpointError: the message says what is otherwise.
    """
    try:
        problem = _problem(folder, saved)
        _sync(folder)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(_not_proven(folder, str(error))) from error
    if problem is not None:
        raise CheckpointError(_not_proven(folder, problem))


def settle(folder: Path) -> None:
    """Waits until a checkpoint that is gone on from is on the disk: a life that was killed may have left that open.

    Raises:
      CheckpointError: it can't be synced.
    """
    try:
        _sync(folder)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder} can't be brought to the disk: {error}; the queue would forget groups that a power "
            f"failure then takes from it"
        ) from error


def _sync(folder: Path) -> None:
    sync_tree(folder)
    sync_path(folder.parent)


def _problem(folder: Path, saved: Manifest) -> str | None:
    newest = newest_step(folder.parent)
    if newest != saved.position.completed_steps:
        return f"that would be step {newest} there"
    if _text(read_manifest(folder)) != _text(saved):
        return "its manifest is not the one that was saved"
    return "; ".join(missing_arrays(folder, saved)[:3]) or None


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.encode(), sort_keys=True)


def _not_proven(folder: Path, problem: str) -> str:
    return (
        f"checkpoint {folder} was committed, but is not what a restart would go on from: {problem}; the queue keeps "
        f"what it was trained on. All hosts must see the same folder there, and one run alone may write it "
        f"(run.directory)"
    )
