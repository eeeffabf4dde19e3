"""Whole runs on real vLLM whose stores lie in object storage: as with folders, and no credential is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_bridge.storage import CheckpointObjects, FsspecObjects
from tests.conftest import REPOSITORY
from tests.support.clouds import azure, google
from tests.support.run_history import RECORDED, problems
from tests.support.s3 import CREDENTIALS, S3
from tests.support.whole_jobs import SMALL_DEMO, environment, processes_of, steps, train_command, wait_for

#: one server of each kind for all tests on it
pytest_plugins = ["tests.support.s3_fixtures", "tests.support.clouds_fixtures"]

URL = "s3://bucket/runs/demo"


@pytest.fixture(params=["s3", "gs", "az"])
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL on a server of each kind; the environment leads to it."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield URL
        return
    opened, server = (google, "gcs_address") if request.param == "gs" else (azure, "azurite_address")
    with opened(request.getfixturevalue(server), monkeypatch) as cloud:
        yield cloud.url


@pytest.mark.soak
def test_a_run_publishes_to_s3_and_its_replica_serves_from_there(s3: S3, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    given = (f"run.directory={run}", f"store.weights={URL}", f"store.cache={cache}")
    done = subprocess.run(
        train_command("demo.toml", *SMALL_DEMO, "learner.steps=4", *given),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = [record for record in records(run) if record["event"] == "round"]
    assert {record["outcome"] for record in rounds} == {"updated"}
    assert max(record["version"] for record in rounds) >= 4
    assert not (run / "weights").exists()
    assert list((run / "replicas" / "keys").iterdir())
    assert any((cache / "files").iterdir())

    assert json.loads(ran("weights", "list", URL, "--json"))[-1]["step"] == 4
    assert {line.partition(": ")[2] for line in ran("weights", "verify", URL).splitlines()} == {"intact"}

    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode()
    told = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert told == []
    assert secret.decode() not in done.stdout + done.stderr


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_with_all_three_stores_in_storage_a_lost_host_is_made_good(stored: str, tmp_path: Path) -> None:
    """Every process is killed at once, checkpoints and cache are lost; the same command finishes, training nothing
    twice, and the copy in storage becomes the model that was served last."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    command = train_command(
        "demo.toml",
        *SMALL_DEMO,
        "learner.steps=8",
        f"run.directory={run}",
        f"store.weights={stored}/weights",
        f"store.checkpoints={stored}/checkpoints",
        f"store.blobs={stored}/blobs",
        "store.blob_bytes=1",
        f"store.cache={cache}",
    )
    copies = CheckpointObjects(FsspecObjects(f"{stored}/checkpoints"), run="")
    killed_after_a_copy(command, run, copies, tmp_path / "first")
    copied, trained = copies.newest(), len(steps(run))
    assert copied is not None, (tmp_path / "first").read_text()
    assert copied.step < trained < 8
    assert list(FsspecObjects(f"{stored}/blobs").list())
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(cache)

    done = subprocess.run(
        command, env=environment() | RECORDED, capture_output=True, text=True, timeout=900, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(record["event"], record["step"]) for record in records(run) if record["event"] == "brought"] == [
        ("brought", copied.step)
    ]
    assert problems(run) == []
    newest = copies.newest()
    assert newest is not None
    assert newest.step == 8
    assert newest.life > copied.life
    assert [record for record in records(run) if record["event"] == "restart"] == []
    # A worker that was killed between an object and its row leaves an orphan, which is taken back when it is old.
    assert len(FsspecObjects(f"{stored}/blobs").list()) <= 1
    checkpoints, model = f"{stored}/checkpoints", f"{stored}/model"
    ran("convert", "to-hf", "--checkpoint", checkpoints, "--model", str(run / "start_model"), "--out", model)
    ran("convert", "verify", "--checkpoint", checkpoints, "--hf", model)
    ran("convert", "verify", "--checkpoint", checkpoints, "--hf", str(run / "final_model"))


def killed_after_a_copy(command: list[str], run: Path, copies: CheckpointObjects, log: Path) -> None:
    """Starts a job, and kills all its processes once storage has a checkpoint and a step came after it."""
    with log.open("wb") as output:
        job = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment() | RECORDED
        )
        try:
            wait_for(lambda: copies.newest() or job.poll() is not None, timeout_s=600, what="a copy of a checkpoint")
            wait_for(lambda: len(steps(run)) % 2, timeout_s=60, what="a step that no checkpoint holds")
        finally:
            for process in [job.pid, *processes_of(run)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            job.wait(60)
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")


def ran(command: str, *arguments: str) -> str:
    """What one of the commands prints; it must succeed."""
    told = subprocess.run(
        [sys.executable, "-m", f"tools.{command}", *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def records(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
