"""What the queue forgets and when: only what a restart can go on from, whoever died, committed late or lost a file."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

from learner_jax.checkpoints import proof as checkpoint_proof
from learner_jax.checkpoints.checkpoints import CheckpointError, Checkpoints, newest_step
from learner_jax.checkpoints.hashes import HASHES
from learner_jax.checkpoints.manifest import read_manifest
from learner_jax.ledger.ledger import Ledger
from learner_jax.loop import saving
from learner_jax.settings.learner import KLSettings, LossSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from serving_bridge.queue.consumer import QueueConsumer
from tests.support import host_processes
from tests.support.checkpoint_states import data_file
from tests.support.host_processes import TRAINING, Processes, records
from tests.support.learner_runs import SETTINGS, Crash, Records, assert_same_parameters, fill, run
from tests.support.tiny_model import TINY
from tests.support.whole_run import engine, num_acknowledged, params, whole

__all__ = ["engine", "params", "whole"]  # fixtures


def assert_same_end(directory: Path, whole: Path) -> None:
    """Nothing lost, nothing trained twice."""
    assert_same_parameters(directory, whole)
    assert num_acknowledged(directory) == 12


def test_nothing_is_forgotten_for_a_checkpoint_that_lost_a_chunk(
    engine: Engine, params: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint loses a file between its commit and the proof; a person puts it aside."""
    fill(tmp_path, 12)
    real = checkpoint_proof.prove

    def late(folder: Path, saved: Any) -> None:
        if folder.name == "4":
            data_file(folder).unlink()
        real(folder, saved)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_proof, "prove", late)
        with pytest.raises(CheckpointError, match=r"checkpoints/4 was committed, but is not what a restart"):
            run(engine, params, tmp_path)
    assert num_acknowledged(tmp_path) == 4
    with pytest.raises(CheckpointError, match=r"checkpoints/4 is damaged: .* used is .*/checkpoints/2,") as refused:
        run(engine, params, tmp_path)
    command = re.search(r"run (mv .*), then start the run again", str(refused.value))
    assert command
    subprocess.run(command[1], shell=True, check=True)
    run(engine, params, tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.fixture(scope="module")
def first_life(engine: Engine, params: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after the checkpoint at step 2; in `first` within it, how it would have gone on."""
    directory = tmp_path_factory.mktemp("life")
    fill(directory, 12)
    with pytest.raises(Crash):
        run(engine, params, directory, log=Records(lambda r: r["event"] == "checkpoint" and r["step"] == 2))
    shutil.copytree(directory, directory / "first")
    run(engine, params, directory / "first")
    return directory


@pytest.fixture
def ousted(first_life: Path, tmp_path: Path) -> dict[int, Path]:
    """Checkpoints of a first life of the run in tmp_path, taken out of its folder as if not committed yet: 4 and 6."""
    shutil.copytree(first_life, tmp_path, dirs_exist_ok=True)
    life = read_manifest(tmp_path / "checkpoints" / "2").position.life
    late = {step: tmp_path / "first" / "checkpoints" / str(step) for step in (4, 6)}
    for folder in late.values():  # the run was copied to go on there, which is another life, but not a later one
        manifest = folder / "manifest" / "metadata"
        raw = json.loads(manifest.read_text())
        raw["position"]["life"] = life
        manifest.write_text(json.dumps(raw))
        (folder / HASHES).unlink()
    return late


def test_a_late_commit_in_the_way_is_put_aside(
    engine: Engine, params: Any, whole: Path, ousted: dict[int, Path], tmp_path: Path
) -> None:
    """The life before commits step 4 while this one trains step 4 itself."""
    folder = tmp_path / "checkpoints"

    def arrive(record: dict[str, Any]) -> bool:
        if (record["event"], record.get("step")) == ("step", 3):
            shutil.copytree(ousted[4], folder / "4")
        return False

    _, log = run(engine, params, tmp_path, log=Records(arrive))
    (told,) = [record for record in log if record["event"] == "ousted"]
    assert told["steps"] == [4]
    assert (folder / f"4.ousted.{told['life']}").is_dir()
    assert read_manifest(folder / "4").position.life == told["life"] > read_manifest(ousted[4]).position.life
    assert_same_end(tmp_path, whole)


def test_a_late_commit_is_not_gone_on_from(
    engine: Engine, params: Any, whole: Path, ousted: dict[int, Path], tmp_path: Path
) -> None:
    """The life before commits step 6 after this one saved step 4 and died: a restart goes on from 4."""
    with pytest.raises(Crash):
        run(engine, params, tmp_path, log=Records(lambda r: r["event"] == "step" and r["step"] == 5))
    shutil.copytree(ousted[6], tmp_path / "checkpoints" / "6")
    assert newest_step(tmp_path / "checkpoints") == 4
    _, log = run(engine, params, tmp_path)
    (resumed,) = [record for record in log if record["event"] == "resumed"]
    assert resumed["step"] == 4
    assert [record["step"] for record in log.steps()] == [5, 6]
    assert_same_end(tmp_path, whole)


def test_a_new_database_does_not_make_old_checkpoints_the_newer_ones(
    engine: Engine, params: Any, tmp_path: Path
) -> None:
    """Turns are counted from 1 there again; lives must not be."""
    fill(tmp_path, 12)
    for step in (1, 3):
        with pytest.raises(Crash):
            run(engine, params, tmp_path, log=Records(lambda r, step=step: r["event"] == "step" and r["step"] == step))
    before = read_manifest(tmp_path / "checkpoints" / "2").position.life
    assert before >= 2
    for path in tmp_path.glob("state.db*"):
        path.unlink()
    fill(tmp_path, 12)
    run(engine, params, tmp_path)
    assert newest_step(tmp_path / "checkpoints") == 6
    assert read_manifest(tmp_path / "checkpoints" / "6").position.life > before


def test_the_points_of_a_save_lie_between_what_they_are_named_for(
    engine: Engine, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a process can be told to die: with a point elsewhere, tests that kill it there would prove nothing."""
    order: list[str] = []

    def noted(owner: Any, name: str, told: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            order.append(told)
            return result

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(saving, "crash_point", order.append)
    noted(Checkpoints, "save", "copied")
    noted(Ledger, "save_started", "taken down")
    noted(Ledger, "committed", "proven")
    noted(QueueConsumer, "acknowledge", "forgotten")
    noted(Ledger, "acknowledged", "free for the next")
    fill(tmp_path, 12)
    run(engine, params, tmp_path)
    one = ["save", "copied", "saving", "taken down", "proven", "committed", "forgotten", "acknowledged"]
    assert order == [*one, "free for the next"] * 3


# Carried on with other settings of the KL.


def kl_engine(**kl: Any) -> Engine:
    loss = LossSettings(kl=KLSettings(**kl))
    changed = SETTINGS.model_copy(update={"loss": loss})
    return Engine(changed, TINY, objective=objective.reinforcement(loss), temperature=1.0, devices=jax.devices()[:1])


def test_the_coefficient_is_that_of_the_settings_where_no_controller_moves_it(
    engine: Engine, params: Any, tmp_path: Path
) -> None:
    fill(tmp_path, 12)
    with pytest.raises(Crash):
        run(engine, params, tmp_path, log=Records(lambda r: r["event"] == "step" and r["step"] == 3))
    shutil.copytree(tmp_path, tmp_path / "without")
    _, log = run(kl_engine(coefficient=0.05), params, tmp_path)
    assert [(r["step"], r["kl_coefficient"]) for r in log.steps()] == [(step, 0.05) for step in (3, 4, 5, 6)]
    _, log = run(kl_engine(coefficient=0.0), params, tmp_path / "without")
    assert [r["step"] for r in log.steps()] == [3, 4, 5, 6]
    assert "kl_coefficient" not in log.steps()[0]


def test_a_moved_reference_stands_where_it_is_moved_no_more(
    engine: Engine, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 12)
    moving = LossSettings(kl=KLSettings(coefficient=0.01, reset_every=2))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "settings", engine.settings.model_copy(update={"loss": moving}))
        with pytest.raises(Crash):  # after the reset at step 2 and the checkpoint at step 2
            run(engine, params, tmp_path, log=Records(lambda r: r["event"] == "step" and r["step"] == 3))
    _, log = run(engine, params, tmp_path)
    # The policy of step 2 is its own reference; against the start model the KL would not be 0.
    assert log.steps()[0]["kl"] == pytest.approx(0.0, abs=1e-7)
    assert log.steps()[-1]["kl"] > 1e-6
    assert "reference" in read_manifest(tmp_path / "checkpoints" / "6").arrays


# kill -9.

POINTS = ("save:1", "saving:1", "proven:1", "hashed:1", "committed:1", "acknowledged:1")


def killed_at(points: Sequence[tuple[int, str]], directory: Path, count: int) -> None:
    """Lives of a run, each killed at a point on a host, and then one that ends."""
    host_processes.fill(directory, 24)
    for host, point in points:
        life = Processes(directory, count, settings=TRAINING, environments={host: {"WEIR_CRASH_AT": point}})
        statuses = life.wait()
        assert statuses[host] == -signal.SIGKILL, life.output(host)[-3000:]
        assert 0 not in statuses
    Processes(directory, count, settings=TRAINING).finish()


def assert_each_group_once(directory: Path, hosts: int) -> None:
    """Every group acknowledged; the payloads that the surviving steps read are each group's, once."""
    assert num_acknowledged(directory) == 24
    steps = [record["step"] for record in records(directory, 0, "step")]
    assert max(steps) == 6
    resumed = [record["step"] for record in records(directory, 0, "resumed")]
    assert resumed == sorted(resumed)


def test_kill_9_around_a_save_loses_nothing(tmp_path: Path) -> None:
    killed_at([(0, "proven:1"), (0, "committed:1")], tmp_path / "run", 1)
    assert_each_group_once(tmp_path / "run", 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 2])
def test_kill_9_at_every_point_of_a_save_on_any_host(count: int, tmp_path: Path) -> None:
    host_processes.fill(tmp_path / "whole", 24)
    Processes(tmp_path / "whole", count, settings=TRAINING).finish()
    followers = [(1, point) for point in POINTS if point not in ("proven:1", "hashed:1")] if count == 2 else []
    for host, point in itertools.chain([(0, point) for point in POINTS], followers):
        directory = tmp_path / f"{host}-{point}"
        killed_at([(host, point)], directory, count)
        assert_each_group_once(directory, count)
        assert_same_parameters(directory, tmp_path / "whole")
