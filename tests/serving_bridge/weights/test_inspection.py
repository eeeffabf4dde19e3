"""A model folder held against a published version: bit by bit the same, or how not."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from learner_jax.contracts.weights import GoldenPrompt, WeightManifest
from serving_bridge.weights.files import WeightIntegrityError
from serving_bridge.weights.inspection import difference_from
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter

NORM, LAYER = np.arange(5, dtype=np.float32), np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
TENSORS: dict[str, np.ndarray] = {"norm": NORM, "layer": LAYER}


@pytest.fixture
def manifest(tmp_path: Path) -> WeightManifest:
    store = WeightStore(tmp_path / "weights", "run")
    return VersionWriter(store).publish(TENSORS.items(), step=0, golden=[GoldenPrompt([1, 2], [-1.0])])


def folder(path: Path, *shards: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    for number, tensors in enumerate(shards):
        save_file(tensors, path / f"model-{number}.safetensors", metadata={"format": "pt"})
    return path


def test_the_same_bits_in_other_files_are_the_same(tmp_path: Path, manifest: WeightManifest) -> None:
    assert difference_from(folder(tmp_path / "whole", TENSORS), manifest) is None
    assert difference_from(folder(tmp_path / "shards", {"layer": LAYER}, {"norm": NORM}), manifest) is None


@pytest.mark.parametrize(
    ("shards", "difference"),
    [
        ([{"norm": NORM}], "lacks 1 tensors of version 1, e.g. layer"),
        ([{"norm": NORM, "layer": LAYER, "more": NORM}], "has a tensor more, which version 1 has not"),
        (
            [{"norm": NORM, "layer": LAYER.T.copy()}],
            r"layer is bfloat16\[4, 3\] in .* and bfloat16\[3, 4\] in version 1",
        ),
        ([{"norm": NORM, "layer": LAYER.astype(np.float32)}], r"layer is float32\[3, 4\]"),
        ([{"norm": np.where(NORM == 0, np.float32(-0.0), NORM), "layer": LAYER}], "norm of .* has other values"),
        ([], "lacks 2 tensors"),
    ],
)
def test_what_differs_is_named(
    tmp_path: Path, manifest: WeightManifest, shards: list[dict[str, np.ndarray]], difference: str
) -> None:
    found = difference_from(folder(tmp_path / "model", *shards), manifest)
    assert found is not None
    assert re.search(difference, found), found


def test_a_file_that_holds_no_tensors_is_named(tmp_path: Path, manifest: WeightManifest) -> None:
    path = folder(tmp_path / "model") / "model.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(WeightIntegrityError, match=r"model\.safetensors is no file of tensors"):
        difference_from(path.parent, manifest)
