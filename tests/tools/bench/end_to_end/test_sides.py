"""How a side is run: watched by the events that it writes, ended when it has done enough, told of when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from learner_jax.runtime import WaitTimeoutError
from tools.bench import BenchmarkError
from tools.bench.end_to_end.sides import Launch, peer_launch, run_side, weir_launch
from tools.bench.processes import peer_role

#: Takes a step every tenth of a second until it is ended, and keeps a process of its own beside.
SIDE = textwrap.dedent(
    """
    import json, os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(sys.argv[1], "a") as file:
        for step in range(int(sys.argv[2])):
            record = {"t": time.time(), "event": "step", "step": step + 1, "num_tokens": 8, "reward": 0.5}
            heldout = {"t": time.time(), "event": "heldout", "step": step + 1, "accuracy": step / 10, "mean_score": 0}
            file.write("".join(json.dumps(event) + chr(10) for event in (record, heldout)))
            file.flush()
            time.sleep(0.1)
    open(sys.argv[1] + ".child", "w").write(str(child.pid))
    print("what it says at its end", flush=True)
    child.kill()
    sys.exit(7)
    """
)


def a_side(folder: Path, steps: int) -> Launch:
    events = folder / "events.jsonl"
    command = [sys.executable, "-c", SIDE, str(events), str(steps)]
    return Launch(command, dict(os.environ), events, folder / "log", peer_role("trl"))


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_side_is_ended_with_all_its_processes_when_it_has_taken_its_steps(tmp_path: Path) -> None:
    before, told = descendants(), list[int]()
    run = run_side(a_side(tmp_path, 10**6), steps=4, target=None, limit_s=60, say=told.append)
    assert run.steps[-1].step >= 4
    assert run.steps[0].t >= run.launched
    assert max(told) >= 4
    assert run.samples[-1].cpu_s["trl"] > 0
    assert any(sample.memory for sample in run.samples)
    assert descendants() <= before


def test_a_side_is_ended_when_it_has_reached_the_target(tmp_path: Path) -> None:
    run = run_side(a_side(tmp_path, 10**6), steps=10**6, target=0.3, limit_s=60)
    assert 4 <= run.steps[-1].step < 30
    assert run.skills[-1].accuracy >= 0.3


def test_a_side_that_ends_too_early_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)ended with status 7 before it was done.*what it says at its end"):
        run_side(a_side(tmp_path, 2), steps=4, target=None, limit_s=60)


def test_a_side_that_ends_by_itself_after_its_steps_has_done_them(tmp_path: Path) -> None:
    launch = a_side(tmp_path, 3)
    run = run_side(launch, steps=3, target=None, limit_s=60)
    assert [step.step for step in run.steps] == [1, 2, 3]


def test_a_side_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    before, started = descendants(), time.monotonic()
    with pytest.raises(WaitTimeoutError, match="the steps of a side"):
        run_side(a_side(tmp_path, 10**6), steps=10**6, target=None, limit_s=1.0)
    assert time.monotonic() - started < 30
    assert descendants() <= before


def test_weirs_side_is_the_job_as_a_user_starts_it(tmp_path: Path) -> None:
    launch = weir_launch("demo.toml", ["a.b=1", "c.d=e f"], tmp_path)
    assert launch.command[1:] == [
        *("-P", "-m", "tools.train", "--config", "demo.toml"),
        *("--set", "a.b=1", "--set", "c.d=e f", "--set", f"run.directory={tmp_path / 'run'}"),
    ]
    assert launch.events == tmp_path / "run" / "metrics.jsonl"


def test_another_checkout_comes_before_this_one(tmp_path: Path) -> None:
    (package := tmp_path / "other" / "tools").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text("import os, sys; print(os.getcwd(), os.path.dirname(__file__), sys.argv[1:])")
    launch = weir_launch("demo.toml", [], tmp_path, checkout=tmp_path / "other")
    done = subprocess.run(launch.command, env=launch.environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'other'} {package} ['--config', 'demo.toml'")
    assert launch.environment["PYTHONPATH"] == str(tmp_path / "other")


def test_a_peer_gets_threads_that_sleep_and_nothing_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("SOME_API_KEY", "secret")
    launch = peer_launch("trl", Path("/env/bin/python"), tmp_path / "job.json", tmp_path, threads=3)
    wanted = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    assert wanted.items() <= launch.environment.items()
    assert not {"PYTHONPATH", "SOME_API_KEY"} & launch.environment.keys()
    assert launch.command[0] == "/env/bin/python"


def test_a_peers_driver_is_found_behind_the_peers_own_packages(tmp_path: Path) -> None:
    """The command line as it is, in this Python: the driver's module is this checkout's, and it reads the job."""
    launch = peer_launch("trl", Path(sys.executable), tmp_path / "missing.json", tmp_path, threads=1)
    with pytest.raises(BenchmarkError, match=r"(?s)peer_common\.py.*missing\.json"):
        run_side(launch, steps=1, target=None, limit_s=120)
