"""What a job starts when: workers load once the learner has compiled, or a replica is ready, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from configs.load import load_config
from configs.schema import Config
from serving_bridge.processes import Supervisor
from serving_bridge.telemetry import MetricsLog
from tools.assembly import RunPaths, build_registry, make_private_directory, run_paths
from tools.launch import Job, job
from tools.reporting import LiveView

HAPPENS_AFTER = 3


class Started:
    """In place of a supervisor: notes what is started; something happens while the job looks after its processes."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.names: list[str] = []
        self.before: Sequence[str] = ()
        self._happens, self._checks = happens, 0

    def start_group(self, name: str, commands: object, **_: Any) -> None:
        self.names.append(name)

    def check(self) -> None:
        self._checks += 1
        if self._checks == HAPPENS_AFTER:
            self.before = tuple(self.names)
            self._happens()

    def has_finished(self, name: str) -> bool:
        return "rollout" in self.names  # a learner that ended ends the rest of the beginning, too


def settings(directory: Path) -> Config:
    changes = ("model.create=none", "model.path=/m", "warm_start=none")
    return load_config("demo", [f"run.directory={directory}", *changes])


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    monkeypatch.setattr(job, "_START_TICK_S", 0.001)
    found = run_paths(settings(tmp_path / "run"))
    make_private_directory(found)
    compiled(found)  # in an earlier life
    monkeypatch.setattr(Job, "_measure_before", lambda *_: None)
    return found


def begun(paths: RunPaths, happens: Callable[[], None], should_stop: Callable[[], bool] = lambda: False) -> Started:
    config = settings(paths.directory)
    started = Started(happens)
    with LiveView(config, paths.directory) as view:
        Job(config, paths, view, should_stop)._begin(cast(Supervisor, started))
    return started


def compiled(paths: RunPaths) -> None:
    MetricsLog(paths.metrics, "learner").write("compiled", seconds=1.0)


def ready(paths: RunPaths) -> None:
    build_registry(paths).report("one", url="http://127.0.0.1:1", state="healthy", version=1, step=0, start="s")


@pytest.mark.parametrize("happens", [compiled, ready])
def test_workers_load_after_the_learner_or_once_a_replica_is_ready(
    paths: RunPaths, happens: Callable[[RunPaths], None]
) -> None:
    started = begun(paths, lambda: happens(paths))
    assert started.before == ("serve", "learner")
    assert started.names == ["serve", "learner", "rollout"]


def test_a_stop_meanwhile_starts_no_worker(paths: RunPaths) -> None:
    asked: list[bool] = []
    started = begun(paths, lambda: asked.append(True), lambda: bool(asked))
    assert started.names == ["serve", "learner"]
