"""A run on a real SLURM of three nodes: requeued and with a killed slurmd it finishes, and trains nothing twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.run_history import RECORDED, problems
from tests.support.slurm_cluster import NODES, SlurmCluster, running_cluster, why_not
from tests.support.whole_jobs import SMALL_DEMO, environment, has_checkpoint, processes_of, steps, wait_for

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
        env=environment() | {"SLURM_CONF": str(cluster.config), "PYTHONPATH": str(REPOSITORY)} | RECORDED,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def describe(run: Path, database: str, *more: str, server: str = FAKE) -> tuple[str, ...]:
    shared = f'launch.shared=["{run.parent}"]'
    servers = (server,) if server else ()
    return (*SMALL_DEMO, *HOSTS, *servers, f"run.directory={run}", f"store.database={database}", shared, *more)


def state(cluster: SlurmCluster, job: str) -> set[str]:
    return set(cluster.ask("squeue", f"--jobs={job}", "--noheader", "--states=all", "--format=%T").split())


def output(run: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted((run / "logs").glob("*.log")))


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


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_hosts_lost_between_checkpoints_on_real_vllm_train_nothing_twice(
    cluster: SlurmCluster, postgres_url: str, tmp_path: Path
) -> None:
    """All machines are lost at once, after a step that no checkpoint holds; the requeued job trains it again."""
    run, every = tmp_path / "run", 4
    overrides = describe(
        run,
        postgres_url,
        f"learner.steps={STEPS}",
        f"learner.checkpoint.every={every}",
        "evaluation.every=0",
        "run.name=slurm-lost",
        server="",
    )
    job = launch(cluster, "--on", "slurm", "--config", "demo", overrides=overrides).split()[1]
    wait_for(lambda: has_checkpoint(run) and len(steps(run)) % every == 1, timeout_s=1200, what="a step after one")
    cluster.lose(processes_of(run))
    trained = len(steps(run))
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert saved < trained < STEPS
    cluster.ask("scontrol", "requeue", job)
    for node in NODES:
        cluster.start_node(node)
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")
    wait_for(lambda: state(cluster, job) == {"PENDING"}, timeout_s=120, what="the job in the queue")
    cluster.ask("scontrol", "update", f"jobid={job}", "starttime=now")
    wait_for(lambda: state(cluster, job) == {"RUNNING"}, timeout_s=300, what="the second start")
    wait_for(lambda: state(cluster, job) <= {"COMPLETED", "FAILED"}, timeout_s=1200, what="the end of the job")
    assert state(cluster, job) == {"COMPLETED"}, output(run)
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records if record["event"] == "resumed"] == [saved]
    assert [record["step"] for record in steps(run)].count(trained) == 2
    assert problems(run) == []
    measured = [record["mismatch_mean_abs_logprob"] for record in steps(run) if record["mismatch_tokens"]]
    assert max(measured) <= 1e-4  # real engines sampled it
    wait_for(lambda: not processes_of(run), timeout_s=30, what="the end of all processes")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_orders_reach_a_job_that_is_stopped_and_resumed(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Everything on one host, with SQLite: status, logs, stop, status, resume, as a person gives them."""
    run = tmp_path / "run"
    told = (
        *(part for part in HOSTS if "hosts" not in part and "beside" not in part),
        *(
            "launch.rollout.beside=learner",
            "launch.fleet.beside=learner",
            "launch.fleet.memory_gib=1",
            FAKE,
            *SMALL_DEMO,
        ),
        *(f"run.directory={run}", f'launch.shared=["{tmp_path}"]', "learner.steps=500", "run.name=slurm-orders"),
        *("learner.checkpoint.every=100", "evaluation.every=0"),
    )
    job = launch(cluster, "--on", "slurm", "--config", "demo", overrides=told).split()[1]
    wait_for(lambda: len(steps(run)) >= 3, timeout_s=600, what="three steps")
    said = launch(cluster, "status", str(run))
    assert job in said
    assert "RUNNING" in said.upper()
    assert "learner" in launch(cluster, "logs", str(run))
    launch(cluster, "stop", str(run))
    wait_for(lambda: state(cluster, job) <= {"COMPLETED", "CANCELLED", "FAILED"}, timeout_s=180, what="the job's end")
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")
    trained = len(steps(run))
    assert 3 <= trained < 500
    assert (run / "checkpoints" / str(trained)).is_dir(), "the learner saved what it had trained"
    assert "RUNNING" not in launch(cluster, "status", str(run)).upper()

    last = trained + 4
    said = launch(cluster, "resume", str(run), overrides=(f"learner.steps={last}",))
    again = said.splitlines()[-1].split()[1]  # what was changed is told before
    assert again != job
    wait_for(lambda: state(cluster, again) <= {"COMPLETED", "FAILED"}, timeout_s=900, what="the second job's end")
    assert state(cluster, again) == {"COMPLETED"}, output(run)
    assert [record["step"] for record in steps(run)] == list(range(1, last + 1))
    assert problems(run) == []
    assert f"step {last} of {last}, finished" in launch(cluster, "status", str(run))
