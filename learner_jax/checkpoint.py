"""Orbax checkpoints: the train state, in chunks of one layer, and its manifest, committed as one step or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from learner_jax.checkpoint_files import FileCheck, Hashing, check_files
from learner_jax.checkpoint_manifest import (
    CHECKPOINT_SCHEMA,
    ITEM,
    CheckpointError,
    Manifest,
    Position,
    array_specs,
    check_arrays,
    read_manifest,
    this_code,
)
from learner_jax.crash_points import crash_point
from learner_jax.disk_errors import disk_failure
from learner_jax.train_step import Params, TrainState
from learner_jax.value_model import KEY as VALUE_KEY
from learner_jax.waits import Waits

__all__ = [
    "CHECKPOINT_SCHEMA",
    "CheckpointError",
    "Checkpoints",
    "Position",
    "newest_step",
    "restore_parameters",
    "unfinished",
    "verify",
]

#: Whoever reads one chunk needs this much memory at most, whatever the size of the model.
_CHUNK_BYTES = 128 << 20
_TEMPORARY = ".orbax-checkpoint-tmp"
#: Longest wait for hashes at the next save and at the end; the checkpoint goes without them then.
_HASHES_WITHIN_S = 60.0
#: A commit that takes longer is told of: half of what a supervisor grants between SIGTERM and SIGKILL.
_SLOW_S = 30.0
_POLL_S = 0.02
#: Replicas share the writing of arrays from this size on; smaller pieces would be files' worth of bookkeeping.
_SHARED_FROM_BYTES = 1 << 20


class Checkpoints:
    """A folder of checkpoints, one per saved step; saving and hashing happen in the background.

    With several hosts every one of them has one of these for a folder that all of them see, and all call `save`; the
    first alone hashes, and nobody waits for another's hashes but by the waits of Orbax.

    Args:
      directory: a local or shared folder that one run alone writes.
      keep: newest checkpoints kept.
      run: name of the run, for the manifest.
      config: the run's resolved settings, for the manifest; what JSON can hold.
      log: told of each checkpoint that is committed, from a background thread of the first host, and of slow ones.
      waits: where its waits are seen.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int,
        run: str = "",
        config: Mapping[str, Any] | None = None,
        log: Callable[..., None] | None = None,
        waits: Waits | None = None,
    ):
        self._waits = waits or Waits()
        arrays = {item: _array_handler() for item in ("state", "reference")}
        self._directory = Path(directory).absolute()
        self._saving_step = -1
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True),
                item_handlers=arrays | {ITEM: ocp.JsonCheckpointHandler()},
            )
        self._run, self._config, self._code = run, dict(config or {}), this_code()
        self._log = log
        self._hashing: Hashing | None = None
        self._leftovers = unfinished(self._directory)

    def save(self, state: TrainState, position: Position, *, reference: Params | None = None) -> None:
        """Starts a save; returns once the arrays are copied, before they are on disk. `state` may be donated then.

        Args:
          reference: the KL's reference policy, where a resumed run could not find it elsewhere.
        Raises:
          CheckpointError: the save before could not be committed, or this one not be begun.
        """
        self.finish()
        step, started = position.completed_steps, time.monotonic()
        trees = {"state": _as_tree(state)} | ({} if reference is None else {"reference": reference})
        specs = {item: array_specs(tree) for item, tree in trees.items()}
        manifest = Manifest(position, self._run, self._config, self._code, specs)
        items: dict[str, Any] = {
            item: ocp.args.PyTreeSave(tree, save_args=_chunked(tree)) for item, tree in trees.items()
        }
        items[ITEM] = ocp.args.JsonSave(manifest.encode())
        leads = jax.process_index() == 0
        if leads:
            for name in self._leftovers:  # of a run that was killed; nobody else writes here
                shutil.rmtree(self._directory / name, ignore_errors=True)
            self._leftovers = ()
        self._saving_step = step
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

        def hashed(verified: bool, seconds: float) -> None:
            crash_point("hashed")
            if self._log is not None:
                total = time.monotonic() - started
                self._log("committed", step=step, verified=verified, hash_s=seconds, seconds=total - seconds)

        if leads:
            self._hashing = Hashing(self._directory / str(step), is_writing=self.is_saving, on_end=hashed)

    def wait(self, timeout_s: float = 600.0) -> None:
        """Blocks until the save in progress, if any, is committed.

        Raises:
          CheckpointError: it is not within `timeout_s`, or it failed.
        """
        told = False
        with self._waits.waiting(
            f"{self._name()} to be committed",
            on="the disk",
            limit_s=timeout_s,
            setting="learner.max_wait_s",
            hint="see whether that disk is full or slow; the checkpoints before it are kept",
            error=CheckpointError,
        ) as wait:
            while self.is_saving():
                if wait.waited_s >= _SLOW_S and not told and self._log is not None:
                    self._log("uncommitted", step=self._saving_step, waited_s=wait.waited_s)
                    told = True
                wait.sleep(_POLL_S)
        with self._writing():
            self._manager.wait_until_finished()

    def _name(self) -> str:
        """What a save in progress is of."""
        return f"checkpoint {self._directory / str(self._saving_step)}"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:
            name = self._name() if self._saving_step >= 0 else f"checkpoint folder {self._directory}"
            raise CheckpointError(
                f"{name} could not be written: {_reason(error)}; the checkpoints before it are kept"
            ) from error

    def is_saving(self) -> bool:
        """Whether a save has started and is not yet committed."""
        return self._manager.is_saving_in_progress()

    def latest_step(self) -> int | None:
        """The newest committed step, also of another process that wrote it until just now."""
        self._manager.reload()
        return self._manager.latest_step()

    def newest_on_disk(self) -> int | None:
        """The newest committed step, whoever wrote it; None if there is none."""
        return max(_steps(self._directory), default=None)

    def check(self, step: int) -> bool:
        """Checks the files of a checkpoint against their hashes; returns whether it has any.

        Raises:
          CheckpointError: a file is damaged; the message says which checkpoint to go on from, and how.
        """
        return require_intact(self._directory, step)

    def restore(
        self,
        like: TrainState,
        *,
        reference: Params | None = None,
        step: int | None = None,
        files_checked: bool = False,
    ) -> tuple[TrainState, Position, Params | None]:
        """Restores the newest (or the given) checkpoint onto the shapes and shardings of `like`.

        Args:
          reference: shapes and shardings of the reference policy, if the checkpoint must hold one.
          files_checked: whether `check` was called; else it is.
        Raises:
          CheckpointError: there is none, it is damaged, or it belongs to another model.
        """
        self.wait()
        step = newest_step(self._directory) if step is None else step
        folder = self._directory / str(step)
        if not files_checked:
            self.check(step)
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_way_back(self._directory, step)}") from error
        trees = {"state": _as_tree(like)} | ({} if reference is None else {"reference": reference})
        for item, tree in trees.items():
            if item not in manifest.arrays:
                raise CheckpointError(
                    f"checkpoint {folder} holds no {item}, which this run needs: give learner.loss.kl.reset_every as "
                    f"the run that wrote it had it"
                )
            check_arrays(manifest.arrays[item], array_specs(tree), folder)
        items = {item: _restore_args(tree) for item, tree in trees.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"checkpoint {folder} can't be read: {_reason(error)}; {_way_back(self._directory, step)}"
            ) from error
        moved = restored["reference"] if reference is not None else None
        return TrainState(**restored["state"]), manifest.position, moved

    def finish(self) -> None:
        """Waits until the last checkpoint is committed and hashed.

        Raises:
          CheckpointError: it could not be committed.
        """
        try:
            self.wait()
        finally:
            self._finish_hashing()

    def close(self) -> None:
        """As `finish`; nothing can be saved afterwards."""
        self.finish()
        with self._writing():
            self._manager.close()

    def _finish_hashing(self) -> None:
        hashing, self._hashing = self._hashing, None
        if hashing is not None:
            hashing.finish(_HASHES_WITHIN_S)


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of trees of arrays, without compression.

    zstd would save 7% of the bytes of fp32 weights and moments, for two to five times the CPU time of a save and twice
    that of a restore.
    """
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler()),
        (jax.Array, handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARED_FROM_BYTES)),
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step, "key": state.key}


def _chunked(tree: Any) -> Any:
    """Orbax's arguments for a tree: one layer to a chunk, and large matrices in pieces of their largest dimension.

    On several devices a chunk is within the part of one device, too.
    """

    def of(path: tuple[Any, ...], leaf: Any) -> ocp.SaveArgs:
        stacked = leaf.ndim >= 2 and any(getattr(key, "key", None) == "layers" for key in path)
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(of, tree)


def _restore_args(tree: Any) -> Any:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _reason(error: Exception) -> str:
    """What happened, without the paths and specifications that TensorStore adds, which are many times longer."""
    if (failure := disk_failure(error)) is not None:
        return failure.strerror or str(failure)
    return str(error).partition(" [tensorstore_spec")[0]


def unfinished(directory: Path) -> tuple[str, ...]:
    """Folders of saves that were never committed, in a folder of checkpoints."""
    return tuple(sorted(path.name for path in directory.glob(f"*{_TEMPORARY}*")))


def newest_step(directory: Path) -> int:
    """The newest committed checkpoint in a folder of them.

    Raises:
      CheckpointError: there is none.
    """
    if not directory.is_dir():
        raise CheckpointError(f"checkpoint folder {directory} does not exist")
    steps = _steps(directory)
    if not steps:
        left = unfinished(directory)
        tail = f"; {', '.join(left)} there was never committed and can't be used" if left else ""
        raise CheckpointError(f"{directory} holds no checkpoint; expected <step>/state inside it{tail}")
    return steps[-1]


def verify(directory: str | Path, step: int) -> FileCheck:
    """What is wrong with a checkpoint, without reading its arrays: its files against their hashes, and its manifest."""
    folder = Path(directory).absolute() / str(step)
    if not folder.is_dir():
        return FileCheck(hashed=False, problems=(f"{folder}: expected a folder, but there is none",))
    found = check_files(folder)
    if found.problems:
        return found
    try:
        read_manifest(folder)
    except CheckpointError as error:
        return FileCheck(found.hashed, (str(error),))
    return found


def require_intact(directory: Path, step: int) -> bool:
    """Refuses a checkpoint with damaged files; returns whether it has hashes to tell by.

    Raises:
      CheckpointError: the message names files, and the newest intact checkpoint before it.
    """
    folder = directory / str(step)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} does not exist; those there: {_steps(directory) or 'none'}")
    found = check_files(folder)
    if found.problems:
        shown = "; ".join(found.problems[:3])
        more = f" and {len(found.problems) - 3} more" if len(found.problems) > 3 else ""
        raise CheckpointError(f"checkpoint {folder} is damaged: {shown}{more}; {_way_back(directory, step)}")
    return found.hashed


def _steps(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def _way_back(directory: Path, damaged: int) -> str:
    """The newest intact checkpoint before a damaged one, and how to go on from it."""
    steps = _steps(directory)
    for older in reversed([step for step in steps if step < damaged]):
        found = verify(directory, older)
        if found.problems:
            continue
        moves = " && ".join(
            f"mv {directory / str(step)} {directory / str(step)}.damaged" for step in steps if step > older
        )
        state = "intact" if found.hashed else "there and readable, but has no hashes to verify it"
        return (
            f"the newest before it that can be used is {directory / str(older)}, which is {state}: to go on from it, "
            f"run {moves}, then start the run again"
        )
    return "there is no intact one before it"


def restore_parameters(path: str | Path) -> dict[str, Any]:
    """Reads only the policy's fp32 parameters of a checkpoint: `<directory>/<step>`, or the newest in a directory.

    Returns:
      A nested dict of host arrays, as `learner_jax.hf_io.export_tensors` takes it.
    Raises:
      CheckpointError: there is no checkpoint there, or it is damaged.
    """
    path = Path(path).absolute()
    if not (path / "state").is_dir():
        path = path / str(newest_step(path))
    if path.name.isdigit():  # else somebody renamed it, and knows why
        require_intact(path.parent, int(path.name))
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path / "state").item_metadata.tree
            policy = {name: leaf for name, leaf in metadata["params"].items() if name != VALUE_KEY}
            item = {"params": jax.tree.map(lambda _: 0, policy)}
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
            return checkpointer.restore(path / "state", args=args)["params"]
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {_reason(error)}") from error
