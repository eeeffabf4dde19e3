"""The directory of a run: paths in its settings, what may change when it is carried on, one start at a time."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from configs.carry_on import Change, changes
from configs.errors import ConfigError
from configs.load import load_config, save_config
from configs.paths import PATH_SETTINGS, PATH_TABLES, SOURCE_PATHS
from configs.schema import Config
from learner_jax.contracts.settings import Settings
from learner_jax.runtime.waits import Waits
from serving_bridge.processes.lock import InUseError, sole, wait_until_free
from serving_bridge.telemetry.metrics_log import MetricsLog, read_metrics
from tests.conftest import REPOSITORY
from tests.support.lock_holder import hold
from tools.assembly import make_private_directory, name_argument, run_paths, save_for_all
from tools.assembly.run_directory import Start, choose, keep_results, record, require_original, resume

DEMO = REPOSITORY / "configs" / "demo.toml"


def _config(*overrides: str) -> Config:
    return load_config(DEMO, overrides)


# Paths.


def test_every_setting_that_names_a_place_is_known_as_one():
    found = []

    def look(model: type[Settings], prefix: str) -> None:
        for name, field in model.model_fields.items():
            kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
            inner = [kind for kind in kinds if isinstance(kind, type) and hasattr(kind, "model_fields")]
            for kind in inner:
                look(kind, f"{prefix}{name}.")
            words = f"{name} {field.description or ''}".lower()
            if str in kinds and any(word in words for word in ("folder", "directory", "file", "path")):
                found.append(f"{prefix}{name}")

    look(Config, "")
    # vLLM's own options are taken as they are written; their paths begin with /.
    assert sorted(found) == sorted([*PATH_SETTINGS, *SOURCE_PATHS, *PATH_TABLES, "serving.engine_args"])


def _get(config: Config, setting: str) -> str:
    value: object = config
    for name in setting.split("."):
        value = getattr(value, name)
    assert isinstance(value, str)
    return value


def _ending(setting: str) -> str:
    """What a path must end with to be one: `task.data` and its like may name a function."""
    return ".jsonl" if setting.endswith("data") else ""


#: The demo makes its model, by a warm start of its own.
NOT_IN_DEMO = {"model.path", *(setting for setting in PATH_SETTINGS if setting.startswith("supervised."))}


def _with_all_paths(text: str) -> list[str]:
    given = [f"{setting}={text}{_ending(setting)}" for setting in PATH_SETTINGS if setting not in NOT_IN_DEMO]
    return [*given, "task.provider=jsonl_math", "task.name=", "task.chat=true", "task.options={}"]


@pytest.mark.parametrize(
    ("text", "place"), [("~/x", "{home}/x"), ("x", "{here}/x"), ("./a/../x", "{here}/x"), ("/abs/x", "/abs/x")]
)
def test_paths_mean_the_same_in_every_setting(text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    config = _config(*_with_all_paths(text))
    expected = place.format(home=home, here=here)
    for setting in set(PATH_SETTINGS) - NOT_IN_DEMO:
        assert _get(config, setting) == expected + _ending(setting), setting
    others = [f"{setting}={text}{_ending(setting)}" for setting in NOT_IN_DEMO]
    required = ("steps=1", "batch_size=1", "learning_rate=1e-4")
    stories = load_config("stories", [*others, *(f"supervised.{one}" for one in required)])
    for setting in NOT_IN_DEMO:
        assert _get(stories, setting) == expected + _ending(setting), setting
    paths = run_paths(config)
    assert {str(paths.directory), paths.blobs, paths.weights, paths.database} == {expected}
    in_file = here / "mine.toml"
    save_config(config, in_file)
    assert load_config(in_file) == config
    assert _config("task.data=my_data:rows").task.data == "my_data:rows"
    url = _config("store.database=postgresql://weir@/weir?host=/tmp").store.database
    assert url == "postgresql://weir@/weir?host=/tmp"
    assert _config("store.database=sqlite:///x.db").store.database == str(here / "x.db")


def test_paths_in_a_table_are_made_absolute_and_move_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    config = _config(f"run.directory={run}", 'task.episode.corpora={ docs = "docs.jsonl", own = "run/own" }')
    assert config.task.episode.corpora == {"docs": str(tmp_path / "docs.jsonl"), "own": str(run / "own")}
    paths = run_paths(config)
    make_private_directory(paths)
    save_for_all(config, paths)
    saved = tomllib.loads(paths.config.read_text())["task"]["episode"]["corpora"]
    assert saved == {"docs": str(tmp_path / "docs.jsonl"), "own": "own"}
    assert load_config(paths.config) == config


def test_a_home_of_nobody_is_refused():
    with pytest.raises(ConfigError, match=r"store.weights: '~nobody-here/x' names the home of a user"):
        _config("store.weights=~nobody-here/x")


def test_a_run_directory_can_be_moved_renamed_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, other = tmp_path / "run", tmp_path / "elsewhere" / "other"
    config = _config(f"run.directory={run}", f"store.weights={run / 'w'}", f"store.blobs={tmp_path / 'blobs'}")
    paths = run_paths(config)
    make_private_directory(paths)
    save_for_all(config, paths)
    saved = tomllib.loads(paths.config.read_text())
    assert (saved["run"]["directory"], saved["store"]["weights"]) == (".", "w")
    assert saved["store"]["blobs"] == str(tmp_path / "blobs")
    assert load_config(paths.config) == config
    other.parent.mkdir()
    shutil.copytree(run, other)
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = run_paths(load_config(Path("other/config.toml")))
    assert (moved.directory, Path(moved.weights), Path(moved.blobs)) == (other, other / "w", tmp_path / "blobs")
    assert moved.database == str(other / "state.db")


# What may change.


@pytest.mark.parametrize(
    "change",
    ["learner.steps=400", "learner.optimizer.learning_rate=1e-5", "learner.groups_per_step=32", "learner.hosts.count=2",
     "learner.mesh.data=2", "learner.microbatch_rows=8", "rollout.max_staleness=1", "learner.loss.kl.coefficient=0.1",
     "learner.sequence_length=20", "serving.replicas=2", "evaluation.num_problems=64", "store.keep_versions=4",
     "task.score_timeout_s=9.0", "task.score_processes=8"],
)  # fmt: skip
def test_settings_of_training_and_of_machines_may_change(change: str):
    setting, _, _ = change.partition("=")
    assert [found.setting for found in changes(_config(), _config(change))] == [setting]


@pytest.mark.parametrize(
    "change",
    ["run.name=other", "run.seed=7", "model.create.hidden_size=64", "task.options.max_digits=3",
     "task.prompt_template=Q: {question}", "task.reward=my_rewards:exact", "warm_start.target_accuracy=0.5",
     "rollout.group_size=4", "rollout.temperature=0.8", "learner.optimizer.moments=bfloat16",
     "store.database=/tmp/x.db", "store.weights=/tmp/w", "store.blobs=/tmp/b"],
)  # fmt: skip
def test_what_a_run_keeps_for_its_life_is_refused_by_name(change: str):
    with pytest.raises(ConfigError) as refused:
        changes(_config(), _config(change))
    text = str(refused.value)
    assert change.partition("=")[0] in text
    assert "before" in text
    assert "now" in text
    assert "keeps these settings for its life" in text


def test_a_sequence_may_grow_and_not_shrink():
    longer = _config("learner.sequence_length=20")
    assert changes(_config(), longer) == (Change("learner.sequence_length", 13, 20),)
    with pytest.raises(ConfigError, match=r"learner.sequence_length: 20 before, 13 now \(longer trajectories"):
        changes(longer, _config())


def test_where_a_run_is_and_who_asks_are_no_settings_of_it():
    assert changes(_config(), _config("run.directory=/x", "learner.hosts.coordinator=a:1")) == ()


def test_an_unfinished_run_is_taken_up_with_its_changes(tmp_path: Path):
    config = _config(f"run.directory={tmp_path / 'run'}")
    first = choose(config)
    assert (first.config, first.changes, first.reopens) == (config, (), False)
    paths = run_paths(config)
    make_private_directory(paths)
    record(first, paths)
    assert read_metrics(paths.metrics) == []
    with MetricsLog(paths.metrics, "learner") as log:
        log.write("checkpoint", step=40)
    again = choose(_config(f"run.directory={tmp_path / 'run'}", "learner.steps=300", "learner.microbatch_rows=12"))
    assert [str(change) for change in again.changes] == [
        "learner.microbatch_rows: 24 before, 12 now", "learner.steps: 120 before, 300 now",
    ]  # fmt: skip
    record(again, paths)
    (event,) = [r for r in read_metrics(paths.metrics) if r["event"] == "carried_on"]
    assert (event["step"], event["changes"]) == (40, {"learner.microbatch_rows": [24, 12], "learner.steps": [120, 300]})
    assert load_config(paths.config).learner.steps == 300
    with pytest.raises(ConfigError, match=r"run.seed: 0 before, 5 now"):
        choose(_config(f"run.directory={tmp_path / 'run'}", "run.seed=5"))


def test_a_finished_run_is_kept_and_carried_on_only_when_named(tmp_path: Path):
    run = tmp_path / "run"
    config = _config(f"run.directory={run}")
    paths = run_paths(config)
    make_private_directory(paths)
    record(Start(config), paths)
    (run / "summary.json").write_text(json.dumps({"steps": 120}))
    (run / "report.html").write_text("report")
    (run / "final_model").mkdir()
    assert choose(config).config.run.directory == f"{run}-2"
    with pytest.raises(ConfigError, match=r"finished after 120 of learner.steps 120.*--set learner.steps=N"):
        resume(run, [])
    start = resume(run, ["learner.steps=200"])
    assert start.reopens
    assert [change.setting for change in start.changes] == ["learner.steps"]
    keep_results(paths)
    assert sorted(path.name for path in run.iterdir() if "-1" in path.name) == [
        "final_model-1", "report-1.html", "summary-1.json",
    ]  # fmt: skip
    assert not (run / "summary.json").exists()
    assert not resume(run, ["learner.steps=200"]).reopens


def test_a_folder_without_a_run_can_not_be_carried_on(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"holds no config.toml: expected the directory of a run"):
        resume(tmp_path, [])


@pytest.mark.parametrize("command", [("view",), ("fleet", "status")], ids=lambda command: command[0])
def test_commands_that_look_at_a_run_say_where_there_is_none(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    name, *more = command
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "none"), *more])
    with pytest.raises(SystemExit):
        importlib.import_module(f"tools.{name}").main()
    expected = f"{tmp_path}/none holds no config.toml: expected the directory of a run, such as runs/demo"
    assert capsys.readouterr().err.strip() == f"error: {expected}"


# Copies.


def _identified(directory: Path, *overrides: str) -> Config:
    config = _config(f"run.directory={directory}", *overrides)
    directory.mkdir(exist_ok=True, parents=True)
    require_original(config, run_paths(config))
    return config


def _identity(directory: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / "identity.json").read_text())
    return found


@pytest.mark.parametrize("shared", ["store.weights={}", "store.blobs={}", "store.database=postgresql:///weir?schema=x"])
def test_a_copy_that_would_act_on_its_original_is_refused(tmp_path: Path, shared: str):
    shared = shared.format(tmp_path / "shared")
    _identified(tmp_path / "run", shared)
    _identified(tmp_path / "run", shared)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(
        ConfigError, match=rf"copy is a copy of {tmp_path}/run, and both would use {shared.split('=')[0]}"
    ):
        _identified(tmp_path / "copy", shared)
    shutil.rmtree(tmp_path / "run")
    _identified(tmp_path / "copy", shared)  # it was moved, after all
    assert _identity(tmp_path / "copy")["directory"] == str(tmp_path / "copy")


def test_a_copy_with_all_inside_is_a_run_of_its_own(tmp_path: Path):
    _identified(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    _identified(tmp_path / "copy")
    assert _identity(tmp_path / "copy")["id"] != _identity(tmp_path / "run")["id"]
    _identified(tmp_path / "copy", f"store.weights={tmp_path / 'shared'}")


# One start at a time.


def test_a_second_holder_is_told_who_the_first_is_until_it_ends(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    holds, ends = context.Event(), context.Event()
    path = tmp_path / "locks" / "processes" / "learner-0"
    first = context.Process(target=hold, args=(path, holds, ends))
    first.start()
    assert holds.wait(60)
    told = rf"it is in use by process {first.pid} on .*: stop it first"
    with pytest.raises(InUseError, match=told), sole(path, "it", hint="stop it first"):
        raise AssertionError
    with pytest.raises(InUseError, match=rf"learner-0 of an earlier start to end.*process {first.pid}.*stop it"):
        wait_until_free(path.parent, Waits(), limit_s=0.3)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join(30)
    wait_until_free(path.parent, Waits(), limit_s=10)
    with sole(path, "it", hint=""):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize(
    ("module", "lock", "said"),
    [
        ("tools.train", "train", "run directory {run} is in use by process {pid}"),
        ("tools.learner", "processes/learner-0", "learner-0 of {run} is in use by process {pid}"),
    ],
)
def test_a_second_start_on_a_run_directory_is_refused_at_once(tmp_path: Path, module: str, lock: str, said: str):
    run = tmp_path / "run"
    with sole(run / "locks" / lock, "it", hint=""):
        done = subprocess.run(
            [sys.executable, "-m", module, "--config", str(DEMO), "--set", f"run.directory={run}"],
            capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
        )  # fmt: skip
    assert done.returncode == os.EX_CONFIG, done.stdout + done.stderr
    assert said.format(run=run, pid=os.getpid()) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", ".hidden", "x" * 200])
def test_names_of_processes_are_plain(name: str, capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser()
    name_argument(parser, default="worker-0", help="")
    assert parser.parse_args(["--name=worker-7.b"]).name == "worker-7.b"
    with pytest.raises(SystemExit):
        parser.parse_args([f"--name={name}"])
    assert "expected letters, digits" in capsys.readouterr().err
