"""Where every array lies on the device mesh: one table from logical axes to mesh axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from learner_jax.contracts import ModelConfig, Parameter, parameters
from learner_jax.models.parameters import Params
from learner_jax.models.value import KEY as VALUE_KEY
from learner_jax.models.value import ValueKind, trunk_config
from learner_jax.runtime import WeirError
from learner_jax.settings import MeshSettings

MESH_AXES = ("data", "fsdp", "tensor")

Rules = Mapping[str, tuple[str, ...]]

#: Logical axis -> mesh axes that its dimension is cut over; an empty tuple replicates.
RULES: Rules = MappingProxyType(
    {
        "vocab": ("tensor",),
        "embed": ("fsdp",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "mlp": ("tensor",),
        "norm": (),
        "layers": (),
        "batch": ("data", "fsdp"),
        "time": (),
    }
)


class ShardingError(WeirError, ValueError):
    """A model, batch or rule does not fit the device mesh."""

    can_heal = False


def make_mesh(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with axes (data, fsdp, tensor); one size of -1 takes whatever devices are left.

    Raises:
      ShardingError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(settings, axis) for axis in MESH_AXES}
    given = ", ".join(f"mesh.{axis} = {size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or 0 in sizes.values():
        raise ShardingError(f"{given}: every size must be at least 1, and at most one may be -1")
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        count = len({device.process_index for device in devices})
        of_hosts = f" (on {count} hosts)" if count > 1 else ""
        raise ShardingError(
            f"{given} makes {fixed}{' x n' if free else ''} devices, but there are {len(devices)}{of_hosts}; choose "
            f"sizes whose product is {len(devices)}, or set one of them to -1"
        )
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def partition_spec(axes: Sequence[str], rules: Rules = RULES) -> PartitionSpec:
    """Mesh axes of each dimension of a tensor with these logical axes.

    Raises:
      ShardingError: an axis has no rule, or two dimensions ask for the same mesh axis.
    """
    user: dict[str, str] = {}
    for axis in axes:
        if axis not in rules:
            raise ShardingError(f"logical axis {axis!r} has no rule; known: {', '.join(rules)}")
        for mesh_axis in rules[axis]:
            if mesh_axis in user:
                raise ShardingError(
                    f"logical axes {user[mesh_axis]!r} and {axis!r} of one tensor both map to mesh axis {mesh_axis!r}; "
                    f"give one of them another rule"
                )
            user[mesh_axis] = axis
    return PartitionSpec(*(rules[axis] or None for axis in axes))


def parameter_shardings(config: ModelConfig, mesh: Mesh, rules: Rules = RULES) -> Params:
    """Nested dict of `NamedSharding`, one per parameter, in the shape of the parameter tree.

    Raises:
      ShardingError: a dimension does not divide by the mesh axes that it is cut over.
    """
    flat = {}
    for row in parameters(config):
        for axis, size in zip(row.axes, row.shape, strict=True):
            _check_divides(row, axis, size, config, mesh, rules)
        axes = ("layers", *row.axes) if row.stacked else row.axes
        flat[row.path] = NamedSharding(mesh, partition_spec(axes, rules))
    tree: Params = unflatten_dict(flat, sep=".")
    return tree


def value_shardings(config: ModelConfig, kind: ValueKind, mesh: Mesh, rules: Rules = RULES) -> Params:
    """Shardings of the value function's parameters, in the shape of `value_model.abstract_value_parameters`."""
    if kind == "none":
        return {}
    head = {"weight": partition_spec(("embed",), rules), "bias": PartitionSpec()}
    value: Params = {"head": {name: NamedSharding(mesh, spec) for name, spec in head.items()}}
    if kind == "separate":
        value["trunk"] = parameter_shardings(trunk_config(config), mesh, rules)
    return {VALUE_KEY: value}


def _check_divides(row: Parameter, axis: str, size: int, config: ModelConfig, mesh: Mesh, rules: Rules) -> None:
    """Attention projections are cut between heads, never inside one: rope and softmax need a head whole."""
    pieces = math.prod(mesh.shape[name] for name in rules[axis])
    heads = axis in ("heads", "kv_heads")
    count = size // config.head_dim if heads else size
    if count % pieces:
        sizes = ", ".join(f"mesh.{name} = {mesh.shape[name]}" for name in rules[axis])
        unit = f"{count} heads of {config.head_dim}" if heads else str(count)
        raise ShardingError(
            f"parameter {row.path}: dimension {axis!r} is {unit} and does not divide by {sizes}; "
            f"set the mesh so that the cut divides {count}"
        )


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Sharding of any array whose first dimension is the batch row (over data and fsdp, the rest whole)."""
    return NamedSharding(mesh, partition_spec(("batch",), rules))


def num_row_shards(mesh: Mesh, rules: Rules = RULES) -> int:
    """Pieces that the rows of a batch are cut into."""
    return math.prod(mesh.shape[name] for name in rules["batch"])


def check_rows(num_rows: int, mesh: Mesh) -> None:
    """Raises `ShardingError` if a microbatch of this many rows does not divide over the mesh."""
    pieces = num_row_shards(mesh)
    if num_rows % pieces:
        raise ShardingError(
            f"learner.microbatch_rows is {num_rows} and does not divide over mesh.data x mesh.fsdp = {pieces}; make it "
            f"a multiple of that"
        )


def check_hosts(mesh: Mesh, count: int) -> None:
    """Raises `ShardingError` unless each of `count` hosts holds whole rows of a batch, and as many as every other."""
    owners: list[int] = []  # of each piece that rows are cut into
    for piece in mesh.devices.reshape(num_row_shards(mesh), -1):
        hosts = sorted({device.process_index for device in piece})
        if len(hosts) > 1:
            raise ShardingError(
                f"mesh.tensor = {mesh.shape['tensor']} cuts the rows of a batch over hosts {hosts}, which have "
                f"{len(mesh.local_devices)} devices each: mesh.tensor must divide that number; put the rest into "
                f"mesh.fsdp or mesh.data"
            )
        owners += hosts
    shares = {host: owners.count(host) for host in owners}
    if len(shares) != count or len(set(shares.values())) > 1:
        raise ShardingError(
            f"the mesh gives hosts {shares} pieces of a batch (host: pieces), expected the same number for each of "
            f"{count} hosts (learner.hosts.count)"
        )


def place(tree: Params, shardings: Params) -> Params:
    """Arrays of the host, the same on all hosts, or of the devices, where the shardings put them."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        values = np.asarray(x)  # device_put would compare the values of all hosts
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree, shardings)


def place_rows(rows: Any, sharding: NamedSharding, count: int) -> Any:
    """Rows of this host, as its part of arrays whose rows lie on `count` hosts; in a pytree."""
    if count == 1:
        return jax.device_put(rows, sharding)

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x, (count * x.shape[0], *x.shape[1:]))

    return jax.tree.map(put, rows)


def own_rows(array: jax.Array) -> np.ndarray:
    """Rows of this host of an array that `place_rows` might have made, in the order in which it took them."""
    if array.is_fully_addressable:
        return np.asarray(array)
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[first]) for first in sorted(pieces)])
