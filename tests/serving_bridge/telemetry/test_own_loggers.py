"""Loggers of a user's own: they get every event, and a bad one costs the run nothing but a line in the metrics log."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner_jax.runtime import DoorError
from serving_bridge.telemetry.metrics_log import MetricsLog, read_metrics
from serving_bridge.telemetry.own_loggers import LoggerThread, with_loggers
from tests.conftest import REPOSITORY


class Kept:
    """Keeps what it is given; fails on an event whose `fail` is true."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.is_closed = False

    def write(self, event: dict[str, Any]) -> None:
        if event.get("fail"):
            raise RuntimeError("on\x1b purpose")
        self.events.append(event)

    def close(self) -> None:
        self.is_closed = True


def started(log: MetricsLog, make: Callable[[], Any], **options: Any) -> LoggerThread:
    thread = LoggerThread("own", make, log.write_here, **options)
    log.hand_to(thread.put)
    return thread


def told(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "t"} for event in read_metrics(path) if event["event"] == "logger"]


def test_a_logger_gets_every_event_as_the_file_holds_it(tmp_path: Path) -> None:
    kept = Kept()
    with MetricsLog(tmp_path / "metrics.jsonl", "learner") as log:
        thread = started(log, lambda: kept)
        for step in range(100):
            log.write("step", step=step, loss=float("nan"))
        thread.close()
        assert kept.events == read_metrics(tmp_path / "metrics.jsonl")
    assert kept.events[3]["loss"] is None
    assert kept.is_closed
    assert told(tmp_path / "metrics.jsonl") == []


def test_one_that_fails_is_told_of_once_and_at_the_end(tmp_path: Path) -> None:
    kept = Kept()
    with MetricsLog(tmp_path / "metrics.jsonl", "learner") as log:
        thread = started(log, lambda: kept)
        for step in range(10):
            log.write("step", step=step, fail=step % 2)
        thread.close()
    assert [event["step"] for event in kept.events] == [0, 2, 4, 6, 8]
    common = {"process": "learner", "event": "logger", "logger": "own"}
    assert told(tmp_path / "metrics.jsonl") == [
        common | {"error": "RuntimeError: on\\x1b purpose"},
        common | {"written": 5, "failed": 5, "dropped": 0},
    ]


def test_one_that_cannot_be_made_is_told_of_once(tmp_path: Path) -> None:
    def fails() -> Any:
        raise OSError("no network")

    with MetricsLog(tmp_path / "metrics.jsonl", "learner") as log:
        thread = started(log, fails)
        for step in range(10):
            log.write("step", step=step)
        thread.close()
    first, last = told(tmp_path / "metrics.jsonl")
    assert first["error"] == "OSError: no network"
    assert (last["written"], last["failed"], last["dropped"]) == (0, 0, 10)


def test_one_that_hangs_holds_up_neither_events_nor_the_end(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Hangs:
        def write(self, event: dict[str, Any]) -> None:
            go_on.wait(60)

    with MetricsLog(tmp_path / "metrics.jsonl", "learner") as log:
        thread = started(log, Hangs, max_waiting=4)
        begun = time.monotonic()
        for step in range(50):
            log.write("step", step=step)
        thread.close(0.2)
        assert time.monotonic() - begun < 10
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 52
    first, last = told(tmp_path / "metrics.jsonl")
    assert first["error"] == "4 events wait for it; further ones are dropped meanwhile"
    assert (last["written"], last["failed"], last["dropped"]) == (0, 0, 50)
    go_on.set()
    thread._thread.join(10)
    assert not thread._thread.is_alive(), "it was closed while no further event had room"


CODE = """
import json

class Lines:
    def __init__(self, directory, process):
        self.file = open(directory / f"{process}.own", "a")

    def write(self, event):
        self.file.write(json.dumps(event) + "\\n")

    def close(self):
        self.file.close()

def takes_nothing(): pass
"""
PROGRAM = """
import sys
from pathlib import Path
from serving_bridge.telemetry import MetricsLog, with_loggers
folder = Path(sys.argv[1])
log = with_loggers(MetricsLog(folder / "metrics.jsonl", "learner"), ("lines:Lines",), folder, "learner")
for step in range(1000):
    log.write("step", step=step)
"""


def test_a_process_that_ends_hands_over_what_waits(tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text(CODE)
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True, timeout=120)
    assert (tmp_path / "learner.own").read_text().count("\n") == 1000
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1000


def test_a_name_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_lines.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with MetricsLog(tmp_path / "metrics.jsonl", "learner") as log:
        for name, message in (
            (
                "own_lines:takes_nothing",
                r"run.loggers 'own_lines:takes_nothing' takes \(\), expected \(directory, proc",
            ),
            ("own_lines:Line", "did you mean Lines"),
        ):
            with pytest.raises(DoorError, match=message):
                with_loggers(log, (name,), tmp_path, "learner")
