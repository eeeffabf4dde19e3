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

from learner_jax.checkpoints.copies import Copying
from learner_jax.checkpoints.folder import (
    Found,
    check,
    find_checkpoint,
    newest_step,
    require_whole,
    steps_in,
    unfinished,
    way_back,
)
from learner_jax.checkpoints.hashes import FileCheck
from learner_jax.checkpoints.manifest import (
    CHECKPOINT_SCHEMA,
    ITEM,
    CheckpointError,
    Manifest,
    array_specs,
    check_arrays,
    read_manifest,
)
from learner_jax.checkpoints.proof import HASHES_WITHIN_S, Proof
from learner_jax.contracts import CheckpointCopies, Position
from learner_jax.models import KEY as VALUE_KEY
from learner_jax.runtime import Waits, crash_point, disk_failure, this_code
from learner_jax.training import Params, TrainState

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
#: A commit that takes longer is told of: half of what a supervisor grants between SIGTERM and SIGKILL.
_SLOW_S = 30.0
_POLL_S = 0.02
#: Longest wait for a proof beside that for the hashes: it looks at names, sizes and indices alone.
_PROVEN_WITHIN_S = 120.0
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
      copies: where every checkpoint is copied to before it counts as saved, if anywhere.
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
        copies: CheckpointCopies | None = None,
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
        self._copying = None if copies is None else Copying(copies, self._directory, log=log, waits=self._waits)
        self._proof: Proof | None = None
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
            folder = self._directory / str(step)
            self._proof = Proof(
                folder, manifest, is_writing=self._is_writing, on_end=hashed, copy=lambda: self.keep_copy(step)
            )

    def wait(self, timeout_s: float = 600.0) -> None:
        """Blocks until the save in progress, if any, is committed; on the first host until it is proven and hashed.

        Raises:
          CheckpointError: it is not within `timeout_s`, it failed, or what was committed can't be gone on from.
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
            while self._is_writing():
                if wait.waited_s >= _SLOW_S and not told and self._log is not None:
                    self._log("uncommitted", step=self._saving_step, waited_s=wait.waited_s)
                    told = True
                wait.sleep(_POLL_S)
            try:
                with self._writing():
                    self._manager.wait_until_finished()
            except CheckpointError:
                self._proof = None  # of nothing
                raise
        self._await_proof(timeout_s)

    def _await_proof(self, copied_within_s: float) -> None:
        """Blocks until what was committed is proven; hashes are given up after a while, the rest not."""
        if (proof := self._proof) is None:
            return
        with self._waits.waiting(
            f"{self._name()} to be read back",
            on="the disk",
            limit_s=HASHES_WITHIN_S + _PROVEN_WITHIN_S,
            hint="what it was trained on is not forgotten; see whether that disk is slow",
            error=CheckpointError,
        ) as wait:
            while proof.is_running and not proof.is_copying:
                if wait.waited_s >= HASHES_WITHIN_S:
                    proof.stop()
                wait.sleep(_POLL_S)
        if self._copying is not None:
            self._copying.wait(self._name(), lambda: proof.is_copying, limit_s=copied_within_s)
        self._proof = None
        proof.require()

    def bring_copy(self) -> int | None:
        """Brings the newest copy, if it is newer than what is here; returns its step. Raises `CheckpointError`."""
        return None if self._copying is None else self._copying.bring_newer()

    def keep_copy(self, step: int) -> None:
        """Copies a checkpoint, unless there is a copy, or no place for them. Raises `CheckpointError`."""
        if self._copying is not None:
            self._copying.keep(step)

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

    def _is_writing(self) -> bool:
        return self._manager.is_saving_in_progress()

    def is_saving(self) -> bool:
        """Whether a save has started and is not yet committed; on the first host, not yet proven and hashed."""
        return self._is_writing() or (self._proof is not None and self._proof.is_running)

    @property
    def directory(self) -> Path:
        return self._directory

    def latest_step(self) -> int | None:
        """The newest committed step, also of another process that wrote it until just now; None if there is none.

        It may be damaged. Steps of learners that were ousted do not count.

        Raises:
          CheckpointError: the folder can't be read.
        """
        return newest_step(self._directory) if steps_in(self._directory) else None

    def reload(self) -> None:
        """Looks at the folder again, which another process changed."""
        self._manager.reload()

    def check(self, step: int) -> bool:
        """Refuses a checkpoint that is not whole; returns whether hashes vouch for its files.

        Raises:
          CheckpointError: the message says what is wrong, which checkpoint to go on from, and how.
        """
        folder = self._directory / str(step)
        if not folder.exists() and not folder.is_symlink():
            there = steps_in(self._directory) or "none"
            raise CheckpointError(f"checkpoint {folder} does not exist; those there: {there}")
        return require_whole(Found(folder, folder / "state", step))

    def holds_reference(self, step: int) -> bool:
        """Whether a checkpoint has a reference policy of its own. Raises `CheckpointError` if it has no manifest."""
        return "reference" in read_manifest(self._directory / str(step)).arrays

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
            raise CheckpointError(f"{error}; {way_back(self._directory, step)}") from error
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
                f"checkpoint {folder} can't be read: {_reason(error)}; {way_back(self._directory, step)}"
            ) from error
        moved = restored["reference"] if reference is not None else None
        return TrainState(**restored["state"]), manifest.position, moved

    def finish(self) -> None:
        """As `wait`, for as long as that waits at most."""
        self.wait()

    def close(self) -> None:
        """As `finish`; nothing can be saved afterwards."""
        self.finish()
        with self._writing():
            self._manager.close()


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


def verify(directory: str | Path, step: int) -> FileCheck:
    """What is wrong with a checkpoint; nothing if it is whole."""
    return check(Path(directory).absolute() / str(step), step=step)


def restore_parameters(
    path: str | Path, *, check_hashes: bool = True, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Reads only the policy's fp32 parameters of a checkpoint: `<directory>/<step>`, or the newest in a directory.

    Args:
      say: told in a sentence where no hashes vouch for the checkpoint's content.
    Returns:
      A nested dict of host arrays, as `learner_jax.models.hf_folder.export_tensors` takes it.
    Raises:
      CheckpointError: there is no checkpoint there, or it is damaged.
    """
    found = find_checkpoint(Path(path))
    require_whole(found, hashes=check_hashes, say=say)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(found.item).item_metadata.tree
            policy = {name: leaf for name, leaf in metadata["params"].items() if name != VALUE_KEY}
            item = {"params": jax.tree.map(lambda _: 0, policy)}
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
            return checkpointer.restore(found.item, args=args)["params"]
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"checkpoint {found.folder} can't be read: {_reason(error)}") from error
