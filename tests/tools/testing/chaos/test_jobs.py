"""Jobs of real processes live through their faults, and a bug that was put in on purpose is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from tools.assembly import base_model_dir, run_paths
from tools.testing.chaos import __main__ as command
from tools.testing.chaos.__main__ import num_steps
from tools.testing.chaos.checker import check_accuracy
from tools.testing.chaos.job import JobRecord, JobSpec, SeedRecord, run_job
from tools.testing.chaos.plan import Fault
from tools.testing.chaos.prepare import CONFIG

ACKNOWLEDGE_BEFORE_THE_COMMIT = """
from learner_jax.loop.learner import Learner

save = Learner._save

def save_after_acknowledging(self):
    self._source.acknowledge(self._position().consumed_group_ids)
    save(self)

Learner._save = save_after_acknowledging
"""


def untrained_model(work: Path) -> Path:
    """The job's model with random weights: enough for jobs in which nothing has to be learned."""
    config = load_config(CONFIG, [f"run.directory={work / 'untrained'}"])
    return base_model_dir(config, run_paths(config))


def job(
    work: Path, *seeds: int, steps: int, patch: Path | None = None, faults: tuple[Fault, ...] | None = None
) -> JobRecord:
    spec = JobSpec(
        folder=work / "job",
        work=work,
        model=untrained_model(work),
        seeds=seeds,
        overrides=(f"learner.steps={steps}",),
        measures_skill=False,
        patch=patch,
        faults=faults,
    )
    return run_job(spec)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_job_lives_through_kills_a_partition_and_a_damaged_checkpoint(tmp_path: Path) -> None:
    faults = (
        Fault("wire", "worker", "stall", after_s=0.1, lasts_s=0.5),
        Fault("kill", "engine", after_s=0.3),
        Fault("damage", "checkpoint", "flip"),
    )
    record = job(tmp_path, 1, steps=40, faults=faults)
    assert record.problems == []
    assert [(seed.verdict, seed.skipped) for seed in record.seeds] == [("recovered", [])]
    assert record.restarts["learner"] >= 1
    assert not (tmp_path / "job").exists()


@pytest.mark.soak
def test_acknowledging_before_the_commit_is_found(tmp_path: Path) -> None:
    patch = tmp_path / "patch.py"
    patch.write_text(ACKNOWLEDGE_BEFORE_THE_COMMIT)
    record = job(tmp_path, 1, steps=40, patch=patch, faults=(Fault("crash", "learner", "saving"),))
    assert any("acknowledged, but in no step that survived" in problem for problem in record.problems) or any(
        "groups were acknowledged, expected" in problem for problem in record.problems
    ), record.problems
    assert (tmp_path / "job" / "kept" / "checkpoints").exists()


def chaos(work: Path, *options: str, timeout_s: float) -> dict[str, Any]:
    """The report of `python -m tools.testing.chaos`, which must find nothing wrong."""
    path = work / "report.json"
    command = [sys.executable, "-m", "tools.testing.chaos", *options, "--work", str(work), "--report", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    record: dict[str, Any] = json.loads(path.read_text())
    return record


# The bounds are for a machine that does much else.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_seeds_and_what_they_leave(tmp_path: Path) -> None:
    record = job(tmp_path, 0, 1, 2, steps=num_steps(3))
    assert record.problems == []
    assert [seed.verdict for seed in record.seeds] == ["recovered"] * 3


@pytest.mark.parametrize(("correct", "status"), [(60, 0), (20, 1)])
def test_the_command_compares_what_jobs_learn_with_a_run_without_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, correct: int, status: int
) -> None:
    (tmp_path / "model.safetensors").touch()

    def ran(spec: JobSpec) -> JobRecord:
        record = JobRecord(
            str(spec.folder), [SeedRecord(seed, ["kill engine"], 1.0, [], "recovered") for seed in spec.seeds]
        )
        record.num_problems = 100
        record.correct = correct if spec.seeds else 70
        if spec.clean_correct is not None:
            record.problems += check_accuracy(record.correct, spec.clean_correct, record.num_problems)
        return record

    monkeypatch.setattr(command, "prepared_model", lambda _: tmp_path)
    monkeypatch.setattr(command, "run_job", ran)
    monkeypatch.setattr(command, "run_jobs", lambda specs, **_: [ran(spec) for spec in specs])
    arguments = ["--seeds", "3", "--jobs-seeds", "3", "--work", str(tmp_path), "--report", str(tmp_path / "report")]
    monkeypatch.setattr(sys, "argv", ["chaos", *arguments])
    assert command.main() == status
    report = json.loads((tmp_path / "report").read_text())
    assert (report["jobs"], report["jobs_wrong"], report["seeds"]) == (1, status, 3)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_three_seeds_and_what_they_learn(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--seeds", "3", "--jobs-seeds", "3", timeout_s=850)
    assert (record["jobs"], record["jobs_wrong"]) == (1, 0)
    assert record["seeds"] == 3, "too few steps for all seeds to have their turn"
    assert all(job["correct"] >= 60 for job in record["records"])


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_seeds_and_what_they_learn(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--seeds", "10", "--jobs-seeds", "10", timeout_s=850)
    assert (record["jobs"], record["jobs_wrong"]) == (1, 0)
    assert record["seeds"] >= 8, "too few steps for all seeds to have their turn"
    assert all(job["correct"] >= 60 for job in record["records"])


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_fifty_seeds_and_what_they_learn(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--seeds", "50", "--jobs-seeds", "25", "--at-once", "2", timeout_s=1400)
    assert (record["jobs"], record["jobs_wrong"]) == (2, 0)
    assert record["seeds"] >= 45, "too few steps for all seeds to have their turn"
    assert all(job["correct"] >= 60 for job in record["records"])


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_more_seeds(tmp_path: Path) -> None:
    record = chaos(tmp_path, "--first", "50", "--seeds", "200", "--at-once", "2", timeout_s=7000)
    assert (record["jobs"], record["jobs_wrong"]) == (20, 0)
    assert record["seeds"] >= 180


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_faults_of_real_vllm(tmp_path: Path) -> None:
    options = ("--engine", "vllm", "--first", "64", "--seeds", "8", "--jobs-seeds", "8")
    record = chaos(tmp_path, *options, timeout_s=3500)
    assert (record["jobs"], record["jobs_wrong"]) == (1, 0)
    assert record["seeds"] >= 7
