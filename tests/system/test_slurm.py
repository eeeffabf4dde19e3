"""A run on a real SLURM of three nodes: requeued and with a killed slurmd it finishes, and trains nothing twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.slurm_cluster import SlurmCluster, running_cluster, why_not
from tests.support.whole_jobs import SMALL_DEMO, environment, has_checkpoint, processes_of, steps, wait_for
from tools.assembly import run_paths
from tools.testing.chaos.checker import check
from tools.testing.chaos.history import History, entries, given_up, read_ledger

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(why_not() != "", reason=why_not())]

STEPS = 14
HOSTS = (
    "learner.hosts.count=2",
    "learner.hosts.heartbeat_timeout_s=30",
    *(f"launch.{role}.{text}" for role in ("learner", "rollout") for text in ("cpus=1", "memory_gib=1")),
    *("launch.fleet.cpus=2", "launch.fleet.memory_gib=2", "launch.rollout.beside=learner"),
)
#: engines that start in a second
FAKE = "serving.server_module=tools.testing.fake_vllm.server"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with running_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def launch(cluster: SlurmCluster, *arguments: str, overrides: tuple[str, ...] = ()) -> str:
    """What `tools.launch` prints; it must succeed."""
    told = [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.launch", *arguments, *told],
        cwd=REPOSITORY,
        env=environment()
        | {"SLURM_CONF": str(cluster.config), "PYTHONPATH": str(REPOSITORY), "WEIR_RECORD_HISTORY": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def describe(run: Path, database: str, *more: str) -> tuple[str, ...]:
    shared = f'launch.shared=["{run.parent}"]'
    return (*SMALL_DEMO, *HOSTS, FAKE, f"run.directory={run}", f"store.database={database}", shared, *more)


def state(cluster: SlurmCluster, job: str) -> set[str]:
    return set(cluster.ask("squeue", f"--jobs={job}", "--noheader", "--states=all", "--format=%T").split())


def output(run: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted((run / "logs").glob("*.log")))


def whole(record: dict[str, Any]) -> dict[str, Any]:
    """A step of several hosts, whose first one knows the oldest tokens of its own groups alone."""
    if record["event"] != "consumed":
        return record
    unknown = len(record["groups"]) - len(record["oldest"])
    return record | {"oldest": [*record["oldest"], *[record["version"]] * unknown]}


def problems(run: Path) -> list[str]:
    """What is wrong with a finished run's history: groups lost, or trained on twice."""
    config = load_config(run / "config.toml")
    records: list[dict[str, Any]] = read_metrics(run / "metrics.jsonl")
    with closing(TrajectoryQueue(run_paths(config).database)) as queue:
        ledger = read_ledger(queue)
    history = History(
        run=config.run.name,
        total_steps=config.learner.steps,
        max_staleness=config.rollout.max_staleness,
        groups_per_step=config.learner.groups_per_step,
        entries=entries(map(whole, records)),
        ledger=ledger,
        given_up=given_up(records),
        published=[record["version"] for record in records if record["event"] == "published"],
    )
    return check(history)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_a_run_survives_a_killed_slurmd_and_a_requeue_and_trains_nothing_twice(
    cluster: SlurmCluster, postgres_url: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = describe(run, postgres_url, f"learner.steps={STEPS}", "evaluation.every=0", "run.name=slurm-soak")
    said = launch(cluster, "--on", "slurm", "--config", "demo", overrides=overrides)
    job = said.split()[1]
    wait_for(lambda: has_checkpoint(run), timeout_s=600, what="a checkpoint")
    cluster.kill_node("n2")
    before = len(steps(run))
    wait_for(lambda: len(steps(run)) > before, timeout_s=300, what="a step without n2's slurmd")
    cluster.start_node("n2")
    assert state(cluster, job) == {"RUNNING"}
    cluster.ask("scontrol", "requeue", job)
    wait_for(lambda: state(cluster, job) == {"PENDING"}, timeout_s=120, what="the job's end")
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")
    trained = len(steps(run))
    assert trained < STEPS
    cluster.ask("scontrol", "update", f"jobid={job}", "starttime=now")
    wait_for(lambda: state(cluster, job) == {"RUNNING"}, timeout_s=300, what="the second start")
    wait_for(lambda: state(cluster, job) <= {"COMPLETED", "FAILED"}, timeout_s=900, what="the end of the job")
    assert state(cluster, job) == {"COMPLETED"}, output(run)
    assert (run / "summary.json").exists(), output(run)
    assert problems(run) == []
    records = read_metrics(run / "metrics.jsonl")
    assert {record["which"] for record in records if record["event"] == "evaluation"} == {"before", "after"}
    assert "step 14 of 14, finished" in launch(cluster, "status", str(run))
    wait_for(lambda: not processes_of(run), timeout_s=30, what="the end of all processes")
