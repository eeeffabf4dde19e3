"""What the events of a run add up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_bridge.telemetry.metrics_log import MetricsLog
from tests.support.written_runs import interval, step, write_events, write_run
from tools.reporting.figures import RunHistory, idle_shares, summarize
from tools.reporting.page import headline, write_summary


def test_the_summary_adds_up(tmp_path: Path):
    summary = write_summary(write_run(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    expected = {
        "accuracy_before": 0.25,
        "accuracy_after": 0.75,
        "reward_first": 0.3,  # mean of 0.1 to 0.5
        "reward_last": 0.8,
        "steps": 10,
        "wall_s": 115.0,
        "train_wall_s": 10.0,
        "staleness_mean": 1.5,
        "staleness_max": 2.0,
        "staleness_shares": [0.25, 0.5, 0.25],
        "mismatch_mean_abs_logprob": 1e-6 * 385 / 55,  # weighted by tokens: sum of n^2 over sum of n
        "tokens_per_s": 275.0,
        "learner_idle_share": 0.5,
        "rollout_idle_share": 0.25,
        "bottleneck": "rollout-bound",
        "weight_updates": 9,
        "weight_pause_max_s": 0.1,
        "inflight_survived": 30,
        "dropped_stale": 1,
    }
    for name, value in expected.items():
        assert summary[name] == (value if isinstance(value, str) else pytest.approx(value)), name


def test_steps_that_a_restart_trained_again_count_once():
    history = RunHistory()
    for number, reward in [(1, 0.1), (2, 0.2), (3, 0.9), (2, 0.3), (3, 0.4)]:
        history.add([{"t": 1.0, "process": "learner", "event": "step"} | step(number, reward=reward)])
    assert [(r["step"], r["reward"]) for r in history.steps.values()] == [(1, 0.1), (2, 0.3), (3, 0.4)]
    assert summarize(history)["reward_last"] == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    history.add([{"t": 2.0, "process": "learner", "event": "step"} | step(2, reward=0.5)])
    assert list(history.steps) == [1, 2]  # step 3 of the former life is void until it is trained again


@pytest.mark.parametrize(
    ("wait_s", "idle_s", "verdict"),
    [(0.8, 0.1, "rollout-bound"), (0.1, 0.8, "train-bound"), (0.3, 0.31, "balanced")],
)
def test_the_side_that_waits_is_not_the_bottleneck(wait_s: float, idle_s: float, verdict: str):
    shares = idle_shares([{"wait_s": wait_s, "step_s": 1.0}], [{"idle_s": idle_s, "seconds": 1.0}])
    assert shares.bottleneck == verdict


def test_the_wall_time_is_that_of_all_sittings(tmp_path: Path):
    begin = ("phase", {"name": "starting"})
    history = write_events(
        tmp_path, (100.0, *begin), (160.0, "step", step(1)), (5000.0, *begin), (5030.0, "step", step(2))
    )
    assert (history.wall_s(), history.sittings) == (90.0, 2)
    assert history.wall_s(now=5040.0) == 100.0
    summary = write_summary(tmp_path)
    assert (summary["wall_s"], summary["sittings"]) == (90.0, 2)
    assert "1 min 30 s in 2 sittings" in headline(summary, tmp_path)


def test_processes_that_were_started_by_hand_have_sittings_too(tmp_path: Path):
    history = write_events(tmp_path, (100.0, "step", step(1)), (90_000.0, "engine", {}), (90_020.0, "step", step(2)))
    assert (history.wall_s(), history.sittings) == (20.0, 2)


@pytest.mark.parametrize(
    ("events", "phase", "is_over"),
    [
        ([], "starting", False),
        ([("warm_start", {"step": 1, "loss": 1.0})], "supervised start", False),
        ([("step", step(1))], "training", False),
        ([("step", step(1)), ("ended", {"reason": "finished", "step": 1})], "finished", True),
        ([("step", step(1)), ("ended", {"reason": "stopped", "step": 1})], "ended (stopped)", True),
        ([("ended", {"reason": "stopped", "step": 1}), ("step", step(2))], "training", False),
        ([("step", step(1)), ("phase", {"name": "evaluating"})], "evaluating", False),
        ([("step", step(1)), ("phase", {"name": "finished"})], "finished", True),
        ([("step", step(1)), ("phase", {"name": "stopped"})], "stopped", True),
        ([("phase", {"name": "finished"}), ("step", step(2))], "training", False),
        ([("phase", {"name": "stopped"}), ("step", step(2))], "training", False),
        ([("phase", {"name": "training"}), ("hold", {"held": True, "reason": "worse"})], "held", False),
        ([("step", step(1)), ("hold", {"held": True}), ("hold", {"held": False, "seconds": 9.0})], "training", False),
        ([("step", step(1)), ("hold", {"held": True}), ("step", step(2))], "training", False),
        ([("hold", {"held": True}), ("ended", {"reason": "stopped"})], "ended (stopped)", True),
    ],
)
def test_the_phase_is_known_with_and_without_train(
    tmp_path: Path, events: list[tuple[str, dict[str, object]]], phase: str, is_over: bool
):
    history = write_events(tmp_path, *((float(t), *event) for t, event in enumerate(events, 1)))
    assert (history.phase, history.is_over) == (phase, is_over)


def test_the_summary_adds_up_verdicts_and_skipped_prompts_of_all_workers(tmp_path: Path):
    directory = write_run(tmp_path)
    log = MetricsLog(directory / "metrics.jsonl", "rollout-2", clock=lambda: 1105.0)
    for _ in range(2):
        log.write("interval", **interval(tokens=1, idle_s=0.1, mixed=0), verdicts=40, failed_verdicts=3,
                  unjudged_groups=1, skipped_prompts=5, failed_groups=0)  # fmt: skip
    log.close()
    summary = write_summary(directory)
    assert (summary["verdicts"], summary["failed_verdicts"], summary["unjudged_groups"]) == (80, 6, 2)
    assert summary["skipped_prompts"] == 10
