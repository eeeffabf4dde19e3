"""A whole run on real vLLM whose weights lie on a real S3 server: as with a folder, and no credential is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.s3 import CREDENTIALS, S3
from tests.support.whole_jobs import SMALL_DEMO, environment, train_command

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/runs/demo"


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

    assert json.loads(weights("list", URL, "--json"))[-1]["step"] == 4
    assert {line.partition(": ")[2] for line in weights("verify", URL).splitlines()} == {"intact"}

    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode()
    told = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert told == []
    assert secret.decode() not in done.stdout + done.stderr


def weights(*arguments: str) -> str:
    command = [sys.executable, "-m", "tools.weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout


def records(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
