"""What changed between two versions of the weights, found on the devices that hold them: only that crosses to the host.

Each device compares and compacts the shards that it holds, by programs of its own without any collective, so a second
thread may run them beside training. The host puts the pieces into Hugging Face coordinates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Int, Shaped

from learner_jax.contracts import ModelConfig, TensorChange, hf_tensor_names, parameters
from learner_jax.runtime import WeirError
from learner_jax.training import Params

#: Share of a tensor's elements that there is room for; with more, copying the tensor whole costs no more.
MOST_CHANGED = 1 / 8


class TooManyChangesError(WeirError):
    """More changed than there is room for; copy the weights whole."""


def device_changes(
    new: Params, base: Params, config: ModelConfig, *, most: float = MOST_CHANGED
) -> Iterator[TensorChange]:
    """Changes of every tensor that differs between two versions, in the table's order.

    Args:
      new, base: published weights of one shape and sharding, all of whose shards this process holds.
      most: share of the elements of any shard of any layer that may differ.

    Raises:
      TooManyChangesError: more do.
    """
    flat_new, flat_base = flatten_dict(new, sep="."), flatten_dict(base, sep=".")
    for row in parameters(config):
        leaf, old = flat_new[row.path], flat_base[row.path]
        olds = {shard.device: shard.data for shard in old.addressable_shards}
        pieces: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(config.num_layers if row.stacked else 1)]
        for shard in leaf.addressable_shards:
            if shard.replica_id:
                continue
            index, data, before = shard.index, shard.data, olds[shard.device]
            if not row.stacked:
                index, data, before = (slice(0, 1), *index), data[None], before[None]
            first = index[0].start or 0
            for layer, (where, values) in enumerate(_shard_changes(data, before, most), start=first):
                if where.size:
                    pieces[layer].append((_in_tensor(where, data.shape[1:], index[1:], row.shape), values))
        for name, found in zip(hf_tensor_names(row, config), pieces, strict=True):
            if found:
                yield _merged(name, found)


def _shard_changes(new: jax.Array, old: jax.Array, most: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ascending flat positions, new values) of every layer of one shard [L, ...]."""
    size = math.prod(new.shape[1:])
    room = max(1, math.ceil(most * size))
    counts, where, values = _compact(new, old, room)
    counted = np.asarray(counts)
    largest = int(counted.max(initial=0))
    if largest > room:
        raise TooManyChangesError(f"{largest} of {size} elements changed, there is room for {room}")
    # Of few different lengths, each of which is a program.
    length = min(room, 1 << max(0, largest - 1).bit_length())
    hosted, picked = np.asarray(where[:, :length]), np.asarray(values[:, :length])
    return [(hosted[layer, :count], picked[layer, :count]) for layer, count in enumerate(counted)]


@functools.partial(jax.jit, static_argnames="room")
def _compact(
    new: Shaped[Array, "L ..."], old: Shaped[Array, "L ..."], room: int
) -> tuple[Int[Array, "L"], Int[Array, "L R"], Shaped[Array, "L R"]]:
    """Of each layer: how many elements differ in their bits, where the first `room` of them lie, and their values."""
    bits = {2: jnp.uint16, 4: jnp.uint32}[new.dtype.itemsize]

    def one(pair: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        now, before = (x.reshape(-1) for x in pair)
        differs = jax.lax.bitcast_convert_type(now, bits) != jax.lax.bitcast_convert_type(before, bits)
        (where,) = jnp.nonzero(differs, size=room, fill_value=0)
        return differs.sum(dtype=jnp.int32), where.astype(jnp.int32), now[where]

    return jax.lax.map(one, (new, old))  # a layer at a time: finding places takes four bytes for each element


def _in_tensor(where: np.ndarray, shape: tuple[int, ...], index: tuple[Any, ...], whole: tuple[int, ...]) -> np.ndarray:
    """Flat positions in a shard as flat positions in the whole tensor."""
    places = np.unravel_index(where.astype(np.int64), shape)
    starts = [part.start or 0 for part in index]
    return np.ravel_multi_index(tuple(p + s for p, s in zip(places, starts, strict=True)), whole)


def _merged(name: str, found: list[tuple[np.ndarray, np.ndarray]]) -> TensorChange:
    if len(found) == 1:
        return TensorChange(name, *found[0])
    indices = np.concatenate([where for where, _ in found])
    order = np.argsort(indices, kind="stable")
    return TensorChange(name, indices[order], np.concatenate([values for _, values in found])[order])
