"""A version of a weight store in object storage as a model folder, on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from serving_bridge.storage import ContentError, FsspecObjects, StorageSetupError
from serving_bridge.weights import ShelfOptions, StoreError, VersionWriter, WeightStore
from tests.support.s3 import S3
from tools.evaluation.errors import ResultError
from tools.evaluation.sources import Source, model_folder

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/run/weights"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_model_in_object_storage_is_the_one_in_its_folder(s3: S3, stories_model: Path, tmp_path: Path) -> None:
    objects = FsspecObjects("s3://bucket/model")
    for path in stories_model.iterdir():
        objects.put_file(path.name, path)
    with model_folder(Source("folder", stories_model), tmp_path) as here:
        expected = here.identity.hash
    with model_folder(Source("folder", "s3://bucket/model"), tmp_path) as fetched:
        assert (fetched.identity.hash, fetched.identity.name) == (expected, "s3://bucket/model")
    assert not fetched.path.exists()
    with (
        pytest.raises(ContentError, match="s3://bucket/mode holds no config.json"),
        model_folder(Source("folder", "s3://bucket/mode"), tmp_path),
    ):
        pass


def test_a_version_in_object_storage_is_evaluated_as_one_in_a_folder(s3: S3, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"dtype": "float32"}))
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    identities = []
    for place in (URL, str(tmp_path / "store")):
        options = ShelfOptions(cache=tmp_path / "publisher")
        VersionWriter(WeightStore(place, "run", options)).publish(weights.items(), step=3, golden=[])
        with model_folder(Source("weights", place, base=base), tmp_path) as folder:
            np.testing.assert_array_equal(load_file(folder.path / "model.safetensors")["a"], weights["a"])
            assert folder.identity.name == f"{place}, version 1"
            identities.append(folder.identity.hash)
    assert identities[0] == identities[1]
    with (
        pytest.raises(StoreError, match=rf"{URL} holds no version 7"),
        model_folder(Source("weights", URL, version=7, base=base), tmp_path),
    ):
        pass
    with (
        pytest.raises(ResultError, match=rf"{URL} has no config.json .*name a folder with --base"),
        model_folder(Source("weights", URL), tmp_path),
    ):
        pass
    with (
        pytest.raises(StorageSetupError, match="there is no such bucket"),
        model_folder(Source("weights", "s3://nowhere/weights", base=base), tmp_path),
    ):
        pass
