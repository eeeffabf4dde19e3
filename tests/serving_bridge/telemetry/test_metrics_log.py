"""The metrics file: shared by processes, never mixed up, readable after a crash."""

from __future__ import annotations

import errno
import fcntl
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.telemetry import metrics_log as telemetry
from serving_bridge.telemetry.metrics_log import MetricsLog, MetricsTail, configure_logging, read_metrics

_WRITER = """
import sys
from serving_bridge.telemetry.metrics_log import MetricsLog
with MetricsLog(sys.argv[1], sys.argv[2]) as log:
    for number in range(300):
        log.write("tick", number=number, padding="x" * (number * 7 % 900))
"""

#: At each tick of a clock that all see, opens the file anew and writes a line. Half a tick before, one of them tears
#: one, as a process that is killed in the middle of its write.
_SHORT_LIVES = """
import fcntl, os, sys, time
from serving_bridge.telemetry.metrics_log import MetricsLog
path, name, start, tears = sys.argv[1], sys.argv[2], float(sys.stdin.readline()), sys.argv[3] == "tears"
for number in range(300):
    if tears:
        while time.monotonic() < start + (number - 0.5) * 0.004: pass
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, b'{"event": "torn')
        os.close(descriptor)
    else:
        while time.monotonic() < start + number * 0.004: pass
        with MetricsLog(path, name) as log:
            log.write("tick", number=number, padding="x" * (number * 997 % 9000))
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


def test_processes_that_open_a_torn_file_at_once_end_its_line_once(tmp_path: Path):
    path, names = tmp_path / "metrics.jsonl", ("a", "b", "c")
    commands = [[sys.executable, "-c", _SHORT_LIVES, path, name, "writes"] for name in names]
    commands += [[sys.executable, "-c", _SHORT_LIVES, path, "d", "tears"]]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{time.monotonic() + 1.5}\n".encode())
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0] * len(processes)
    records = read_metrics(path)
    for name in names:
        assert [r["number"] for r in records if r["process"] == name] == list(range(300))
    lines = path.read_bytes().splitlines()
    assert lines.count(b"") == 0
    torn = sum(line.startswith(b'{"event": "torn') for line in lines)
    assert len(lines) == len(records) + torn
    assert torn


def test_a_stopped_process_that_holds_the_lock_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry, "_LOCK_TRIES", 3)
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as stopped, MetricsLog(path, "a") as log:
        log.write("one")
        fcntl.flock(stopped, fcntl.LOCK_EX)
        log.write("two")
        fcntl.flock(stopped, fcntl.LOCK_UN)
        log.write("three")
    assert [r["event"] for r in read_metrics(path)] == ["one", "two", "three"]


def test_a_lock_that_is_held_is_asked_for_again_after_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(telemetry, "_LOCK_TRIES", 3)
    monkeypatch.setattr(telemetry.time, "sleep", pauses.append)
    with (tmp_path / "metrics.jsonl").open("ab") as other, MetricsLog(tmp_path / "metrics.jsonl", "a") as log:
        fcntl.flock(other, fcntl.LOCK_EX)
        log.write("one")
        assert pauses == [0.0005] * 3
        fcntl.flock(other, fcntl.LOCK_UN)
        log.write("two")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was given back at once
    assert len(pauses) == 3


def test_lines_that_lie_across_two_pieces_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, "a") as log:
        for number in range(40):
            log.write("tick", number=number, padding="x" * (number % 23))
    longest = max(map(len, path.read_bytes().splitlines(keepends=True)))
    for piece in range(longest + 1, longest + 40):
        monkeypatch.setattr(telemetry, "_PIECE_BYTES", piece)
        tail = MetricsTail(path)
        assert [record["number"] for record in tail.read()] == list(range(40))
        assert tail.read() == []


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry, "_PIECE_BYTES", 64)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 200 + b"\n")
    with MetricsLog(path, "a") as log:
        log.write("one")
    assert [record["event"] for record in read_metrics(path)] == ["one"]


@pytest.mark.parametrize(
    "line",
    [b"[1]", b'{"event": 1}', b"{}", b'{"event": "x", "t": "1"}', b'{"event": "x", "t": true}',
     b'{"event": "x", "process": 1}', b'{"event": "x", "t": NaN}', b"\xff"],
)  # fmt: skip
def test_lines_of_nobody_are_left_out(tmp_path: Path, line: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b'\n{"event": "mine"}\n{"event": "whole", "t": 1, "process": "a"}\n')
    assert [record["event"] for record in read_metrics(path)] == ["mine", "whole"]


def test_threads_of_one_process_share_a_log(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, "a") as log, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: log.write("tick", number=number, padding="x" * 5000), range(400)))
    records = read_metrics(path)
    assert sorted(r["number"] for r in records) == list(range(400))
    assert len(path.read_bytes().splitlines()) == 400


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
    with MetricsLog("/dev/full", "a") as log, pytest.raises(OSError, match="No space left") as raised:
        log.write("one")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/dev/full")


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


def test_a_long_file_is_read_in_pieces_and_the_rest_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, "learner") as log:
        for step in range(100):
            log.write("step", step=step)
    tail = MetricsTail(path, piece_bytes=1000)
    first = next(iter(tail.pieces()))
    assert 5 < len(first) < 50
    assert 0 < tail.offset <= 1000
    assert [record["step"] for record in first + tail.read()] == list(range(100))
    assert tail.offset == path.stat().st_size
    assert list(tail.pieces()) == []
