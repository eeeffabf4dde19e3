"""The metrics file: shared by processes, never mixed up, readable after a crash."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.telemetry import MetricsLog, MetricsTail, configure_logging, read_metrics

_WRITER = """
import sys
from serving_bridge.telemetry import MetricsLog
with MetricsLog(sys.argv[1], sys.argv[2]) as log:
    for number in range(300):
        log.write("tick", number=number, padding="x" * (number * 7 % 900))
"""


def test_numbers_of_numpy_and_those_not_finite_become_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, "learner", clock=lambda: 12.34567) as log:
        log.write("step", loss=np.float32("nan"), kl=float("inf"), step=np.int64(3), parts={"a": np.float32(0.5)},
                  pair=(1, np.array([2.0, np.nan])), missing=None, ok=np.bool_(True))  # fmt: skip
    assert read_metrics(path) == [
        {"t": 12.346, "process": "learner", "event": "step", "loss": None, "kl": None, "step": 3, "parts": {"a": 0.5},
         "pair": [1, [2.0, None]], "missing": None, "ok": True}
    ]  # fmt: skip


def test_a_field_without_a_json_form_is_refused(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl", "learner") as log, pytest.raises(TypeError):
        log.write("step", loss=object())
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_lines_of_several_processes_never_mix(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, path, f"writer-{n}"]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    records = read_metrics(path)
    assert len(path.read_bytes().splitlines()) == len(records) == 900
    for name in ("writer-0", "writer-1", "writer-2"):
        assert [r["number"] for r in records if r["process"] == name] == list(range(300))


def test_a_torn_line_costs_only_itself(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"t": 1, "process": "a", "event": "one"}\n{"t": 2, "process": "a", "ev')
    assert [r["event"] for r in read_metrics(path)] == ["one"]
    with MetricsLog(path, "b") as log:
        log.write("two")
    assert [r["event"] for r in read_metrics(path)] == ["one", "two"]


def test_the_tail_gives_each_line_once_and_waits_for_whole_ones(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    with MetricsLog(path, "a") as log:
        log.write("one")
        assert [r["event"] for r in tail.read()] == ["one"]
        log.write("two")
        with path.open("ab") as file:
            file.write(b'{"t": 3, "process": "a", ')
        assert [r["event"] for r in tail.read()] == ["two"]
        with path.open("ab") as file:
            file.write(b'"event": "three"}\n')
        assert [r["event"] for r in tail.read()] == ["three"]
    assert tail.read() == []


def test_a_full_disk_is_an_error(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with MetricsLog("/dev/full", "a") as log, pytest.raises(OSError, match="No space left"):
        log.write("one")


def test_the_log_names_its_process(tmp_path: Path):
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        configure_logging("rollout", tmp_path / "rollout.log")
        logging.getLogger("weir").info("hello %s", "there")
        assert "INFO    rollout weir: hello there" in (tmp_path / "rollout.log").read_text()
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], root.level = handlers, level
