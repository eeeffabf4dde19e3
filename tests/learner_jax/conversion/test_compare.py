"""Folders that hold more than the parameters, or several dtypes, are verified without false alarms."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from learner_jax.conversion.convert import from_hf, to_hf, verify
from tests.support.decoders import lively_parameters, tiny_config
from tests.support.model_folders import expected_tensors, write_config

CONFIG = tiny_config()
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
UNKNOWN = {
    "dtype": "bfloat16",
    "some_new_key": {"a": [1, None]},
    "rope_scaling": None,
    "auto_map": {"AutoModel": "x.Y"},
}


@pytest.fixture(scope="module")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 model with fp32 norms, its tied head, and the rope frequencies that old transformers saved."""
    folder = write_config(tmp_path_factory.mktemp("old") / "model", **UNKNOWN)
    save_file(stored(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def stored() -> dict[str, np.ndarray]:
    tensors = {
        name: value.astype(np.float32 if value.ndim == 1 else ml_dtypes.bfloat16)
        for name, value in expected_tensors(lively_parameters(CONFIG)).items()
    }
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.full(8, 3.0, np.float32) for i in range(2)}
    return tensors | buffers | {HEAD: tensors[EMBED]}


@pytest.fixture(scope="module")
def checkpoint(old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "c"
    from_hf(old_folder, out=out)
    return out


def test_a_folder_of_old_transformers_is_what_its_checkpoint_holds(
    old_folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verify(checkpoint, old_folder)
    assert capsys.readouterr().err == ""  # no bar of transformers' own
    assert found.problems == ()
    assert found.judge == "transformers"
    assert found.logprob_difference is not None
    assert found.logprob_difference < 1e-4


@pytest.mark.parametrize("name", [HEAD, "model.norm.weight", UP])
def test_one_value_that_differs_is_found_in_every_dtype(name: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", **UNKNOWN)
    tensors = stored()
    changed = tensors[name].copy()
    changed.flat[5] += 1
    save_file(tensors | {name: changed}, folder / "model.safetensors", metadata={"format": "pt"})
    (problem,) = verify(checkpoint, folder).problems
    assert problem.startswith(f"{name}: expected the checkpoint's values")
    assert problem.endswith("1 values differ")


def test_a_head_that_is_not_the_embeddings_shape_is_found(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", **UNKNOWN)
    tensors = stored()
    save_file(tensors | {HEAD: tensors[HEAD][:-1]}, folder / "model.safetensors", metadata={"format": "pt"})
    (problem,) = verify(checkpoint, folder).problems
    assert problem == f"{HEAD}: expected shape (61, 32), got (60, 32)"


def test_keys_that_are_not_known_come_back_as_they_were(old_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    to_hf(checkpoint, out=tmp_path / "hf", dtype="float32")
    before = json.loads((old_folder / "config.json").read_text())
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == before | {"dtype": "float32"}
    assert before["some_new_key"] == {"a": [1, None]}
