"""Steps of a real SLURM job: each on its host, with its variables; asked they end in order, and at once when killed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load_config, save_config
from tests.conftest import REPOSITORY
from tests.support.slurm_cluster import SlurmCluster, running_cluster, why_not
from tests.support.whole_jobs import wait_for
from tools.assembly import run_paths
from tools.launch import slurm_commands
from tools.launch.slurm import script

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(why_not() != "", reason=why_not())]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with running_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def test_steps_start_end_and_fail_where_they_belong(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = [f"launch.{role}.{text}" for role in ("learner", "rollout", "fleet") for text in ("cpus=1", "memory_gib=1")]
    told = ["launch.rollout.hosts=2", "launch.rollout.variables.JUDGE_API_KEY=env:JUDGE", "launch.fleet.beside=learner"]
    config = load_config("demo", [f"run.directory={tmp_path / 'run'}", *roles, *told])
    paths = run_paths(config)
    paths.logs.mkdir(parents=True)
    save_config(config, paths.config)
    for name, value in {"SLURM_CONF": str(cluster.config), "JUDGE": "hunter2", "PYTHONPATH": str(REPOSITORY)}.items():
        monkeypatch.setenv(name, value)
    text = script(config, paths)
    assert "to start at" in cluster.ask_about(text)
    program = f"exec {sys.executable} -m tests.support.slurm_steps_program {paths.config} {tmp_path}\n"
    job = slurm_commands.submit(text.partition("\nexec ")[0] + f"\ncd {REPOSITORY}\n{program}", config)
    wait_for(lambda: all(state in ("COMPLETED", "FAILED") for state, _, _ in slurm_commands.states(job)),
             timeout_s=240, what="the end of the job")  # fmt: skip
    log = (paths.logs / f"slurm-{job}.log").read_text()
    assert (tmp_path / "found.json").exists(), log
    found = json.loads((tmp_path / "found.json").read_text())
    assert (tmp_path / "asked.asked").exists(), "SIGTERM came to the program, through srun and its guard"
    assert found["asked_s"] < 15
    assert found["failed"] == os.EX_CONFIG, "a step's status is that of its program"
    assert found["stubborn"] != 0
    nodes = set()
    for name in ("asked", "stubborn"):
        node, address, secret, pid = (tmp_path / name).read_text().split()
        nodes.add(node)
        assert (address, secret) == ("127.0.0.1", "hunter2")
        left = Path(f"/proc/{pid}")
        wait_for(lambda left=left: not left.exists(), timeout_s=60, what="the end of what a killed srun ran")
    assert len(nodes) == 2, "each on a host of its own"
    assert "hunter2" not in log + text
