"""One watched run: bounded memory, odd files, and files that are only read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from serving_bridge.queue import TrajectoryQueue
from tests.support.trajectories import make_group
from tests.support.watched_runs import append, begun_run, held_out, long_run, step_event
from tests.support.written_runs import write_run
from tools.dashboard.answers import AnswerBook, Wanted
from tools.dashboard.errors import DashboardError
from tools.dashboard.run import WatchedRun
from tools.dashboard.watch import MAX_RUNS, Watch

FOR_EVER = float("inf")


def watched(directory: Path) -> WatchedRun:
    return WatchedRun(directory, 0, AnswerBook(), clock=lambda: 1200.0)


def read(run: WatchedRun) -> dict[str, Any]:
    run.read(FOR_EVER)
    return run.now()


@pytest.mark.parametrize("steps", [15_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_a_long_run_takes_bounded_memory_and_a_small_reply(tmp_path: Path, steps: int) -> None:
    run = watched(long_run(tmp_path / "run", steps))
    now = read(run)
    assert (now["step"], now["refused"]) == (steps, 0)
    history = run._history
    assert max(len(history.steps), len(history.intervals), len(history.rounds)) <= 2000
    told = run.curves({})
    assert all(len(table["rows"]) <= 1024 for table in told.values())
    steps = told["steps"]
    assert len(steps["rows"]) > 500
    assert len(json.dumps(told)) < 400_000
    rewards = [row[steps["columns"].index("reward")] for row in steps["rows"]]
    assert rewards == sorted(rewards)
    assert rewards[0] < 0.002 < 0.99 < rewards[-1]
    assert max(row[steps["columns"].index("staleness_max")] for row in steps["rows"]) == 2


def test_a_long_run_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.dashboard.run._PIECE_BYTES", 2**17)
    run = watched(long_run(tmp_path / "run", 4000))
    shares = []
    while True:
        run.read(0.0)
        shares.append(run.now()["read"])
        if not run.is_behind:
            break
    assert shares == sorted(shares)
    assert len(shares) > 2
    assert run.now()["step"] == 4000


def test_a_resumed_run_shows_its_newest_life(tmp_path: Path) -> None:
    directory = begun_run(tmp_path / "run")
    append(directory, *(step_event(number, 2000.0 + number, reward=0.1) for number in range(1, 6)))
    run = watched(directory)
    read(run)
    append(directory, step_event(3, 2010.0, reward=0.9))
    read(run)
    table = run.curves({})["steps"]
    assert [(row[0], row[table["columns"].index("reward")]) for row in table["rows"]] == [(1, 0.1), (2, 0.1), (3, 0.9)]


@pytest.mark.parametrize("how", ["shorter", "another"])
def test_a_run_that_was_begun_anew_in_its_directory_is_read_anew(tmp_path: Path, how: str) -> None:
    directory = write_run(tmp_path / "run")
    run = watched(directory)
    assert read(run)["life"] == 0
    assert len(run._book) > 0
    metrics = directory / "metrics.jsonl"
    if how == "another":
        metrics.rename(directory / "old.jsonl")
    else:
        metrics.write_text("")
    append(directory, step_event(1, 3000.0))
    now = read(run)
    assert (now["life"], now["step"], len(run._book)) == (1, 1, 0)


JUNK = [
    b"\xff\xfe\x00",
    b"[]",
    b'{"event": "step"}',
    b'{"event": "step", "t": 1}',
    b'{"event": "step", "t": 1e999, "step": 1}',
    b'{"event": "step", "t": 5, "step": 1e999}',
    b'{"event": "evaluation", "t": 5}',
    b'{"event": "replica", "t": 5}',
    b'{"event": "phase", "t": 5}',
    b'{"event": "heldout", "t": 5, "step": 3, "samples": 7}',
    b'{"event": "waits", "t": 5, "waits": [5, {"waited_s": "x"}]}',
    b'{"event": "round", "t": 5, "pause_s": {}}',
    b'{"event": "interval", "t": 5, "replicas": [], "tokens": "many"}',
    b'{"event": "engine", "t": 5, "platform": 3, "mesh": []}',
    b'{"event": "published", "t": 5, "version": null}',
    b'{"event": "step", "t": 6, "step": 1, "reward_parts": [1]}',
    b'{"event": "carried_on", "t": 6, "changes": 5}',
]


def test_events_of_nobodys_making_are_left_out_and_counted(tmp_path: Path) -> None:
    directory = begun_run(tmp_path / "run")
    (directory / "metrics.jsonl").write_bytes(b"\n".join(JUNK) + b"\n")
    append(directory, step_event(2, 7.0))
    run = watched(directory)
    now = read(run)
    assert now["step"] == 2
    assert now["refused"] >= 8
    json.dumps(now, allow_nan=False)
    json.dumps(run.curves({}), allow_nan=False)


def test_a_file_that_cannot_be_read_is_told_and_read_once_it_can(tmp_path: Path) -> None:
    directory = begun_run(tmp_path / "run")
    (directory / "metrics.jsonl").mkdir()
    run = watched(directory)
    assert read(run)["problem"] == "metrics.jsonl can't be read: Is a directory"
    (directory / "metrics.jsonl").rmdir()
    append(directory, step_event(1, 3000.0))
    assert (read(run)["problem"], run.now()["step"]) == ("", 1)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            DashboardError, match=r"is no run: expected a directory with config.toml, such as runs/demo"
        ):
            watched(place)
    (tmp_path / "config.toml").write_text("[run\n")
    with pytest.raises(ConfigError):
        watched(tmp_path)
    run = begun_run(tmp_path / "run")
    with pytest.raises(DashboardError, match="given twice"):
        Watch([run, run / ".." / "run"])
    with pytest.raises(DashboardError, match=f"expected at most {MAX_RUNS} at once"):
        Watch([run] * (MAX_RUNS + 1))


def contents(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_watching_changes_no_file_and_holds_no_lock(tmp_path: Path) -> None:
    """Also while the queue is in use: a writer that holds it goes on, and so does the watcher."""
    directory = write_run(tmp_path / "run", finished=False)
    queue = TrajectoryQueue(directory / "state.db")
    queue.producer.put([(0, make_group("run/0"))])
    queue.close()
    before = contents(directory)
    run = watched(directory)
    now = read(run)
    assert (now["queue"]["ready"], now["queue"]["problem"]) == (1, "")
    assert contents(directory) == before

    queue = TrajectoryQueue(directory / "state.db")
    held: list[dict[str, Any]] = []

    def work(session: Any) -> None:
        session.execute("UPDATE progress SET value = 7 WHERE key = 'completed_steps'")
        other = watched(directory)
        held.append(read(other)["queue"])

    queue.database.write(work)
    queue.close()
    assert held[0]["problem"] == ""
    assert held[0]["ready"] == 1


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_queue_that_cannot_be_read_is_told(tmp_path: Path, content: bytes) -> None:
    directory = write_run(tmp_path / "run")
    (directory / "state.db").write_bytes(content)
    assert "state.db can't be read now" in read(watched(directory))["queue"]["problem"]
    os.unlink(directory / "state.db")
    assert "state.db does not exist" in read(watched(directory))["queue"]["problem"]


def test_held_out_answers_to_one_prompt_stand_side_by_side_across_versions(tmp_path: Path) -> None:
    directory = begun_run(tmp_path / "run")
    for number in (20, 40, 60):
        append(directory, step_event(number, 2000.0 + number), held_out(number, 2000.5 + number, "2 + 2", "3 + 3"))
    run = watched(directory)
    read(run)
    found = run._book.found(Wanted(text="prompt 0"))["shown"]
    assert [(one["when"], one["versions"]) for one in found[0]["answers"]] == [
        ("step 20", [21, 21]), ("step 40", [41, 41]), ("step 60", [61, 61]),
    ]  # fmt: skip
