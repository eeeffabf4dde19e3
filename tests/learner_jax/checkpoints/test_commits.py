"""Commits of checkpoints: killed, slow and failed ones, and the hashes that come after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from learner_jax.checkpoints import checkpoints as checkpoint
from learner_jax.checkpoints import hashes as checkpoint_files
from learner_jax.checkpoints.checkpoints import (
    CheckpointError,
    Checkpoints,
    newest_step,
    unfinished,
    verify,
)
from learner_jax.checkpoints.hashes import HASHES, check_files, write_hashes
from learner_jax.checkpoints.manifest import read_manifest
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.checkpoint_states import (
    assert_equal,
    make_state,
    position,
    restored,
    save,
)
from tests.support.forked_python import HOST_JAX, start_python
from tests.support.held_commits import Hold
from tests.support.held_commits import hold as hold
from tests.support.learner_process import demo_run, learner_environment
from tests.support.learner_runs import Records


def test_kill_9_before_hashing_and_while_writing(tmp_path: Path) -> None:
    """A process is killed with one step committed and not hashed, and another half written."""
    read, write = os.pipe()
    with os.fdopen(read) as said, os.fdopen(write, "wb") as output:
        process = start_python(
            "tests.support.killed_commit",
            [str(tmp_path)],
            cwd=REPOSITORY,
            environment=os.environ | HOST_JAX,
            output=output,
        )
        output.close()  # the process's alone, so that its end is the end of what it says
        assert [said.readline(), said.readline()] == ["committed\n", "writing\n"]
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert (tmp_path / "1" / HASHES).exists()
    assert not (tmp_path / "2" / HASHES).exists()
    (left,) = unfinished(tmp_path)
    assert left.startswith("3.")
    checkpoints = Checkpoints(tmp_path, keep=9)
    assert checkpoints.latest_step() == newest_step(tmp_path) == 2
    assert not checkpoints.check(2)
    state, at, _ = checkpoints.restore(make_state(0))
    assert_equal(state, make_state(2))
    assert at == position(2)
    checkpoints.save(make_state(4), position(4))
    checkpoints.close()
    assert unfinished(tmp_path) == ()


def test_hashes_end_with_the_checkpoint_that_the_policy_deletes(tmp_path: Path) -> None:
    log = Records()
    save(tmp_path, 1, 2, 3, keep=2, log=log)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(HASHES)) == [
        f"2/{HASHES}",
        f"3/{HASHES}",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert [(r["event"], r["step"], r["verified"]) for r in log] == [("committed", s, True) for s in (1, 2, 3)]


def test_hashes_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    with pytest.raises(checkpoint_files.Stopped):
        write_hashes(tmp_path, should_stop=lambda: True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert check_files(tmp_path) == checkpoint_files.FileCheck(hashed=False)
    (tmp_path / f".{HASHES}.0000").write_text("{")  # a life before was killed while it wrote them
    write_hashes(tmp_path)
    assert check_files(tmp_path) == checkpoint_files.FileCheck(hashed=True)
    assert list(json.loads((tmp_path / HASHES).read_text())["files"]) == ["a"]


def test_a_commit_that_takes_long_is_told_of_and_the_wait_is_bounded(
    hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SLOW_S", 0.05)
    log = Records()
    checkpoints = Checkpoints(tmp_path, keep=1, log=log)
    checkpoints.save(make_state(1), position(1))
    with pytest.raises(
        CheckpointError,
        match=rf"{tmp_path}/1 to be committed from the disk and gave up \(learner\.max_wait_s = 0\.2 s\)",
    ):
        checkpoints.wait(0.2)
    assert [(record["event"], record["step"]) for record in log] == [("uncommitted", 1)]
    assert log[0]["waited_s"] >= 0.05
    monkeypatch.setattr(checkpoint, "_SLOW_S", 30.0)  # closing waits too, on a busy machine for longer than that
    hold.released.set()
    checkpoints.close()
    assert [record["event"] for record in log] == ["uncommitted", "committed"]


def test_a_save_that_fails_is_told_by_the_next_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make_state(1), position(1))
    checkpoints.wait()

    real = json.dumps

    def full(value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, dict) and "position" in value:
            raise OSError(28, "No space left on device")
        return real(value, *args, **kwargs)

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(CheckpointError, match=r"2 could not be written: .*No space left on device"):  # noqa: PT012
        checkpoints.save(make_state(2), position(2))
        checkpoints.wait()
    monkeypatch.setattr(json, "dumps", real)
    assert checkpoints._proof is None  # of a step that is not there, which the next wait would tell of again
    assert newest_step(tmp_path) == 1
    assert_equal(restored(tmp_path, make_state(0))[0], make_state(1))


def test_sigterm_saves_within_the_grace_and_says_so(tmp_path: Path) -> None:
    """The real learner process, in the middle of a run; the supervisor would kill it after 60 s."""
    _, command = demo_run(tmp_path, "learner.steps=1000", "learner.checkpoint.every=1000", num_groups=120)
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY, env=learner_environment())
    try:
        deadline = time.monotonic() + 400  # a busy machine starts a process for minutes
        metrics = tmp_path / "metrics.jsonl"
        while not (metrics.exists() and '"event":"step"' in metrics.read_text()):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, (tmp_path / "output").read_text()
    finally:
        process.kill()
        process.wait()
    records = read_metrics(metrics)
    (stopping,) = [record for record in records if record["event"] == "stopping"]
    (committed,) = [record for record in records if record["event"] == "committed"]
    assert committed["step"] == stopping["step"] == newest_step(tmp_path / "checkpoints")
    assert stopping["step"] < 1000
    assert committed["verified"]
    assert verify(tmp_path / "checkpoints", stopping["step"]) == checkpoint_files.FileCheck(hashed=True)
    manifest = read_manifest(tmp_path / "checkpoints" / str(stopping["step"]))
    assert (manifest.run, manifest.config["learner"]["steps"]) == ("demo", 1000)
    assert manifest.position.consumed_trajectory_ids


def test_a_step_that_another_process_put_aside_can_be_saved_again(tmp_path: Path) -> None:
    """A checkpoint of an ousted learner makes way for this one's own; Orbax remembers what it saw before."""
    save(tmp_path, 2, 4)
    checkpoints = Checkpoints(tmp_path, keep=9)
    (tmp_path / "4").rename(tmp_path / "4.ousted.9")
    checkpoints.reload()
    checkpoints.save(make_state(5), position(4))
    checkpoints.close()
    assert newest_step(tmp_path) == 4
    found, _ = restored(tmp_path, make_state(4))
    assert_equal(found, make_state(5))
