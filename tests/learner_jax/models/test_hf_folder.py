"""Weight files: round trips to the byte, rounding, sharded files, and a clear error for every kind of damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from learner_jax.contracts import hf_files, hf_tensors
from learner_jax.contracts import model as hf_names
from learner_jax.conversion.hf_layout import Weights
from learner_jax.models import hf_folder as hf_io
from tests.support.decoders import lively_parameters, tiny_config

CONFIG = tiny_config()
UP = "model.layers.1.mlp.up_proj.weight"
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return dict(hf_io.export_tensors(lively_parameters(CONFIG), CONFIG, "float32"))


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A whole model folder in three shards."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    (tmp_path / "model").mkdir()
    huggingface_hub.save_torch_state_dict(state, tmp_path / "model", max_shard_size=30_000)
    return tmp_path / "model"


def same_bytes(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in a.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in b.items()
    }


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


def without(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: tensors | {name: change(tensors.get(name, tensors[EMBED]))}


def with_nan(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value[3, 2] = np.nan
    return value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(UP), rf"lacks 1 of \d+ tensors: {UP}"),
        (changed("model.layers.2.extra", lambda v: v), "1 tensors that config.json does not account for: .*2.extra"),
        (changed(UP, lambda v: v.T), rf"safetensors: tensor {UP} has shape \(32, 48\), expected \(48, 32\)"),
        (changed(UP, lambda v: v.astype(np.int8)), rf"tensor {UP} has dtype I8, expected one of F32, BF16, F16"),
        (changed(UP, with_nan), rf"tensor {UP} has 1 NaN or infinite values"),
        (changed(HEAD, lambda v: v + 1), "lm_head.weight differs from model.embed_tokens.weight; set tie_word"),
        (changed(HEAD, lambda v: v[:-1]), "lm_head.weight differs"),
        (changed(HEAD, lambda v: v.astype(np.int8)), "tensor lm_head.weight has dtype I8"),
        (changed(UP, lambda v: v.astype(np.float64)), "has dtype F64, expected .* save the model in one of these"),
        (
            lambda t: without(EMBED)(t) | {HEAD: t[EMBED]},
            "only lm_head.weight is stored; save the model with model.embed",
        ),
        (changed("model.\x1b[2J", lambda v: v), r"does not account for: model.\\x1b\[2J;"),
    ],
)
def test_wrong_tensors_are_named(damage: Any, message: str, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    damaged = {name: np.ascontiguousarray(value) for name, value in damage(tensors).items()}
    save_file(damaged, tmp_path / "model.safetensors")
    with pytest.raises(hf_files.WeightFileError, match=message):
        hf_io.load_parameters(tmp_path, CONFIG)


def test_untied_config_without_a_head_says_what_to_set(folder: Path) -> None:
    with pytest.raises(hf_files.WeightFileError, match="lm_head.weight;.*set tie_word_embeddings to true"):
        hf_io.load_parameters(folder, replace(CONFIG, tie_word_embeddings=False))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:50],
        lambda data: b"",
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        lambda data: data[:9] + b"#" + data[10:],
    ],
    ids=["truncated", "header cut", "empty", "git-lfs pointer", "header damaged"],
)
def test_damaged_file_is_named(damage: Callable[[bytes], bytes], folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(hf_files.WeightFileError, match=rf"{path.name} \(\d+ bytes\) is not a whole safetensors file"):
        hf_io.load_parameters(folder, CONFIG)


def test_missing_shard_and_damaged_index_are_named(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    index = folder / "model.safetensors.index.json"
    contents = path.read_bytes()
    path.unlink()
    with pytest.raises(hf_files.WeightFileError, match=f"{path.name} is missing, though model.safetensors.index.json"):
        hf_io.load_parameters(folder, CONFIG)
    path.write_bytes(contents)
    whole = json.loads(index.read_text())
    moved = {**whole["weight_map"], UP: path.name}
    index.write_text(json.dumps({"metadata": {}, "weight_map": moved}))
    with pytest.raises(hf_files.WeightFileError, match=f"disagree on tensors {UP}"):
        hf_io.load_parameters(folder, CONFIG)
    texts = ("{", "[]", "{}", '{"weight_map": 3}', '{"metadata": {}, "weight_map": {"a": 3}}', "[" * 100_000)
    for text in (*texts, '{"metadata": {}, "weight_map": {}}', json.dumps({"weight_map": whole["weight_map"]})):
        index.write_text(text)
        with pytest.raises(hf_files.WeightFileError, match="is not an index with a weight_map"):
            hf_io.load_parameters(folder, CONFIG)


def test_missing_folder_or_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(hf_files.WeightFileError, match="nowhere does not exist; set model.path"):
        hf_io.load_parameters(tmp_path / "nowhere", CONFIG)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(hf_files.WeightFileError, match="holds neither .* only pytorch_model.bin; expected safetensors"):
        hf_io.load_parameters(tmp_path, CONFIG)


# Which files are the model's


def whole(folder: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def index_of(folder: Path, names: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def doubled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: 2 * value for name, value in tensors.items()}


def test_files_that_no_loader_reads_do_not_matter(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    whole(tmp_path, tensors)
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "._model.safetensors", "x.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
    (tmp_path / "original").mkdir()
    whole(tmp_path / "original", doubled(tensors), "consolidated.00.safetensors")
    assert same_bytes(dict(hf_io.export_tensors(hf_io.load_parameters(tmp_path, CONFIG), CONFIG, "float32")), tensors)
    index_of(tmp_path, dict.fromkeys(tensors, "model.safetensors"))
    assert same_bytes(dict(hf_io.export_tensors(hf_io.load_parameters(tmp_path, CONFIG), CONFIG, "float32")), tensors)


def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Hugging Face's cache keeps files under their hashes and links to them."""
    (tmp_path / "snapshot").mkdir()
    whole(tmp_path, tensors, "blob.safetensors")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blob.safetensors")
    loaded = hf_io.load_parameters(tmp_path / "snapshot", CONFIG)
    assert same_bytes(dict(hf_io.export_tensors(loaded, CONFIG, "float32")), tensors)


def single_beside_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    whole(folder, doubled(tensors))


def single_beside_another(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors.index.json").unlink()
    whole(folder, tensors)


def shards_without_index(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors.index.json").unlink()


def adapter(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "adapter_config.json").write_text("{}")


def consolidated(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    whole(folder, doubled(tensors), "consolidated.safetensors")


def stale_index(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    whole(folder, load_file(shard) | {"model.layers.7.extra": tensors[EMBED]}, shard.name)


def pipe(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    os.mkfifo(shard)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            single_beside_shards,
            "which transformers reads, and model.safetensors.index.json with other files, which vLLM",
        ),
        (
            single_beside_another,
            "beside model.safetensors and no model.safetensors.index.json; vLLM would read them all",
        ),
        (shards_without_index, "holds neither model.safetensors nor"),
        (adapter, "adapter_config.json: transformers would apply the adapter"),
        (consolidated, "consolidated.safetensors, which vLLM reads instead"),
        (stale_index, "disagree on tensors model.layers.7.extra"),
        (pipe, "model-00001-of-.* is missing, though"),
    ],
)
def test_folders_that_loaders_read_differently_are_refused(
    damage: Callable[..., None], message: str, folder: Path, tensors: dict[str, np.ndarray]
) -> None:
    damage(folder, tensors)
    for read in (hf_io.load_parameters, hf_tensors.check_weights, lambda folder, config: Weights(folder)):
        with pytest.raises(hf_files.WeightFileError, match=message):
            read(folder, CONFIG)


PATHS = ("../out.safetensors", "/out.safetensors", "a/b.safetensors", "..")
ODD_NAMES = ("x.bin", "", ".safetensors", "x\x1b.safetensors", "x.safetensors\n")


@pytest.mark.parametrize("name", PATHS + ODD_NAMES)
def test_an_index_names_plain_files_only(name: str, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    (tmp_path / "model").mkdir()
    whole(tmp_path, tensors, "out.safetensors")
    index_of(
        tmp_path / "model", dict.fromkeys(tensors, name.replace("/out", f"{tmp_path}/out") if name[:1] == "/" else name)
    )
    with pytest.raises(hf_files.WeightFileError, match="weight_map names the file .*, expected a plain name") as raised:
        hf_io.load_parameters(tmp_path / "model", CONFIG)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "header",
    [
        {key: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for key in "ab"},
        {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}},
        {"a": {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}},
        {"a": 3},
    ],
    ids=["overlap", "negative", "overflow", "gap", "before", "beyond", "dtype", "no entry"],
)
def test_hostile_headers_are_refused_by_both_readers(header: dict[str, Any], tmp_path: Path) -> None:
    data = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + bytes(8))
    for read in (lambda: hf_tensors.check_weights(tmp_path, CONFIG), lambda: Weights(tmp_path)):
        with pytest.raises(
            hf_files.WeightFileError, match=r"model.safetensors \(\d+ bytes\) is not a whole safetensors"
        ):
            read()
