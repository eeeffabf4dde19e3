"""A whole job that is told to stop, or loses a host of its learner: what ends, what goes on, and in what time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.whole_jobs import (
    SMALL_DEMO,
    environment,
    has_checkpoint,
    processes_of,
    steps,
    train_command,
    wait_for,
)

pytest.importorskip("vllm", reason="vLLM is not installed")

#: engines that start in a second
FAKE = "serving.server_module=tools.testing.fake_vllm.server"
HEARTBEAT_S = 10
STEPS = 14


@contextmanager
def training(run: Path, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
    with (run.parent / "output").open("ab") as output:
        job = subprocess.Popen(
            train_command("demo.toml", *SMALL_DEMO, FAKE, f"run.directory={run}", *overrides),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=environment(),
        )
    try:
        yield job
    finally:
        job.kill()
        job.wait(30)


def the_one(run: Path, command: str) -> int:
    """Process id of the one process whose command line matches."""
    (found,) = (pid for pid, c in processes_of(run).items() if re.search(command, c) and "guard.py" not in c)
    return found


@pytest.mark.parametrize("signals", [1, 2])
def test_a_job_that_is_told_to_stop_ends_in_order_and_says_how_to_go_on(tmp_path: Path, signals: int) -> None:
    run = tmp_path / "run"
    with training(run) as job:
        wait_for(lambda: any("warm-start" in c for c in processes_of(run).values()), timeout_s=120, what="a learner")
        wait_for(lambda: (run / "weights" / "replicas" / "fleets").exists(), timeout_s=120, what="a fleet")
        started = time.monotonic()
        for _ in range(signals):
            job.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert job.wait(60) == 130
        took_s = time.monotonic() - started
        print(f"ended after {took_s:.1f} s with {signals} signals")
        assert took_s < (30 if signals == 1 else 15)
    output = (tmp_path / "output").read_text()
    assert "the same command goes on from the last checkpoint" in output
    assert "Traceback" not in output
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_a_lost_host_of_the_learner_is_replaced_while_rollouts_go_on_and_a_stopped_job_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = (
        f"learner.steps={STEPS}",
        "learner.hosts.count=2",
        f"learner.hosts.heartbeat_timeout_s={HEARTBEAT_S}",
        "evaluation.every=0",
    )
    with training(run, *overrides) as job:
        wait_for(lambda: has_checkpoint(run), timeout_s=240, what="a checkpoint")
        rollout, serve = the_one(run, "tools.rollout"), the_one(run, "tools.serve")
        other = the_one(run, "tools.learner.*hosts.index=0")
        os.kill(the_one(run, "tools.learner.*hosts.index=1"), signal.SIGKILL)
        started = time.monotonic()
        wait_for(lambda: other not in processes_of(run), timeout_s=HEARTBEAT_S + 30, what="the end of the other host")
        print(f"the other host ended after {time.monotonic() - started:.1f} s (heartbeat {HEARTBEAT_S} s)")
        before = len(steps(run))
        wait_for(lambda: len(steps(run)) > before, timeout_s=120, what="another step")
        assert (the_one(run, "tools.rollout"), the_one(run, "tools.serve")) == (rollout, serve)
        job.send_signal(signal.SIGTERM)
        assert job.wait(120) == 130
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")
    with training(run, *overrides) as job:
        assert job.wait(300) == 0, (tmp_path / "output").read_text()
    records = read_metrics(run / "metrics.jsonl")
    assert [r["name"] for r in records if r["event"] == "restart"] == ["learner"]
    # Killed between two checkpoints, a step may be trained once more, from the state before it.
    assert {r["step"] for r in records if r["event"] == "step"} == set(range(1, STEPS + 1))
    progress = TrajectoryQueue(run / "state.db").admin.progress()
    assert (progress.num_acknowledged, progress.completed_steps) == (STEPS * 4, STEPS)
