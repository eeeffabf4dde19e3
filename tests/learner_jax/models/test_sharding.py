"""The sharding table, its refusals, and sharded training numbers equal to those of one device."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from learner_jax import models as model
from learner_jax.contracts import BUILT_IN
from learner_jax.models import hf_folder as hf_io
from learner_jax.models import sharding
from learner_jax.settings.learner import MeshSettings
from tests.support.decoders import (
    QUICK_COMPILE,
    assert_trees_close,
    lively_parameters,
    loss_of,
    random_tokens,
    tiny_config,
    value_and_gradient,
)

CONFIG = tiny_config(vocab_size=64, num_heads=8, num_kv_heads=4)
BATCH = (8, 9)


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(MeshSettings(data=data, fsdp=fsdp, tensor=tensor), devices)


@functools.cache
def single_device(tied: bool) -> Any:
    config = replace(CONFIG, tie_word_embeddings=tied)
    params, tokens = lively_parameters(config), random_tokens(config, BATCH)
    return config, params, tokens, value_and_gradient(config, params, tokens)


@pytest.mark.parametrize(
    ("sizes", "tied", "options"),
    [
        ((8, 1, 1), True, {}),
        ((1, 8, 1), False, {}),
        ((2, 2, 2), False, {"chunk_tokens": 24, "remat": "full"}),
        ((2, 2, 2), True, {"chunk_tokens": 24}),
        ((1, 2, 4), True, {}),
    ],
)
def test_sharded_numbers_equal_single_device_ones(sizes: Any, tied: bool, options: dict[str, Any]) -> None:
    config, params, tokens, expected = single_device(tied)
    mesh = mesh_of(*sizes)
    shardings, rows = sharding.parameter_shardings(config, mesh), sharding.batch_sharding(mesh)
    placed, batch = jax.device_put(params, shardings), jax.device_put(tokens, rows)
    q_proj = placed["layers"]["attention"]["q_proj"]["weight"]
    assert q_proj.addressable_shards[0].data.size * sizes[1] * sizes[2] == q_proj.size
    step = jax.jit(
        jax.value_and_grad(loss_of(config, activation_sharding=rows, **options), has_aux=True),
        out_shardings=((None, rows), shardings),
        compiler_options=QUICK_COMPILE,
    )
    got = step(placed, batch)
    assert_trees_close(got, expected, 1e-5)
    assert got[1]["layers"]["mlp"]["up_proj"]["weight"].sharding.spec == PartitionSpec(None, "tensor", "fsdp")


def test_init_draws_the_same_numbers_however_it_is_sharded() -> None:
    key = jax.random.key(3)
    shardings = sharding.parameter_shardings(CONFIG, mesh_of(2, 2, 2))
    draw = functools.partial(jax.jit, model.init_parameters, static_argnums=0, compiler_options=QUICK_COMPILE)
    jax.tree.map(np.testing.assert_array_equal, draw(out_shardings=shardings)(CONFIG, key), draw()(CONFIG, key))


def test_sharded_load_and_export_keep_every_byte(tmp_path: Path) -> None:
    params = lively_parameters(CONFIG)
    tensors = dict(hf_io.export_tensors(params, CONFIG, "bfloat16"))
    save_file(tensors, tmp_path / "model.safetensors")
    shardings = sharding.parameter_shardings(CONFIG, mesh_of(1, 4, 2))
    loaded = hf_io.load_parameters(tmp_path, CONFIG, shardings=shardings)
    whole = hf_io.load_parameters(tmp_path, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, loaded, whole)
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
    again = dict(hf_io.export_tensors(loaded, CONFIG, "bfloat16"))
    assert {name: value.tobytes() for name, value in again.items()} == {
        name: value.tobytes() for name, value in tensors.items()
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (MeshSettings(), (1, 8, 1)),
        (MeshSettings(data=-1, fsdp=1, tensor=2), (4, 1, 2)),
        (MeshSettings(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_what_is_left(settings: MeshSettings, expected: tuple[int, int, int]) -> None:
    mesh = sharding.make_mesh(settings)
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor")) == expected
    assert mesh.devices.size == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (MeshSettings(data=3, fsdp=1, tensor=1), "mesh.data = 3.*makes 3 devices, but there are 8"),
        (MeshSettings(data=3, fsdp=-1, tensor=1), "mesh.data = 3.*makes 3 x n devices, but there are 8"),
        (MeshSettings.model_construct(data=-1, fsdp=-1, tensor=1), "at most one may be -1"),
        (MeshSettings.model_construct(data=0, fsdp=-1, tensor=1), "at least 1"),
    ],
)
def test_mesh_that_does_not_multiply_out_is_refused(settings: MeshSettings, message: str) -> None:
    with pytest.raises(sharding.ShardingError, match=message):
        sharding.make_mesh(settings)


def test_partition_spec_follows_the_table() -> None:
    assert sharding.partition_spec(("layers", "heads", "embed")) == PartitionSpec(None, "tensor", "fsdp")
    assert sharding.partition_spec(("batch", "time")) == PartitionSpec(("data", "fsdp"), None)


def test_same_mesh_axis_twice_in_one_tensor_is_refused() -> None:
    with pytest.raises(sharding.ShardingError, match="'mlp' and 'heads' of one tensor both map to mesh axis 'tensor'"):
        sharding.partition_spec(("mlp", "heads"))
    with pytest.raises(sharding.ShardingError, match="'expert' has no rule; known: vocab, embed"):
        sharding.partition_spec(("expert",))


def test_dimensions_that_do_not_divide_are_refused() -> None:
    mesh = mesh_of(1, 2, 4)
    with pytest.raises(sharding.ShardingError, match=r"embed.weight: dimension 'vocab' is 63 .* mesh.tensor = 4"):
        sharding.parameter_shardings(replace(CONFIG, vocab_size=63), mesh)
    # 2 key/value heads of 16 make 32 columns, which 4 divides; but a head must stay whole.
    with pytest.raises(sharding.ShardingError, match=r"k_proj.weight: dimension 'kv_heads' is 2 heads of 16"):
        sharding.parameter_shardings(replace(CONFIG, num_kv_heads=2), mesh)


def test_every_parameter_of_every_family_has_a_sharding() -> None:
    mesh = mesh_of(2, 2, 2)
    options = (("attention_bias", True), ("mlp_bias", True))
    for family in BUILT_IN:
        config = replace(CONFIG, family=family, options=options)
        shardings = flatten_dict(sharding.parameter_shardings(config, mesh), sep=".")
        for path, leaf in flatten_dict(model.abstract_parameters(config), sep=".").items():
            local = shardings[path].shard_shape(leaf.shape)
            used = [axes for axes in shardings[path].spec if axes]
            assert math.prod(local) * 2 ** len(used) == math.prod(leaf.shape)
