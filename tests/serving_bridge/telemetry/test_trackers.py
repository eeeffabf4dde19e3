"""Loggers that come with Weir write what can be read back with the tracker's own reader."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from learner_jax.runtime import DoorError
from serving_bridge.telemetry import LOGGER_DOOR, require_packages
from serving_bridge.telemetry.trackers import PACKAGES, TRACKERS, Steps, numbers

EVENTS = [
    {"t": 1.0, "process": "learner", "event": "engine", "platform": "cpu", "mesh": {}},
    {"t": 2.0, "process": "learner", "event": "step", "step": 1, "reward": 0.25, "reward_parts": {"a b": 1.0}},
    {"t": 3.0, "process": "learner", "event": "step", "step": 2, "reward": None, "kl": 0.5},
    {"t": 4.0, "process": "learner", "event": "interval", "tokens": 7},
    {"t": 5.0, "process": "learner", "event": "interval", "tokens": 9},
]
#: In a process of its own: trackers start threads and set handlers.
WRITES = """
import json, sys
from pathlib import Path
from serving_bridge.telemetry import LOGGER_DOOR
name, folder, events = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
logger = LOGGER_DOOR.open(name)(folder, "learner")
for event in events:
    logger.write(event)
logger.close()
"""


def written(name: str, folder: Path, **environment: str) -> None:
    module, package = PACKAGES[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WRITES, name, str(folder), json.dumps(EVENTS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_numbers_are_named_by_event_and_field_and_texts_left_out() -> None:
    assert numbers(EVENTS[1]) == {"step/reward": 0.25, "step/reward_parts/a_b": 1.0}
    assert numbers({"event": "evaluation", "which": "after", "accuracy": 0.5, "notes": ["x"], "ok": True}) == {
        "evaluation/after/accuracy": 0.5
    }
    assert numbers({"event": "step", "x" * 300: 1}) == {("step/" + "x" * 300)[:200]: 1.0}
    steps = Steps()
    assert [steps.of(event) for event in EVENTS] == [0, 1, 2, 0, 1]


def test_tensorboard_shows_what_was_written(tmp_path: Path) -> None:
    written("tensorboard", tmp_path / "run")
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    (path,) = (tmp_path / "run" / "tensorboard" / "learner").iterdir()
    content, found = path.read_bytes(), []
    while content:  # a record is its length, its checksum, itself, and its checksum
        size = int.from_bytes(content[:8], "little")
        event = events.Event.FromString(content[12 : 12 + size])
        found += [(value.tag, event.step, value.simple_value, event.wall_time) for value in event.summary.value]
        content = content[16 + size :]
    assert found == [
        ("step/reward", 1, 0.25, 2.0),
        ("step/reward_parts/a_b", 1, 1.0, 2.0),
        ("step/kl", 2, 0.5, 3.0),
        ("interval/tokens", 0, 7.0, 4.0),
        ("interval/tokens", 1, 9.0, 5.0),
    ]


@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_mlflow_shows_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    written("mlflow", tmp_path / "run")
    tracking = importlib.import_module("mlflow.tracking")
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "run" / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("run")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("learner", "FINISHED")
    assert run.data.metrics == {
        "step/reward": 0.25,
        "step/reward_parts/a_b": 1.0,
        "step/kl": 0.5,
        "interval/tokens": 9.0,
    }
    history = client.get_metric_history(run.info.run_id, "interval/tokens")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(0, 7.0, 4000), (1, 9.0, 5000)]


def logged(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after a header of seven bytes, in blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if place % 2**15 > 2**15 - 7:  # what is left of a block holds no record's head
            place += -place % 2**15
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last piece
            yield record
            record = b""


def test_wandb_offline_keeps_what_was_written(tmp_path: Path) -> None:
    written("wandb", tmp_path / "run", WANDB_MODE="offline")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for content in logged(path.read_bytes()):
        rows = {item.key or item.nested_key[0]: item.value_json for item in pb.Record.FromString(content).history.item}
        found.append({key: json.loads(value) for key, value in rows.items() if not key.startswith("_")})
    assert [row for row in found if row] == [
        {"step/reward": 0.25, "step/reward_parts/a_b": 1.0, "step/step": 1},
        {"step/kl": 0.5, "step/step": 2},
        {"interval/tokens": 7.0, "interval/step": 0},
        {"interval/tokens": 9.0, "interval/step": 1},
    ]


READS_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
rows = SQLiteStorage.get_logs("run", "learner")
print("\\nFOUND", json.dumps([{k: v for k, v in row.items() if k not in ("timestamp", "log_id")} for row in rows]))
"""


def test_trackio_shows_what_was_written(tmp_path: Path) -> None:
    where = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    written("trackio", tmp_path / "run", **where)
    read = [sys.executable, "-c", READS_TRACKIO]
    done = subprocess.run(read, env=os.environ | where, capture_output=True, text=True, timeout=240, check=True)
    rows = json.loads(done.stdout.partition("\nFOUND")[2])
    assert sorted(rows, key=str) == sorted(
        [
            {"step/reward": 0.25, "step/reward_parts/a_b": 1.0, "step": 1},
            {"step/kl": 0.5, "step": 2},
            {"interval/tokens": 7.0, "step": 0},
            {"interval/tokens": 9.0, "step": 1},
        ],
        key=str,
    )


def test_a_package_that_is_not_there_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, (_, package) in PACKAGES.items():
        with pytest.raises(DoorError, match=rf"run.loggers '{name}' needs .* not there: pip install {package}$"):
            require_packages(["own.module:Csv", name])
    require_packages(["own.module:Csv"])


def test_every_tracker_can_be_opened_without_its_package() -> None:
    assert LOGGER_DOOR.names() == sorted(TRACKERS)
    for name in TRACKERS:
        assert callable(LOGGER_DOOR.open(name))
