"""Skill after training: asked of the fleet where it serves the converted weights, else of a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from configs.load import load_config, save_config
from configs.schema import Config
from learner_jax.contracts.weights import GoldenPrompt
from learner_jax.runtime.waits import Waits
from serving_bridge.evaluation import Evaluation
from serving_bridge.telemetry import read_metrics
from serving_bridge.vllm import ReplicaError
from serving_bridge.weights.writer import VersionWriter
from tests.support.rollout_world import FakeReplica, FakeSession
from tools.assembly import (
    RunPaths,
    base_model_dir,
    build_keys,
    build_registry,
    build_store,
    make_private_directory,
    run_paths,
)
from tools.launch import evaluation
from tools.launch.evaluation import NotServedError, ServedSkill, evaluate_newest
from tools.launch.job import Job
from tools.reporting import LiveView

VERSION = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunPaths]:
    """A run with two published versions, the last of which is the model that it made for itself."""
    overrides = [f"run.directory={tmp_path_factory.mktemp('run')}", "evaluation.num_problems=4"]
    config = load_config("demo", [*overrides, "serving.update_timeout_s=0.5"])
    paths = run_paths(config)
    make_private_directory(paths)
    save_config(config, paths.config)
    tensors = load_file(base_model_dir(config, paths) / "model.safetensors")
    writer = VersionWriter(build_store(config, paths))
    for scale in (2, 1):
        scaled = {name: scale * tensor for name, tensor in tensors.items()}
        writer.publish(scaled.items(), step=0, golden=[GoldenPrompt([1, 2], [-1.0])])
    build_keys(config, paths).make()
    return config, paths


def served(made: tuple[Config, RunPaths], monkeypatch: pytest.MonkeyPatch, *, said: int, true: int) -> ServedSkill:
    """What an evaluation finds on a replica that is said to serve one version, and serves another."""
    config, paths = made
    build_registry(paths).report("host-0", url="http://a:1", state="healthy", version=said, step=0, start="s")

    @asynccontextmanager
    async def session() -> AsyncIterator[Any]:
        yield FakeSession({"a:1": FakeReplica(version=true, stop=1.0)})

    monkeypatch.setattr(evaluation, "http_session", session)
    return asyncio.run(evaluate_newest(config, paths, Waits()))


def test_the_newest_version_is_asked_of_a_replica_that_serves_it(
    made: tuple[Config, RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, paths = made
    found = served(made, monkeypatch, said=VERSION, true=VERSION)
    assert found.result.versions == (VERSION, VERSION)
    assert found.result.num_wanted == 4
    assert found.manifest.version == VERSION
    found.require(base_model_dir(config, paths))
    older = replace(found, manifest=build_store(config, paths).manifest(1))
    with pytest.raises(NotServedError, match=r"has other values than in version 1"):
        older.require(base_model_dir(config, paths))


@pytest.mark.parametrize(
    ("said", "true", "message"),
    [
        (1, 1, r"a replica that serves version 2.*serving\.update_timeout_s"),
        (VERSION, 1, r"answers are of versions \(1, 1\), expected all of version 2"),
    ],
)
def test_no_other_version_is_taken_for_the_newest(
    made: tuple[Config, RunPaths], monkeypatch: pytest.MonkeyPatch, said: int, true: int, message: str
) -> None:
    with pytest.raises(NotServedError, match=message):
        served(made, monkeypatch, said=said, true=true)


class Processes:
    """A supervisor whose processes end well at once."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopping: list[str] = []

    def start_group(self, name: str, commands: Any, **options: Any) -> None:
        self.started.append(name)

    def ask_to_stop(self, name: str) -> None:
        self.stopping.append(name)

    def has_finished(self, name: str) -> bool:
        return name in self.started

    def check(self) -> None:
        """All is well."""


@pytest.mark.parametrize(
    ("fleet", "weights", "on_own_server"),
    [(None, None, False), (ReplicaError("gone"), None, True), (None, NotServedError("other values"), True)],
)
def test_a_server_of_its_own_is_started_only_where_the_fleet_does_not_show_the_folders_skill(
    made: tuple[Config, RunPaths],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fleet: Exception | None,
    weights: Exception | None,
    on_own_server: bool,
) -> None:
    config = made[0].model_copy(update={"run": made[0].run.model_copy(update={"directory": str(tmp_path)})})
    paths = run_paths(config)
    make_private_directory(paths)
    by_fleet = served(made, monkeypatch, said=VERSION, true=VERSION)
    by_own = replace(by_fleet.result, versions=(0, 0))

    async def newest(*_: Any) -> ServedSkill:
        if fleet is not None:
            raise fleet
        return by_fleet

    async def folder(config: Config, paths: RunPaths, model_dir: Path) -> Evaluation:
        assert processes.stopping == ["serve"], "two fleets at once"
        return by_own

    def require(self: ServedSkill, model_dir: Path) -> None:
        assert processes.has_finished("convert")
        if weights is not None:
            raise weights

    monkeypatch.setattr("tools.launch.job.evaluate_newest", newest)
    monkeypatch.setattr("tools.launch.job.evaluate_folder", folder)
    monkeypatch.setattr(ServedSkill, "require", require)
    processes: Any = Processes()
    with LiveView(config, paths.directory) as view:
        job = Job(config, paths, view, lambda: False)
        job._measure_after(processes)
        job._measure_after(processes)  # measured once
    (found,) = (event for event in read_metrics(paths.metrics) if event["event"] == "evaluation")
    assert (found["which"], found["versions"]) == ("after", [0, 0] if on_own_server else [VERSION, VERSION])
    assert (processes.started, processes.stopping) == (["convert"], ["serve"])
    assert sum(event["event"] == "retry" for event in read_metrics(paths.metrics)) == on_own_server
