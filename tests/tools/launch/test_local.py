"""A run launched on this machine: the same processes as tools.train's, with its roles, and orders from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.load import load_config, save_config
from serving_bridge.telemetry import MetricsLog
from tools.assembly import RunPaths, make_private_directory, planned, run_paths
from tools.assembly.run_directory import choose
from tools.launch import Job
from tools.launch.backends import backend_of
from tools.launch.checks import require_launchable
from tools.launch.local import Local
from tools.launch.logs import show_logs
from tools.launch.progress import progress_line
from tools.launch.shown import role_lines
from tools.launch.started import LaunchError, Started, read_started
from tools.reporting import LiveView

ROLLOUT = ("launch.rollout.cpus=2", "launch.rollout.memory_gib=4")


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that was begun."""
    config = load_config("demo", [f"run.directory={tmp_path / 'run'}"])
    paths = run_paths(config)
    make_private_directory(paths)
    save_config(config, paths.config)
    return paths


def commands(*overrides: str) -> dict[str, list[str]]:
    config = load_config("demo", ["run.directory=/r", *overrides])
    return {process.name: process.commands[0] for process in planned(config, run_paths(config))}


def test_without_roles_the_processes_are_those_of_one_machine() -> None:
    found = commands()
    assert list(found) == ["serve", "warm_start", "learner", "rollout", "convert"]
    assert list(role_lines(load_config("demo", ["run.directory=/r"]))) == [
        "none has a table in [launch]: every process runs here, with all that this machine has"
    ]
    assert found["rollout"] == [sys.executable, "-P", "-m", "tools.rollout", "--config", "/r/config.toml"]


def test_a_role_gives_its_processes_names_a_python_and_variables() -> None:
    told = ("launch.rollout.hosts=2", "launch.rollout.venv=/v", "launch.rollout.variables.SECRET=env:THEIRS")
    found = commands(*ROLLOUT, *told)
    assert found["serve"] == commands()["serve"]
    assert found["rollout-1"] == [
        *("/v/bin/python", "-P", "-m", "tools.role", "--variable", "SECRET=env:THEIRS", "--"),
        *("/v/bin/python", "-P", "-m", "tools.rollout", "--config", "/r/config.toml", "--name", "worker-1"),
    ]
    assert "rollout" not in found


def test_programs_of_a_users_own_start_first_and_know_their_number() -> None:
    told = [f"launch.database.{text}" for text in ("cpus=1", "memory_gib=1", "hosts=2")]
    found = commands(*told, 'launch.database.command=["postgres", "-D", "/data/{index}"]')
    assert list(found)[:2] == ["database-0", "database-1"]
    assert found["database-1"][-3:] == ["postgres", "-D", "/data/1"]


def test_a_dry_run_says_what_each_role_gets_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THEIRS", "hunter2")
    told = ("launch.rollout.variables.SECRET=env:THEIRS", "launch.rollout.devices=1")
    config = load_config("demo", [f"run.directory={tmp_path / 'run'}", *ROLLOUT, *told])
    assert Local().start(choose(config), dry=True) == 0
    shown = capsys.readouterr().out
    assert "rollout: 1 host, each with 2 cores, 4 GiB, 1 gpu" in shown
    assert "--variable SECRET=env:THEIRS -- " in shown
    assert "hunter2" not in shown
    assert not (tmp_path / "run").exists()


def test_a_missing_secret_is_told_before_anything_starts(tmp_path: Path) -> None:
    told = ("launch.rollout.variables.A=env:NOT_SET_HERE", "launch.rollout.variables.B=file:/no/such")
    config = load_config("demo", [f"run.directory={tmp_path / 'run'}", *ROLLOUT, *told])
    with pytest.raises(ValueError, match=r"(?s)rollout.variables.A: .*NOT_SET_HERE.*rollout.variables.B: .*/no/such"):
        require_launchable(config, run_paths(config), "local")


def test_status_logs_and_stop_reach_a_run(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricsLog(paths.metrics, "train")
    log.write("phase", name="training")
    (paths.logs / "learner.log").write_text("one\ntwo\x1b[31m\nthree\n")
    backend = backend_of(paths)
    assert backend.status(paths) == ("local: no process carries it out\nrun demo: step 0 of 120, training")
    with pytest.raises(LaunchError, match="there is nothing to stop"):
        backend.stop(paths)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        import psutil

        Started("local", str(sleeper.pid), socket.gethostname(), psutil.Process(sleeper.pid).create_time()).write(paths)
        assert backend.status(paths).startswith(f"local: process {sleeper.pid} runs\n")
        assert backend.stop(paths) == f"asked process {sleeper.pid} to save and end"
        assert sleeper.wait(30) == -signal.SIGTERM
    finally:
        sleeper.kill()
    show_logs(paths, "learner", lines=2)
    assert capsys.readouterr().out == "==> learner <==\ntwo\\x1b[31m\nthree\n"
    with pytest.raises(LaunchError, match=r"'nobody' has no log .* there are learner"):
        show_logs(paths, "nobody", lines=2)


def test_a_process_id_that_another_program_has_now_is_not_signalled(paths: RunPaths) -> None:
    Started("local", str(os.getpid()), socket.gethostname(), time.time() - 9999).write(paths)
    with pytest.raises(LaunchError, match="there is nothing to stop"):
        Local().stop(paths)
    Started("local", str(os.getpid()), "elsewhere", time.time()).write(paths)
    with pytest.raises(LaunchError, match="was launched on elsewhere: ask there"):
        Local().stop(paths)


@pytest.mark.parametrize(
    "text", ["", "[]", "5", '{"on": 5, "job": "1"}', '{"on": "local"}', '{"on": "\\n", "job": ""}']
)
def test_a_record_that_is_none_is_refused(paths: RunPaths, text: str) -> None:
    (paths.directory / "launch.json").write_text(text)
    with pytest.raises(LaunchError, match=r"launch\.json"):
        read_started(paths)


def test_a_run_that_was_stopped_says_so(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last event would else be of what it did, as if it had been killed there."""
    monkeypatch.setattr("tools.launch.job.base_model_dir", lambda *_: None)
    config = load_config(paths.config)
    with LiveView(config, paths.directory) as view:
        assert not Job(config, paths, view, lambda: True).run()
    assert progress_line(paths) == "run demo: step 0 of 120, stopped"
