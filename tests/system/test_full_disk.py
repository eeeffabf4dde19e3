"""A disk of the learner's that is full or fails: one line that says what and where, a status of its own, a way on.

The disks are real and small. Not covered: disks of several hosts, and disks that lie about what they have written.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from learner_jax.checkpoints.checkpoints import Checkpoints, newest_step, unfinished, verify
from learner_jax.checkpoints.hashes import FileCheck
from learner_jax.conversion.convert import from_hf, to_hf
from learner_jax.runtime import disk_errors
from learner_jax.runtime.waits import Waits
from learner_jax.training.engine import Engine
from serving_bridge.processes.supervisor import ProcessFailedError, Supervisor
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.telemetry.metrics_log import MetricsLog, read_metrics
from serving_bridge.telemetry.wait_reporter import reported_waits
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.store import WeightStore
from tests.conftest import REPOSITORY
from tests.support.checkpoint_states import make_state, position
from tests.support.learner_process import demo_run, learner_environment
from tests.support.learner_runs import Records, assert_same_parameters, fill, run
from tests.support.small_disks import KEPT, Disk, make_disk, the_line, until
from tests.support.whole_run import engine, params, whole
from tools.assembly import DISK_STATUS, clear_errors

__all__ = ["engine", "make_disk", "params", "whole"]  # fixtures


@pytest.fixture
def told_once() -> Iterator[None]:
    """As in the learner's process."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hook, filters = sys.unraisablehook, [list(logger.filters) for logger in loggers]
    disk_errors.tell_once()
    yield
    sys.unraisablehook = hook
    for logger, given in zip(loggers, filters, strict=True):
        logger.filters[:] = given


def test_the_learner_ends_in_one_line_and_goes_on_once_there_is_space(
    make_disk: Callable[[Path, str], Disk], tmp_path: Path
) -> None:
    """The real process: its first checkpoint of 6 MB finds room, its second does not."""
    steps = ("learner.steps=4", "learner.optimizer.warmup_steps=2", "learner.checkpoint.every=2")
    paths, command = demo_run(tmp_path, *steps, num_groups=8)
    disk = make_disk(paths.checkpoints, "9m")

    def learn() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, env=learner_environment(), timeout=240, check=False
        )

    ended = learn()
    assert (ended.returncode, ended.stderr.splitlines()) == (
        DISK_STATUS,
        [
            f"error: checkpoint {paths.checkpoints / '4'} could not be written: No space left on device; the "
            f"checkpoints before it are kept; {KEPT}: see to that disk and start again; a learner goes on from its "
            f"last committed checkpoint"
        ],
    )
    assert newest_step(paths.checkpoints) == 2
    assert verify(paths.checkpoints, 2) == FileCheck(hashed=True)

    disk.resize("64m")
    again = learn()
    assert again.returncode == 0, again.stderr
    assert "learner finished after 4 steps" in again.stdout
    records = read_metrics(paths.metrics)
    assert [record["step"] for record in records if record["event"] == "resumed"] == [2]
    assert [record["step"] for record in records if record["event"] == "step"] == [1, 2, 3, 4, 3, 4]
    assert verify(paths.checkpoints, 4) == FileCheck(hashed=True)
    progress = TrajectoryQueue(tmp_path / "state.db").admin.progress()
    assert (progress.num_acknowledged, progress.num_ready, progress.finished) == (8, 0, True)


PLACES = {
    "weights": r"no space for version \d+ in .*/weights",
    "database": r"/state\.db: database or disk is full",
    "metrics": r"/metrics/metrics\.jsonl can't be written or read: No space left on device",
    "checkpoints": r"checkpoint .*/checkpoints/\d could not be written: No space left on device",
}


@pytest.mark.usefixtures("told_once")
@pytest.mark.parametrize("place", PLACES)
def test_wherever_the_disk_is_full_the_run_ends_in_one_line_and_resumes_bit_by_bit(
    place: str,
    make_disk: Callable[[Path, str], Disk],
    engine: Engine,
    params: Any,
    whole: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    disk = make_disk(broken / place, "4m")
    (broken / "metrics").mkdir(exist_ok=True)
    if place == "database":
        (broken / "state.db").symlink_to(disk.folder / "state.db")
    fill(broken, 12)

    def life(records: Records) -> None:
        with MetricsLog(broken / "metrics" / "metrics.jsonl", "learner") as metrics:

            def log(event: str, **fields: Any) -> None:
                metrics.write(event, padding="x" * 4096, **fields)  # a page each, so that the last one has no room
                records(event, **fields)

            run(engine, params, broken, log=log)  # type: ignore[arg-type]

    class FullAfterStep3(Records):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "step" and fields["step"] == 3:
                until(lambda: (broken / "checkpoints" / "2").is_dir())
                disk.fill()

    first, second = FullAfterStep3(), Records()
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended, clear_errors():
        life(first)
    assert re.match(f"error: .*{PLACES[place]}", the_line(capfd, ended.value.code))
    committed = newest_step(broken / "checkpoints")
    assert committed == 2 if place == "checkpoints" else committed in (2, 4)
    disk.free()
    life(second)
    (resumed,) = [record for record in second if record["event"] == "resumed"]
    assert resumed["step"] == committed
    assert second.steps()[-1]["step"] == 6
    assert TrajectoryQueue(broken / "state.db").admin.progress().num_acknowledged == 12
    assert_same_parameters(broken, whole)


@pytest.mark.usefixtures("told_once")
@pytest.mark.parametrize("left", [0, 6, 20], ids="{} pages left".format)
def test_a_checkpoint_that_finds_no_room_anywhere_in_its_save_is_one_clear_error(
    left: int,
    make_disk: Callable[[Path, str], Disk],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Folders, metadata, arrays and manifest are written by different threads of Orbax; close comes after the error."""
    disk = make_disk(tmp_path / "disk", "2m")
    folder = disk.folder / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(make_state(1), position(1))
    checkpoints.finish()
    disk.fill()
    disk.leave(left)
    capfd.readouterr()

    def save() -> None:
        try:
            checkpoints.save(make_state(2), position(2))
            checkpoints.wait()
        finally:
            checkpoints.close()

    with pytest.raises(SystemExit) as ended, clear_errors():
        save()
    gc.collect()  # futures that nobody asked are told of when they go
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    line = the_line(capfd, ended.value.code)
    assert f"checkpoint {folder / '2'} could not be written: No space left on device; the checkpoints before" in line
    disk.free()
    again = Checkpoints(folder, keep=2)
    _, at, _ = again.restore(make_state(0))
    assert at == position(1)
    again.save(make_state(2), position(2))
    again.close()
    assert verify(folder, 2) == FileCheck(hashed=True)
    assert not unfinished(folder)


@pytest.mark.parametrize("left", [0, 8], ids="{} pages left".format)
def test_a_conversion_without_room_goes_on_once_there_is_some(
    left: int,
    make_disk: Callable[[Path, str], Disk],
    stories_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from_hf(stories_model, out=tmp_path / "checkpoints")
    disk = make_disk(tmp_path / "disk", "16m")
    disk.fill()
    disk.leave(left)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended, clear_errors():
        to_hf(tmp_path / "checkpoints", model_dir=stories_model, out=disk.folder / "model", dtype="float32")
    assert str(disk.folder) in the_line(capfd, ended.value.code)
    disk.free()
    to_hf(tmp_path / "checkpoints", model_dir=stories_model, out=disk.folder / "model", dtype="float32")
    assert (disk.folder / "model" / "model.safetensors").stat().st_size > 1e6


def test_a_child_that_ended_for_its_disk_ends_its_parent_with_that_status(tmp_path: Path) -> None:
    """As the learner does under tools.train, once the disk is still full after the restarts that it is given."""
    code = f"import sys; print('error: no space', file=sys.stderr); sys.exit({DISK_STATUS})"
    starts: list[str] = []
    with Supervisor(tmp_path, lambda event, **_: starts.append(event)) as supervisor:
        supervisor.start("learner", [sys.executable, "-c", code], restarts=1)

        def never() -> bool:
            supervisor.check()
            return False

        with pytest.raises(ProcessFailedError, match="error: no space") as failed:
            until(never)
    assert failed.value.status == DISK_STATUS
    assert starts == ["restart"]


def test_threads_leave_the_telling_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What writes metrics beside training meets a full disk as well: none of it prints a traceback."""

    def log(event: str, **fields: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/metrics.jsonl")

    waits = Waits()
    with (
        reported_waits(waits, log, clock=lambda: time.monotonic() * 100, poll_s=0.01),
        waits.waiting("it", on="us", limit_s=9.0) as wait,
    ):
        until(lambda: wait.waited_s > 1.1)

    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, log=log)
    checkpoints.save(make_state(1), position(1))
    with pytest.raises(OSError, match=r"No space left on device: '/metrics\.jsonl'"):
        checkpoints.finish()
    checkpoints.close()
    assert verify(tmp_path / "checkpoints", 1) == FileCheck(hashed=True)

    monkeypatch.setattr("serving_bridge.weights.publisher._POLL_S", 0.01)
    looked: list[int] = []

    class Failing(WeightStore):
        def wanted_anchors(self) -> list[int]:
            looked.append(1)
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/weights")

    publisher = Publisher(Failing(tmp_path / "weights", "test"), StoreSettings(), log=log)
    until(lambda: len(looked) > 2)
    publisher.close()
    assert capfd.readouterr().err == ""
