"""Train states without a model, and checkpoints of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from learner_jax.checkpoints.checkpoints import (
    Checkpoints,
    Position,
)
from learner_jax.training.train_step import TrainState

LAYERS = 6


SPECS = {"embed": PartitionSpec("tensor", "fsdp"), "layers": PartitionSpec(None, "tensor", "fsdp")}


def host_parameters(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape).astype(np.float32)

    return {
        "embed": {"weight": normal(64, 16)},
        "layers": {"up": {"weight": normal(LAYERS, 32, 16)}, "norm": {"weight": normal(LAYERS, 16)}},
        "value": {"trunk": {"layers": {"up": {"weight": normal(LAYERS, 32, 16)}}}},
    }


def placed(params: dict[str, Any], mesh: dict[str, int] | None) -> dict[str, Any]:
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    devices = jax.make_mesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))

    def place(path: tuple[Any, ...], leaf: np.ndarray) -> jax.Array:
        spec = SPECS[path[0].key] if leaf.ndim == len(SPECS.get(path[0].key, ())) else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(devices, spec))

    return jax.tree_util.tree_map_with_path(place, params)


def make_state(seed: int = 0, *, mesh: dict[str, int] | None = None, moments: Any = jnp.float32) -> TrainState:
    """A state whose moments are not zero."""
    params = placed(host_parameters(seed), mesh)
    optimizer = optax.adamw(1e-3, mu_dtype=moments)
    grads = jax.tree.map(lambda x: 0.1 * x + 1e-3, params)
    updates, moved = optimizer.update(grads, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    return TrainState(params, moved, jnp.asarray(3, jnp.int32), jax.random.key_data(jax.random.key(seed)))


def position(step: int) -> Position:
    return Position(step, step + 1, 10 * step, (f"run/{step}/0", f"run/{step}/1"), 0.25, ((0, 0), (step + 1, step)))


def save(directory: Path, *steps: int, keep: int = 9, **given: Any) -> None:
    """Checkpoints whose state has the step as its seed, committed and hashed."""
    checkpoints = Checkpoints(directory, keep=keep, **given)
    for step in steps:
        checkpoints.save(make_state(step), position(step))
    checkpoints.close()


def restored(directory: Path, like: TrainState, step: int | None = None) -> tuple[TrainState, Position]:
    checkpoints = Checkpoints(directory, keep=9)
    try:
        state, found, _ = checkpoints.restore(like, step=step)
        return state, found
    finally:
        checkpoints.close()


def assert_equal(got: TrainState, expected: TrainState) -> None:
    left, right = jax.tree_util.tree_leaves_with_path(got), jax.tree_util.tree_leaves_with_path(expected)
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, a), (_, b) in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def data_file(folder: Path) -> Path:
    files = [path for path in (folder / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)
