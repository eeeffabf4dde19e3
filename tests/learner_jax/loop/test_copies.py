"""Checkpoints that are copied elsewhere: a fresh host goes on from them, and nothing is lost or trained on twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from learner_jax.checkpoints import CheckpointError, read_manifest
from learner_jax.training.engine import Engine
from serving_bridge.storage import CheckpointObjects, FsspecObjects, StorageTimeouts
from tests.support.learner_runs import Crash, Records, assert_same_parameters, fill, run
from tests.support.s3 import S3, Fault
from tests.support.whole_run import engine, num_acknowledged, params, whole

__all__ = ["engine", "params", "whole"]  # fixtures

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]


def copies(give_up_s: float = 60.0) -> CheckpointObjects:
    timeouts = StorageTimeouts(give_up_s=give_up_s)
    return CheckpointObjects(FsspecObjects("s3://bucket/run", timeouts=timeouts), run="run", keep=2)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What outlives the host: queue and weights."""
    folder = tmp_path / "shared"
    folder.mkdir()
    fill(folder, 12)
    return folder


def test_a_fresh_host_ends_where_an_uninterrupted_run_does(
    engine: Engine, params: Any, whole: Path, s3: S3, shared: Path, tmp_path: Path
) -> None:
    """The host is lost after step 5, with its folder; steps 5 and 6 are trained again from the copy of step 4."""
    kept: dict[str, Any] = {"copies": copies(), "queue_folder": shared, "weights": shared / "weights"}
    with pytest.raises(Crash):
        run(
            engine, params, tmp_path / "lost", log=Records(lambda r: (r["event"], r.get("step")) == ("step", 5)), **kept
        )
    shutil.rmtree(tmp_path / "lost")
    _, log = run(engine, params, tmp_path / "fresh", **kept)
    assert [(r["event"], r["step"]) for r in log if r["event"] in ("brought", "resumed")] == [
        ("brought", 4),
        ("resumed", 4),
    ]
    assert next(r for r in log if r["event"] == "resumed")["verified"]
    assert [r["step"] for r in log.steps()] == [5, 6]
    assert_same_parameters(tmp_path / "fresh", whole)
    assert num_acknowledged(shared) == 12
    (copied,) = [r for r in log if r["event"] == "copied"]
    assert copied["step"] == 6


def test_the_queue_forgets_nothing_that_is_not_copied(
    engine: Engine, params: Any, whole: Path, s3: S3, shared: Path, tmp_path: Path
) -> None:
    """Storage goes away at the second checkpoint; the host comes back, copies what it had saved, and then is lost."""
    kept: dict[str, Any] = {"queue_folder": shared, "weights": shared / "weights"}

    def goes_away(record: dict[str, Any]) -> bool:
        if (record["event"], record.get("step")) == ("committed", 4):
            s3.faults.append(Fault("503", "PUT"))
        return False

    with pytest.raises(CheckpointError, match=r"checkpoints/4 is whole, but could not be copied to s3://bucket/run"):
        run(engine, params, tmp_path / "first", copies=copies(1.0), log=Records(goes_away), **kept)
    assert (tmp_path / "first" / "checkpoints" / "4").is_dir()
    assert num_acknowledged(shared) == 4
    s3.faults.clear()
    with pytest.raises(Crash):
        run(
            engine,
            params,
            tmp_path / "first",
            copies=copies(),
            log=Records(lambda r: (r["event"], r.get("step")) == ("step", 5)),
            **kept,
        )
    shutil.rmtree(tmp_path / "first")
    _, log = run(engine, params, tmp_path / "fresh", copies=copies(), **kept)
    assert [r["step"] for r in log.steps()] == [5, 6]
    assert_same_parameters(tmp_path / "fresh", whole)


@pytest.mark.soak
def test_a_host_with_an_old_disk_goes_on_from_the_newer_copy(
    engine: Engine, params: Any, whole: Path, s3: S3, shared: Path, tmp_path: Path
) -> None:
    """The first host stops after step 4, another one gets to 6 and is lost; the first comes back with its step 4."""
    kept: dict[str, Any] = {"copies": copies(), "queue_folder": shared, "weights": shared / "weights"}
    with pytest.raises(Crash):
        run(engine, params, tmp_path / "old", log=Records(lambda r: (r["event"], r.get("step")) == ("step", 5)), **kept)
    run(engine, params, tmp_path / "other", **kept)
    _, log = run(engine, params, tmp_path / "old", **kept)
    assert [r["step"] for r in log if r["event"] == "brought"] == [6]
    assert log.steps() == []
    assert read_manifest(tmp_path / "old" / "checkpoints" / "6").position.completed_steps == 6
    assert_same_parameters(tmp_path / "old", whole)
