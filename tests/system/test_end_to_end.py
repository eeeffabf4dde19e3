"""The whole job as a person runs it: real processes, real vLLM, a learner or a server killed, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_bridge.queue.queue import TrajectoryQueue
from tests.conftest import REPOSITORY
from tests.support.whole_jobs import (
    STEPS,
    environment,
    processes_of,
    run_and_kill,
    steps,
    train_command,
)
from tools import train


@pytest.mark.timeout(1000)
@pytest.mark.soak  # test_fleet.py kills a server in the default suite
def test_vtrace_on_real_vllm_survives_a_killed_server(tmp_path: Path) -> None:
    """The fleet starts the server again, brings it up to date, and the run goes on; the critic stays at home."""
    overrides = (
        'learner.loss.advantage={ estimator = "vtrace", segments = "turn" }',
        'learner.loss.value={ model = "shared" }',
    )
    records = run_and_kill(tmp_path, "vllm.entrypoints", *overrides)
    assert [r["replica"] for r in records if r["event"] == "replica_restart"] == ["vm-0"]
    trained = [r for r in records if r["event"] == "step"]
    assert [r["step"] for r in trained] == list(range(1, STEPS + 1))
    assert max(r["staleness_max"] for r in trained) <= 2
    assert all("value_explained_variance" in r for r in trained)
    measured = [r["mismatch_mean_abs_logprob"] for r in trained if r["mismatch_tokens"]]
    assert max(measured) <= 1e-4
    assert TrajectoryQueue(tmp_path / "run" / "state.db").admin.progress().num_acknowledged == STEPS * 4
    final = json.loads((tmp_path / "run" / "final_model" / "config.json").read_text())
    assert final["architectures"] == ["Qwen3ForCausalLM"]


@pytest.mark.timeout(1000)
def test_the_job_survives_a_killed_learner_and_trains_on_nothing_twice(tmp_path: Path) -> None:
    run, num_steps = tmp_path / "run", 6
    records = run_and_kill(tmp_path, "tools.learner", f"learner.steps={num_steps}", "evaluation.every=3")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == num_steps
    assert [r["event"] for r in records].count("resumed") == 1
    assert [r["name"] for r in records if r["event"] == "restart"] == ["learner"]
    progress = TrajectoryQueue(run / "state.db").admin.progress()
    assert progress.num_acknowledged == num_steps * 4
    assert progress.num_dead == 0
    assert progress.completed_steps == num_steps

    measured = [r for r in steps(run) if r["mismatch_tokens"]]
    assert measured, "no batch had its mismatch measured"
    assert max(r["mismatch_mean_abs_logprob"] for r in measured) <= 1e-4
    assert max(r["staleness_max"] for r in steps(run)) <= 2
    rounds = [r for r in records if r["event"] == "round"]
    assert {r["outcome"] for r in rounds} == {"updated"}
    assert max(r["probe_max_abs"] for r in rounds) <= 1e-3
    (after,) = (r for r in records if r["event"] == "evaluation" and r["which"] == "after")
    assert after["versions"] == [rounds[-1]["version"]] * 2, "the last version was not asked of the fleet"
    assert 0 <= summary["accuracy_before"] <= 1
    assert summary["num_problems"] == 16
    for key in ("reward_first", "reward_last", "wall_s", "tokens_per_s", "learner_idle_share", "rollout_idle_share"):
        assert summary[key] is not None, key
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "Calculate" in page
    assert [path for path in (run, *run.rglob("*")) if path.lstat().st_mode & 0o077] == []


@pytest.mark.timeout(1000)
@pytest.mark.soak
def test_a_real_pretrained_model_learns_to_use_the_words(stories_model: Path, tmp_path: Path) -> None:
    """A short form of configs/stories.toml: reward rises, KL stays inside its budget."""
    run = tmp_path / "run"
    done = subprocess.run(
        train_command(
            "stories.toml",
            f"model.path={stories_model}",
            f"run.directory={run}",
            "learner.steps=10",
            "learner.groups_per_step=4",
            "evaluation.num_problems=16",
            "evaluation.every=0",
        ),
        capture_output=True,
        text=True,
        timeout=400,
        cwd=REPOSITORY,
        env={name: value for name, value in environment().items() if name != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 10
    assert summary["reward_last"] > summary["reward_first"]
    assert all(record["kl"] < 0.5 for record in steps(run))
    assert summary["mismatch_mean_abs_logprob"] <= 1e-4


def failing(*command: str) -> str:
    """Runs a command that must fail with one clear line and no traceback; returns that line."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env=environment(), check=False
    )
    assert done.returncode == 78, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """As `failing`, but in this process: for what is found before anything is started or written."""

    def call(*command: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["train", *command[command.index("--config") :]])
            with pytest.raises(SystemExit) as ended:
                train.main()
        assert ended.value.code == 78
        return capsys.readouterr().err

    return call


def test_a_bad_setting_ends_in_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    message = "rollout.max_stalenes: unknown key; did you mean rollout.max_staleness? Known here: group_size"
    assert message in failing(*train_command("demo.toml", "rollout.max_stalenes=1", f"run.directory={run}"))
    assert not processes_of(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("rollout.max_staleness=-1",), "rollout.max_staleness: Input should be greater than or equal to 0, got -1"),
        (("model.path=/nowhere",), "exactly one of model.path"),
    ],
)
def test_other_bad_settings_do_so_too(
    refused: Refused, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert message in refused(*train_command("demo.toml", *overrides, f"run.directory={run}"))
    assert not run.exists()


def test_a_missing_model_folder_ends_in_one_line_and_starts_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    error = failing(*train_command("stories.toml", "model.path=/nowhere", f"run.directory={run}"))
    assert "model folder /nowhere does not exist" in error
    assert not processes_of(run)
    assert not (run / "state.db").exists()


def test_an_unfinished_run_with_other_settings_is_left_alone(refused: Refused, tmp_path: Path) -> None:
    from configs.load import load_config, save_config

    run = tmp_path / "run"
    run.mkdir()
    save_config(
        load_config(REPOSITORY / "configs" / "demo.toml", [f"run.directory={run}", "run.seed=7"]), run / "config.toml"
    )
    error = refused(*train_command("demo.toml", f"run.directory={run}"))
    assert "keeps these settings for its life: run.seed: 7 before, 0 now" in error
