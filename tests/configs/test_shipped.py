"""The configurations that come with Weir are found by name, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load_config
from configs.shipped import shipped_configs
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", ["demo", "stories", "smollm2", "gsm8k_one_gpu", "pod_tpu", "pod_gpu"])
def test_each_is_found_by_its_name_in_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = REPOSITORY / "configs" / f"{name}.toml"
    places = ["model.path=/m", "model.create=none", *(["task.path=/t"] if "task.path" in file.read_text() else [])]
    expected = load_config(file, places)
    monkeypatch.chdir(tmp_path)
    assert load_config(name, places) == expected
    assert name in shipped_configs()


def test_a_file_of_that_name_is_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("not = [TOML")
    with pytest.raises(ConfigError, match="demo is not valid TOML"):
        load_config("demo")


def test_a_folder_of_that_name_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert load_config("demo").run.name == "demo"


@pytest.mark.parametrize("name", ["demoo", "demo.toml", "../configs/demo", "./demo"])
def test_what_is_not_there_is_refused_with_the_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"does not exist; those that come with Weir are demo, gsm8k_one_gpu, pod_gpu"
    ):
        load_config(name)
