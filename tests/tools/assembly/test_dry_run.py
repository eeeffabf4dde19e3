"""A dry run shows what would be started, and no secret; it starts and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from configs.load import load_config
from tests.conftest import REPOSITORY
from tools import train
from tools.assembly.before_start import PreflightError
from tools.assembly.dry_run import redacted, variables
from tools.assembly.run_directory import choose

DEMO, STORIES = (REPOSITORY / "configs" / name for name in ("demo.toml", "stories.toml"))


@pytest.fixture
def stories(stories_model: Path, tmp_path: Path) -> Path:
    """A copy of the real model's folder, to be damaged."""
    return Path(shutil.copytree(stories_model, tmp_path / "model"))


def test_a_dry_run_shows_it_all_and_writes_nothing(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.chdir(tmp_path)
    overrides = [f"model.path={stories}", "learner.hosts.count=2", "serving.port=23450", "serving.replicas=3"]
    before = sorted(tmp_path.rglob("*"))
    assert train.train(choose(load_config(STORIES, [*overrides, "learner.peak_tflops=1.5"])), dry=True) == 0
    shown = capsys.readouterr().out
    assert "peak_tflops = 1.5" in shown
    assert "max_restarts = 3" in shown, "defaults are shown too"
    for command in ("tools.serve", "tools.learner", "tools.rollout", "tools.convert"):
        assert f"-m {command} " in shown
    assert "learner.hosts.index=1" in shown
    assert "3 x vllm.entrypoints.openai.api_server on 127.0.0.1, ports 23450 to 23452" in shown
    assert "PGPASSWORD" in shown
    assert "hunter2" not in shown
    assert str(tmp_path / "runs" / "stories" / "state.db") in shown
    assert "nothing was started and nothing was written" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_what_cannot_start_shows_everything_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run.directory={tmp_path / 'run'}", "rollout.max_prompt_tokens=2"]
    with pytest.raises(PreflightError, match="all of"):
        train.train(choose(load_config(DEMO, overrides)), dry=True)
    shown = capsys.readouterr().out
    assert "ERROR   rollout.max_prompt_tokens" in shown
    assert "# would be started" in shown


def test_secrets_are_not_shown() -> None:
    tree = {
        "store": {"database": "postgresql://me:hunter2@host/db", "blobs": "/a"},
        "task": {"options": {"api_key": "hunter2", "name": "x", "nested": {"Password": "hunter2"}}},
        "launch": {"command": ["--api-key", "hunter2", "--seed", "5", "--token=hunter2"]},
        "serving": {"engine_args": {"own_token": "hunter2", "max-num-batched-tokens": 5}},
    }
    shown = redacted(tree)
    assert "hunter2" not in json.dumps(shown)
    assert shown["store"] == {"database": "postgresql://me:<hidden>@host/db", "blobs": "/a"}
    assert "--seed" in json.dumps(shown)
    assert variables({"PGPASSWORD": "x", "HOME": "y", "JAX_PLATFORMS": "z"}) == ["JAX_PLATFORMS", "PGPASSWORD"]
