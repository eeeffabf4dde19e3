"""Orbax checkpoints: optimizer state and everything a resumed run needs, in one atomic step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from learner_jax.train_step import Params, TrainState
from learner_jax.value_model import KEY as VALUE_KEY

CHECKPOINT_SCHEMA = 2


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another shape; the message names it and what to do."""


@dataclass(frozen=True)
class Position:
    """Where a run stands, saved with the state in the same commit.

    Attributes:
      completed_steps: optimizer steps of reinforcement learning.
      trained_version: policy version that these weights were published as, -1 if not yet.
      prompt_cursor: index of the next prompt that was never dispatched.
      consumed_trajectory_ids: trained on since the queue last confirmed that it forgot them.
      kl_coefficient: where the adaptive controller of the KL stands.
    """

    completed_steps: int
    trained_version: int
    prompt_cursor: int
    consumed_trajectory_ids: tuple[str, ...]
    kl_coefficient: float = 0.0

    @property
    def consumed_group_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.rsplit("/", 1)[0] for name in self.consumed_trajectory_ids))


class Checkpoints:
    """A folder of checkpoints, one per saved step; saving happens in the background.

    Args:
      directory: local path or any path that Orbax writes.
      keep: newest checkpoints kept.
    """

    def __init__(self, directory: str | Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState, position: Position, *, reference: Params | None = None) -> None:
        """Starts a save; returns once the arrays are copied, before they are on disk.

        Args:
          reference: the KL's reference policy, where a resumed run could not find it elsewhere.
        """
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(_as_tree(state)),
            "position": ocp.args.JsonSave({"schema": CHECKPOINT_SCHEMA} | asdict(position)),
        }
        if reference is not None:
            items["reference"] = ocp.args.StandardSave(reference)
        self._manager.save(position.completed_steps, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Blocks until the save in progress, if any, is committed."""
        self._manager.wait_until_finished()

    def is_saving(self) -> bool:
        """Whether a save has started and is not yet committed."""
        return self._manager.is_saving_in_progress()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(
        self, like: TrainState, *, reference: Params | None = None, step: int | None = None
    ) -> tuple[TrainState, Position, Params | None]:
        """Restores the newest (or the given) checkpoint onto the shapes and shardings of `like`.

        Args:
          reference: shapes and shardings of the reference policy, if the checkpoint must hold one.
        Raises:
          CheckpointError: there is none, it is damaged, or it belongs to another model.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"no checkpoint in {self._directory}")
        items: dict[str, Any] = {
            "state": ocp.args.StandardRestore(_abstract(_as_tree(like))),
            "position": ocp.args.JsonRestore(),
        }
        if reference is not None:
            items["reference"] = ocp.args.StandardRestore(_abstract(reference))
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError, OSError) as error:
            others = [s for s in self._manager.all_steps() if s != step]
            raise CheckpointError(
                f"checkpoint {self._directory / str(step)} can't be restored: {error}; "
                f"other checkpoints there: {others or 'none'} (move the damaged folder away to use an older one)"
            ) from error
        position = _position(restored["position"], self._directory / str(step))
        return TrainState(**restored["state"]), position, restored["reference"] if reference is not None else None

    def close(self) -> None:
        self._manager.close()


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step, "key": state.key}


def _position(raw: dict[str, Any], path: Path) -> Position:
    fields = dict(raw)
    schema = fields.pop("schema", None)
    if schema != CHECKPOINT_SCHEMA:
        raise CheckpointError(f"{path} has checkpoint schema {schema}, this build reads {CHECKPOINT_SCHEMA}")
    fields["consumed_trajectory_ids"] = tuple(fields["consumed_trajectory_ids"])
    return Position(**fields)


def restore_parameters(path: str | Path) -> dict[str, Any]:
    """Reads only the policy's fp32 parameters of a checkpoint: `<directory>/<step>`, or the newest in a directory.

    Returns:
      A nested dict of host arrays, as `learner_jax.hf_io.export_tensors` takes it.
    Raises:
      CheckpointError: there is no checkpoint there, or it is damaged.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"checkpoint folder {path} does not exist")
    if not (path / "state").is_dir():
        steps = sorted(int(p.name) for p in path.iterdir() if p.name.isdigit() and (p / "state").is_dir())
        if not steps:
            raise CheckpointError(f"{path} holds no checkpoint; expected <step>/state inside it")
        path = path / str(steps[-1])
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path / "state").item_metadata.tree
            policy = {name: leaf for name, leaf in metadata["params"].items() if name != VALUE_KEY}
            item = {"params": jax.tree.map(lambda _: 0, policy)}
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
            return checkpointer.restore(path / "state", args=args)["params"]
    except (ValueError, KeyError, FileNotFoundError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {error}") from error
