"""What a checkpoint says of itself: one JSON record that is committed together with its arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from learner_jax.contracts import (
    MAX_PROMPT_INDEX,
    MAX_STEP,
    MAX_VERSION,
    ContractError,
    Position,
    check_integer,
    check_trajectory_id,
    is_number,
    quoted,
)
from learner_jax.runtime import Code, WeirError

CHECKPOINT_SCHEMA = 3
#: Item of a checkpoint that holds the manifest, and the file in it that Orbax writes.
ITEM = "manifest"
_FILE = "metadata"


class CheckpointError(WeirError, ValueError):
    """A checkpoint is missing, damaged or of another shape; the message names it and what to do."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one saved array."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


#: Arrays of one item by the name that they have in it, such as params.layers.mlp.up.weight.
ArraySpecs = Mapping[str, ArraySpec]


@dataclass(frozen=True)
class Manifest:
    """Everything in a checkpoint that is not an array. Producer: `Checkpoints.save`; consumers: it and `tools.convert`.

    Attributes:
      run: name of the run, empty where nobody gave one.
      config: the run's resolved settings as JSON takes them.
      arrays: item -> its arrays. The item `state` has the fp32 master weights as `params`, which are what the policy's
        published weights are rounded from, the optimizer's moments as `opt_state`, `step`, and the random key as `key`;
        `reference`, where there is one, the KL's reference policy.
    """

    position: Position
    run: str
    config: Mapping[str, Any]
    code: Code
    arrays: Mapping[str, ArraySpecs]

    def encode(self) -> dict[str, Any]:
        return {"schema": CHECKPOINT_SCHEMA} | asdict(self)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint `<directory>/<step>`.

    Raises:
      CheckpointError: it is missing, damaged or of another schema.
    """
    file = folder / ITEM / _FILE
    if (folder / "position").is_dir() and not file.exists():
        raise CheckpointError(_other_schema(folder, "2"))
    try:
        raw = json.loads(file.read_text())
        schema = raw.pop("schema")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {folder} has no readable manifest: {quoted(repr(error))}") from error
    if schema != CHECKPOINT_SCHEMA:
        raise CheckpointError(_other_schema(folder, repr(schema)))
    try:
        position = raw["position"]
        _check_position(position)
        position["consumed_trajectory_ids"] = tuple(position["consumed_trajectory_ids"])
        position["steps_of_versions"] = tuple((version, step) for version, step in position["steps_of_versions"])
        arrays = {
            item: {name: ArraySpec(tuple(spec["shape"]), spec["dtype"]) for name, spec in specs.items()}
            for item, specs in raw["arrays"].items()
        }
        for name in ("completed_steps", "life"):
            if type(position.get(name, 0)) is not int:
                raise TypeError(f"{name} is {position[name]!r}, expected an integer")
        return Manifest(Position(**position), raw["run"], raw["config"], Code(**raw["code"]), arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {folder} has a damaged manifest: {quoted(repr(error))}") from error


def _check_position(position: Mapping[str, Any]) -> None:
    """Raises `ContractError` for what no learner saved: the queue is told of groups by these names."""
    check_integer("completed_steps", position["completed_steps"], 0, MAX_STEP)
    check_integer("trained_version", position["trained_version"], -1, MAX_VERSION)
    check_integer("prompt_cursor", position["prompt_cursor"], 0, MAX_PROMPT_INDEX + 1)
    if not is_number(position["kl_coefficient"], 0.0, 1e12):
        raise ContractError(f"kl_coefficient is {quoted(position['kl_coefficient'], 80)}, expected 0 or above")
    for name in ("consumed_trajectory_ids", "steps_of_versions"):
        if not isinstance(position[name], list):
            raise ContractError(f"{name} is {quoted(position[name], 80)}, expected a list")
    for trajectory_id in position["consumed_trajectory_ids"]:
        check_trajectory_id(trajectory_id)
    for version, step in position["steps_of_versions"]:
        check_integer("steps_of_versions: a version", version, -1, MAX_VERSION)
        check_integer("steps_of_versions: a step", step, 0, MAX_STEP)


def _other_schema(folder: Path, schema: str) -> str:
    return (
        f"checkpoint {folder} has schema {schema}, this build reads {CHECKPOINT_SCHEMA}: go on with the build that "
        f"wrote it, or take only its weights (python -m tools.convert to-hf) and start a new run from them"
    )


def array_specs(tree: Any) -> ArraySpecs:
    """Shapes and dtypes of a tree of arrays, by the names that Orbax gives them."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): ArraySpec(tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_arrays(saved: ArraySpecs, wanted: ArraySpecs, folder: Path) -> None:
    """Refuses a checkpoint of other arrays than a run has.

    Raises:
      CheckpointError: the message names the first tensor that differs.
    """
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        if saved.get(name) != wanted.get(name):
            raise CheckpointError(
                f"checkpoint {folder} does not fit this run: {name} is {saved.get(name, 'absent')} in the checkpoint, "
                f"expected {wanted.get(name, 'absent')}; give the model, learner.optimizer.moments and "
                f"learner.loss.value of the run that wrote it, or start in another run.directory"
            )
