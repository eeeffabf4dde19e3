"""Model folders: round trips to the byte, rounding, and sharded files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from learner_jax.contracts import hf_files
from learner_jax.contracts import model as hf_names
from learner_jax.models import hf_folder as hf_io
from tests.support.decoders import lively_parameters, tiny_config
from tests.support.weight_folders import CONFIG, EMBED, HEAD, UP, folder, same_bytes, tensors

__all__ = ["folder", "tensors"]  # fixtures


def test_real_weights_round_trip_to_the_byte(stories_model: Path) -> None:
    config = hf_names.read_model_config(stories_model)
    params = hf_io.load_parameters(stories_model, config)
    original = load_file(stories_model / "model.safetensors")
    original.pop(HEAD, None)
    assert same_bytes(dict(hf_io.export_tensors(params, config, "float32")), original)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_then_export_keeps_every_byte(dtype: str, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    stored = {name: value.astype(kind) for name, value in tensors.items()}
    save_file(stored, tmp_path / "model.safetensors")
    params = hf_io.load_parameters(tmp_path, CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    exported = dict(hf_io.export_tensors(params, CONFIG, dtype))
    assert list(exported) == list(hf_names.hf_shapes(CONFIG))
    assert same_bytes(exported, stored)


def test_half_precision_on_disk_is_read(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    halves = {name: value.astype(np.float16) for name, value in tensors.items()}
    save_file(halves, tmp_path / "model.safetensors")
    params = hf_io.load_parameters(tmp_path, CONFIG)
    np.testing.assert_array_equal(params["layers"]["mlp"]["up_proj"]["weight"][1], halves[UP].astype(np.float32))


def test_bfloat16_export_rounds_to_nearest_even_whoever_holds_the_leaf() -> None:
    config = tiny_config(num_layers=1)
    params = lively_parameters(config)
    spacing = 2.0**-7  # of bf16 in [1, 2)
    values = np.resize([1 + spacing / 2, 1 + 1.5 * spacing, 1 + 0.51 * spacing, 1e-40], config.hidden_size)
    params["norm"]["weight"] = jnp.asarray(values, jnp.float32)
    tiny = float(np.float32(1e-40).astype(ml_dtypes.bfloat16))
    expected = np.resize([1, 1 + 2 * spacing, 1 + spacing, tiny], config.hidden_size)
    on_device = dict(hf_io.export_tensors(params, config, "bfloat16"))
    on_host = dict(hf_io.export_tensors(jax.tree.map(np.asarray, params), config, "bfloat16"))
    np.testing.assert_array_equal(on_device["model.norm.weight"].astype(np.float64), expected)
    assert same_bytes(on_device, on_host)


def test_exported_arrays_own_their_memory() -> None:
    params = jax.tree.map(np.array, lively_parameters(CONFIG))
    exported = dict(hf_io.export_tensors(params, CONFIG, "float32"))
    before = exported[UP].copy()
    params["layers"]["mlp"]["up_proj"]["weight"][:] = 0
    np.testing.assert_array_equal(exported[UP], before)


def test_export_moves_each_table_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = []
    real = hf_io._to_host

    def counted(leaf: Any) -> np.ndarray:
        transfers.append(leaf.shape)
        return real(leaf)

    monkeypatch.setattr(hf_io, "_to_host", counted)
    list(hf_io.export_tensors(lively_parameters(CONFIG), CONFIG, "bfloat16"))
    assert len(transfers) == len(hf_names.parameters(CONFIG))


def test_unknown_export_dtype_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'float16' can't be exported; known: float32, bfloat16"):
        next(hf_io.export_tensors(lively_parameters(CONFIG), CONFIG, "float16"))


def test_tensors_in_shards_are_read(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    loaded = hf_io.load_parameters(folder, CONFIG)
    assert same_bytes(dict(hf_io.export_tensors(loaded, CONFIG, "float32")), tensors)


def test_buffers_and_an_equal_tied_head_are_tolerated(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    extra = {HEAD: tensors[EMBED], "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    loaded = hf_io.load_parameters(tmp_path, CONFIG)
    assert same_bytes(dict(hf_io.export_tensors(loaded, CONFIG, "float32")), tensors)


def test_untied_config_without_a_head_says_what_to_set(folder: Path) -> None:
    with pytest.raises(hf_files.WeightFileError, match="lm_head.weight;.*set tie_word_embeddings to true"):
        hf_io.load_parameters(folder, replace(CONFIG, tie_word_embeddings=False))
