"""Whole jobs of real processes in small, as a person starts them, and what becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import QUICK_COMPILE, REPOSITORY

STEPS = 12
SMALL_DEMO = (
    "warm_start.target_accuracy=0.003",
    "warm_start.evaluate_every=5",
    "warm_start.num_validation=384",
    "warm_start.batch_size=64",
    f"learner.steps={STEPS}",
    "learner.groups_per_step=4",
    "learner.microbatch_rows=8",
    "learner.checkpoint.every=2",
    "evaluation.num_problems=16",
    "evaluation.every=4",
)


def environment() -> dict[str, str]:
    """The caller's, without the virtual devices that other tests ask for; compiling costs more than small jobs gain."""
    return os.environ | {"XLA_FLAGS": QUICK_COMPILE}


def train_command(config: str, *overrides: str) -> list[str]:
    command = [sys.executable, "-m", "tools.train", "--config", str(REPOSITORY / "configs" / config)]
    return [*command, *(part for override in overrides for part in ("--set", override))]


def processes_of(run_directory: Path) -> dict[int, str]:
    """Processes whose command line names the run directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(run_directory) in command:
            found[int(entry.name)] = command
    return found


def wait_for(condition: Any, *, timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.1)
    return value


def steps(run_directory: Path) -> list[dict[str, Any]]:
    path = run_directory / "metrics.jsonl"
    return [r for r in read_metrics(path) if r["event"] == "step"] if path.exists() else []


def heldout_samples(run_directory: Path) -> list[dict[str, Any]]:
    """Answers to held-out problems that the run kept: before and after training, and at least once amid it."""
    records = read_metrics(run_directory / "metrics.jsonl")
    evaluations = [r for r in records if r["event"] in ("evaluation", "heldout")]
    assert {r.get("which", "amid") for r in evaluations} == {"before", "amid", "after"}
    return [sample for r in evaluations for sample in r["samples"]]


def has_checkpoint(run_directory: Path) -> bool:
    """Whether a step is committed; one that is being written has another name."""
    folder = run_directory / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def run_and_kill(directory: Path, victim: str, *overrides: str) -> list[dict[str, Any]]:
    """Runs the small demo in `directory`/run and kills the process whose command line holds `victim` once there is a
    checkpoint; returns the records of the run, which must end well and leave nothing behind."""
    run, log = directory / "run", directory / "output"
    with log.open("wb") as output:
        job = subprocess.Popen(
            train_command("demo.toml", *SMALL_DEMO, f"run.directory={run}", *overrides),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=environment(),
        )
        try:
            wait_for(lambda: has_checkpoint(run) or job.poll() is not None, timeout_s=480, what="a checkpoint")
            assert job.poll() is None, log.read_text()
            found = {
                pid for pid, command in processes_of(run).items() if victim in command and "guard.py" not in command
            }
            (first,) = (
                pid for pid in found if psutil.Process(pid).ppid() not in found
            )  # vLLM's server forks its engine
            os.kill(first, signal.SIGKILL)
            assert job.wait(timeout=480) == 0, log.read_text()
        finally:
            job.kill()
            job.wait(30)
    wait_for(lambda: not processes_of(run), timeout_s=30, what="the end of all processes")
    return read_metrics(run / "metrics.jsonl")


def trained_outside(folder: Path, config: Mapping[str, Any], *python_path: str) -> list[dict[str, Any]]:
    """Records of the three steps of a job in `folder`, without the repository on its path; log-probs must agree."""
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.train", "--config", "config.toml"],
        cwd=folder,
        env=environment() | {"PYTHONPATH": os.pathsep.join(python_path)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    trained = steps(folder / "run")
    assert [record["step"] for record in trained] == [1, 2, 3]
    measured = [record["mismatch_mean_abs_logprob"] for record in trained if record["mismatch_tokens"]]
    assert measured
    assert max(measured) <= 1e-4
    return trained
