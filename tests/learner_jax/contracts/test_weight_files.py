"""Which files of a model folder are its weights, and a clear error for every kind of damage, from every reader."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from learner_jax.contracts import hf_files, hf_tensors
from learner_jax.conversion.hf_layout import Weights
from learner_jax.models import hf_folder as hf_io
from tests.support.weight_folders import CONFIG, EMBED, HEAD, UP, folder, same_bytes, tensors

__all__ = ["folder", "tensors"]  # fixtures


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


def test_the_first_few_names_are_shown_and_how_many_more() -> None:
    assert hf_files.some([]) == "none"
    assert hf_files.some(["b", "a"]) == "a, b"
    assert hf_files.some("edcba") == "a, b, c, d, e"
    assert hf_files.some("fedcba\x1b") == r"\x1b, a, b, c, d and 2 more"


def test_a_tied_head_is_compared_in_all_its_rows(
    tmp_path: Path, tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_tensors, "_ROWS_AT_ONCE", 25)  # 61 rows
    whole(tmp_path, tensors | {HEAD: tensors[EMBED]})
    hf_tensors.check_weights(tmp_path, CONFIG)
    for row in (0, 24, 25, 60):
        head = tensors[EMBED].copy()
        head[row, 1] += 1
        whole(tmp_path, tensors | {HEAD: head})
        with pytest.raises(hf_files.WeightFileError, match=r"lm_head.weight differs from"):
            hf_tensors.check_weights(tmp_path, CONFIG)


def test_a_model_of_one_file_has_no_promises_and_one_of_several_has(
    folder: Path, tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    files = hf_files.weight_files(folder)
    promised = [names for names in files.values() if names is not None]
    assert len(promised) == len(files) > 2
    assert sum(map(len, promised)) == len(tensors)
    assert set().union(*promised) == set(tensors)
    (tmp_path / "one").mkdir()
    whole(tmp_path / "one", tensors)
    assert hf_files.weight_files(tmp_path / "one") == {tmp_path / "one" / "model.safetensors": None}
