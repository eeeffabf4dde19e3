"""The live view of a run, as a picture and as lines."""

from __future__ import annotations

from pathlib import Path

from configs.load import load_config
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.support.written_runs import history_of, render, write_run
from tools.reporting.picture import sparkline
from tools.reporting.plain import plain_line
from tools.reporting.shown import clock


def test_the_picture_says_what_the_run_does(tmp_path: Path):
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    shown = render(tmp_path, records, terminal=True)
    for part in ("training", "step 10 of 20", "0.800", "0.1000 of 0.5", "1.50 mean, 2 max (bound 2)", "275 tokens/s",
                 "9, pause 57 ms mean, 100 max", "30 answers spanned an update", "50% idle", "rollout-bound",
                 "0.8 of 2 cores for the learner and 1.2 for sampling", "0: 25%, 1: 50%, 2: 25%",
                 "learner waits for 3 of 64 groups of step 11 from rollout", "1 healthy",
                 "golden log-probs differ", "0:10 left"):  # fmt: skip
        assert part in shown, part
    assert max(len(line) for line in shown.splitlines() if "\x1b" not in line) <= 100


def test_lines_stand_in_for_the_picture_without_a_terminal(tmp_path: Path):
    write_run(tmp_path)
    shown = render(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), terminal=False)
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert "== held-out accuracy before: 25.0% of 200" in lines
    assert "step 10/20  reward 0.800  held-out 25% → 75%" in lines[-1]
    assert "rollout-bound (idle: learner 50%, rollout 25%)" in lines[-1]


def test_a_run_that_has_only_begun_can_be_shown(tmp_path: Path):
    write_run(tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    for count in range(1, len(records) + 1):
        assert "by-hand" in render(tmp_path, records[:count], terminal=True, width=70)
        assert plain_line(history_of(tmp_path), load_config(tmp_path / "config.toml"))


def test_sparklines_and_clocks():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 16) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([3, 3], 4) == "▁▁"
    assert (clock(59.9), clock(61), clock(3661)) == ("0:59", "1:01", "1:01:01")


def test_replicas_of_a_killed_fleet_are_silent(tmp_path: Path):
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    now = records[-1]["t"]
    ReplicaRegistry(tmp_path / "weights" / "replicas", clock=lambda: now - 5).report(
        "r0", url="http://127.0.0.1:1", state="healthy", version=1, step=1
    )
    assert "1 healthy" in render(tmp_path, records, terminal=True)
    ReplicaRegistry(tmp_path / "weights" / "replicas", clock=lambda: now - 500).report(
        "r0", url="http://127.0.0.1:1", state="healthy", version=1, step=1
    )
    shown = render(tmp_path, records, terminal=True)
    assert "1 silent" in shown
    assert "healthy" not in shown


def test_a_run_whose_training_is_held_says_so_until_it_goes_on(tmp_path: Path):
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    records.append({"t": 1111.0, "process": "learner", "event": "hold", "held": True, "step": 9, "reason": "worse\x1b"})
    assert "  held  step" in render(tmp_path, records, terminal=False)
    shown = render(tmp_path, records, terminal=True, width=200)
    assert "training is held: worse\\x1b" in shown
    records.append({"t": 1120.0, "process": "learner", "event": "hold", "held": False, "step": 9, "seconds": 9.0})
    assert "held  step" not in render(tmp_path, records, terminal=False)
    assert "training is held" not in render(tmp_path, records, terminal=True, width=200)


def test_what_a_model_wrote_cannot_steer_the_terminal(tmp_path: Path):
    hostile = "\x1b]0;owned\x07\x9b2J\u202egnp\ud800"
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    records.append({"t": 1111.0, "process": hostile, "event": "retry", "error": hostile})
    records.append({"t": 1111.0, "process": "train", "event": "phase", "name": hostile})
    records.append({"t": 1111.0, "process": hostile, "event": "waits",
                    "waits": [{"what": hostile, "on": hostile, "waited_s": 1.0, "limit_s": 9.0}]})  # fmt: skip
    plain = render(tmp_path, records, terminal=False)
    assert "\\x1b]0;owned\\x07\\x9b2J\\u202egnp\\ud800" in plain
    for shown in (plain, render(tmp_path, records, terminal=True, width=200)):
        for control in "\x07\x9b\u202e\ud800":
            assert control not in shown
        assert "\x1b]" not in shown
