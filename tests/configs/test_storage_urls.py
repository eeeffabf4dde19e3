"""Settings that may be URLs of object storage, and those that must be paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load_config, save_config
from serving_bridge.routing import registry_folder
from serving_bridge.storage import storage_variables
from tests.conftest import REPOSITORY
from tools.assembly import build_registry, run_paths
from tools.assembly.placement import variables_to_hand_on

DEMO = REPOSITORY / "configs" / "demo.toml"


def test_a_weight_store_in_object_storage_stays_a_url_and_its_registry_is_in_the_run(tmp_path: Path) -> None:
    given = [f"run.directory={tmp_path / 'run'}", "store.weights=s3://bucket/runs/one", "store.cache=cache"]
    config = load_config(DEMO, given)
    assert config.store.cache == str(Path.cwd() / "cache")
    paths = run_paths(config)
    assert paths.weights == "s3://bucket/runs/one"
    assert build_registry(paths).folder == tmp_path / "run" / "replicas" == paths.registry
    (tmp_path / "run").mkdir()
    save_config(config, tmp_path / "run" / "config.toml")
    assert run_paths(load_config(tmp_path / "run" / "config.toml")) == paths


def test_payloads_and_copies_of_checkpoints_stay_urls(tmp_path: Path) -> None:
    given = ["store.blobs=s3://bucket/blobs", "store.checkpoints=s3://bucket/checkpoints"]
    config = load_config(DEMO, [f"run.directory={tmp_path}", *given])
    save_config(config, tmp_path / "config.toml")
    paths = run_paths(load_config(tmp_path / "config.toml"))
    assert (paths.blobs, paths.copies) == ("s3://bucket/blobs", "s3://bucket/checkpoints")
    assert paths.checkpoints == tmp_path / "checkpoints"
    assert paths.in_storage == {"store.blobs": paths.blobs, "store.checkpoints": paths.copies}


def test_the_registry_of_a_folder_is_beside_the_weights(tmp_path: Path) -> None:
    for given, expected in (("", tmp_path / "weights" / "replicas"), ("/w", Path("/w/replicas"))):
        assert registry_folder(given, tmp_path) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.directory=s3://bucket/x", r"run.directory: .* with its checkpoints, on s3:// is not supported"),
        ("store.blobs=s3://key:pass@bucket/x", "blobs: .*holds credentials"),
        ("store.blobs=memory://x", "every process would have one of its own"),
        ("store.checkpoints=/folder", "checkpoints: .*is no URL, expected one such as"),
        ("store.checkpoints=s3://", "checkpoints: .*names no place in object storage"),
        ("store.weights=s3://key:pass@bucket/x", "holds credentials"),
        ("store.weights=memory://x", "every process would have one of its own"),
        ("store.weights=file:///x", "give the folder's path instead"),
        ("store.weights=s3://", "names no place in object storage"),
        ("store.cache=s3://bucket/x", "store.cache: a host's cache on s3:// is not supported"),
        ("serving.keys=gs://bucket/x", "serving.keys: the key of a fleet on gs:// is not supported"),
    ],
)
def test_what_can_not_be_a_url_is_refused_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(DEMO, [setting])
    assert "pass" not in str(caught.value)


def test_credentials_are_handed_on_only_where_storage_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert "AWS_SECRET_ACCESS_KEY" in storage_variables({"AWS_SECRET_ACCESS_KEY": "s"})
    assert "AWS_SECRET_ACCESS_KEY" not in variables_to_hand_on(load_config(DEMO))
    for setting in ("store.weights", "store.blobs", "store.checkpoints"):
        assert "AWS_SECRET_ACCESS_KEY" in variables_to_hand_on(load_config(DEMO, [f"{setting}=s3://bucket/x"]))
