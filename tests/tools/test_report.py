"""Figures, report and live view of a run whose events were written by hand, so that every number is known."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from configs.load import load_config
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.telemetry.metrics_log import MetricsLog, Record, read_metrics
from tools.reporting.figures import RunHistory, idle_shares, summarize
from tools.reporting.live_view import LiveView
from tools.reporting.page import ReportError, headline, pair_samples, write_report, write_summary
from tools.reporting.picture import sparkline
from tools.reporting.plain import plain_line
from tools.reporting.shown import clock

CONFIG = """
[run]
name = "by-hand"
[model]
path = "some/model"
[task]
provider = "reasoning_gym"
name = "basic_arithmetic"
[learner]
steps = 20
groups_per_step = 4
sequence_length = 24
microbatch_rows = 8
loss = { kl = { coefficient = 0.01, budget = 0.5 } }
[rollout]
group_size = 8
max_prompt_tokens = 16
max_tokens = 8
[serving]
max_model_len = 64
"""

_SCRIPT = "<script>alert(1)</script>"


def _step(number: int, *, wait_s: float = 0.5, reward: float | None = None) -> dict[str, object]:
    return dict(
        step=number, version=number + 1, loss=0.0, reward=number / 10 if reward is None else reward, kl=0.01 * number,
        entropy=1.0, clip_fraction=0.02, grad_norm=1.0, staleness_mean=1.5, staleness_max=2,
        staleness_tokens=[100, 200, 100],
        mismatch_mean_abs_logprob=1e-6 * number, mismatch_max_abs_logprob=1e-5, mismatch_tokens=100 * number,
        num_tokens=400, answer_tokens_mean=3.0, wait_s=wait_s, prepare_s=0.05, transfer_s=0.05,
        compute_s=0.3, train_s=0.4, publish_s=0.1, save_s=0.0, step_s=1.0, mfu=0.21, real_token_share=0.97,
        dropped_stale=1 if number == 2 else 0, zero_variance_groups=0,
    )  # fmt: skip


def _interval(*, tokens: int, idle_s: float, mixed: int) -> dict[str, object]:
    return dict(groups=4, tokens=tokens, seconds=1.0, idle_s=idle_s, running=7, retries=0, mixed_version_answers=mixed,
                served_version=1)  # fmt: skip


def write_run(directory: Path, *, finished: bool = True) -> Path:
    """A run of ten one-second steps that starts at t = 1000."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(CONFIG)
    now = [1000.0]
    metrics = directory / "metrics.jsonl"
    train, learner, rollout, fleet = (
        MetricsLog(metrics, name, clock=lambda: now[0]) for name in ("train", "learner", "rollout", "serve")
    )
    samples = [{"prompt": f"2 + 2 = {_SCRIPT}", "answer": "5", "expected": "4", "score": 0.0}]
    train.write("phase", name="starting")
    # Neither the first weights nor the worker's wait for them belong to training.
    fleet.write("round", replica="r0", version=1, step=0, outcome="updated", stage_s=0.1, pause_s=9.0,
                running_at_pause=0, probe_max_abs=0.0, error=None)  # fmt: skip
    rollout.write("interval", **_interval(tokens=0, idle_s=1.0, mixed=0))
    train.write("evaluation", which="before", accuracy=0.25, mean_score=0.25, num_problems=200, samples=samples)
    now[0] = 1100.0
    train.write("phase", name="training")
    learner.write(
        "waits", waits=[{"what": "3 of 64 groups of step 11", "on": "rollout", "waited_s": 2.0, "limit_s": 600.0}]
    )
    fleet.write("waits", waits=[{"what": "an answer", "on": "r0", "waited_s": 1.0, "limit_s": 5.0}])
    fleet.write("waits", waits=[])
    fleet.write("replica", replica="r0", state="stale", version=-1, reason="")
    fleet.write("replica", replica="r0", state="healthy", version=1, reason="")
    fleet.write("replica", replica="r1", state="gone", version=-1, reason="")
    learner.write("engine", platform="cpu", mesh={"data": 1, "model": 1})
    for number in range(1, 11):
        now[0] += 1
        rollout.write("interval", **_interval(tokens=50 * number, idle_s=0.25, mixed=3))
        learner.write("step", **_step(number))
        outcome = "rejected" if number == 4 else "updated"
        fleet.write("round", replica="r0", version=number + 1, step=number, outcome=outcome, stage_s=0.1,
                    pause_s=None if number == 4 else 0.01 * number, running_at_pause=7, probe_max_abs=0.0,
                    error="golden log-probs differ" if number == 4 else None)  # fmt: skip
    if finished:
        after = [samples[0] | {"answer": f"4 {_SCRIPT}", "score": 1.0}]
        now[0] += 5
        train.write("evaluation", which="after", accuracy=0.75, mean_score=0.75, num_problems=200, samples=after)
        train.write("phase", name="finished")
    for log in (train, learner, rollout, fleet):
        log.close()
    return directory


def _history(directory: Path) -> RunHistory:
    history = RunHistory()
    history.add(read_metrics(directory / "metrics.jsonl"))
    return history


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


def test_the_headline_says_what_was_gained(tmp_path: Path):
    line = headline(write_summary(write_run(tmp_path)), "runs/x")
    assert line == (
        "held-out accuracy 25.0% → 75.0% (+50.0 points) after 10 steps and 1 min 55 s; report: runs/x/report.html"
    )


def test_steps_that_a_restart_trained_again_count_once():
    history = RunHistory()
    for number, reward in [(1, 0.1), (2, 0.2), (3, 0.9), (2, 0.3), (3, 0.4)]:
        history.add([{"t": 1.0, "process": "learner", "event": "step"} | _step(number, reward=reward)])
    assert [(r["step"], r["reward"]) for r in history.steps.values()] == [(1, 0.1), (2, 0.3), (3, 0.4)]
    assert summarize(history)["reward_last"] == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    history.add([{"t": 2.0, "process": "learner", "event": "step"} | _step(2, reward=0.5)])
    assert list(history.steps) == [1, 2]  # step 3 of the former life is void until it is trained again


@pytest.mark.parametrize(
    ("wait_s", "idle_s", "verdict"),
    [(0.8, 0.1, "rollout-bound"), (0.1, 0.8, "train-bound"), (0.3, 0.31, "balanced")],
)
def test_the_side_that_waits_is_not_the_bottleneck(wait_s: float, idle_s: float, verdict: str):
    shares = idle_shares([{"wait_s": wait_s, "step_s": 1.0}], [{"idle_s": idle_s, "seconds": 1.0}])
    assert shares.bottleneck == verdict


def test_a_run_that_measured_nothing_has_a_summary_of_nulls(tmp_path: Path):
    with MetricsLog(tmp_path / "metrics.jsonl", "train") as log:
        log.write("phase", name="starting")
    summary = write_summary(tmp_path)
    assert summary["steps"] == 0
    assert summary["reward_first"] is None
    assert summary["learner_idle_share"] is None
    (tmp_path / "config.toml").write_text(CONFIG)
    assert "n/a" in write_report(tmp_path).read_text()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ReportError, match="holds no metrics.jsonl"):
        write_summary(tmp_path)


class _Page(HTMLParser):
    """What a browser would load and what it would run."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v and v[0] != "#"]
        if dict(attrs).get("role") == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_one_page_that_loads_and_runs_nothing(tmp_path: Path):
    write_summary(write_run(tmp_path))
    html = write_report(tmp_path).read_text()
    page = _Page()
    page.feed(html)
    assert page.loaded == []
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    text = " ".join("".join(page.text).split())
    for shown in ("25.0% → 75.0%", "+50.0 points on 200 problems", "Rollout-bound", "50% idle", "25% idle",
                      "0.8 of 2 cores for the learner and 1.2 for sampling", "up to 1.60x as fast",
                  f"2 + 2 = {_SCRIPT}", f"4 {_SCRIPT}", "golden log-probs differ", 'name = "by-hand"'):  # fmt: skip
        assert shown in text, shown
    svgs = page.tags.count("svg")
    assert svgs == 9  # every chart but that of the supervised start, which this run has not
    described = [picture["aria-label"] or "" for picture in page.pictures]
    assert len(described) == svgs + 2  # and the two bars of who waits for whom
    assert "Reward from 0.1 to 1, lowest 0.1, highest 1." in described


def test_the_same_run_gives_the_same_page(tmp_path: Path):
    write_summary(write_run(tmp_path))
    assert write_report(tmp_path).read_text() == write_report(tmp_path).read_text()


def test_samples_are_paired_by_prompt():
    before = {"samples": [{"prompt": "a", "answer": "1", "expected": "9", "score": 0.0}]}
    after = {"samples": [{"prompt": "b", "answer": "2", "expected": "", "score": 1.0},
                         {"prompt": "a", "answer": "9", "expected": "9", "score": 1.0}]}  # fmt: skip
    pairs = pair_samples(before, after)
    assert [(p.prompt, p.before and p.before["answer"], p.after and p.after["answer"]) for p in pairs] == [
        ("a", "1", "9"),
        ("b", None, "2"),
    ]


def test_the_command_keeps_the_wall_time_of_the_run(tmp_path: Path):
    write_summary(write_run(tmp_path))
    done = subprocess.run([sys.executable, "-m", "tools.report", tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "report.html")), done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["wall_s"] == 115.0


def _render(directory: Path, records: list[Record], *, terminal: bool, width: int = 100) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=width, height=40, color_system=None)
    config = load_config(directory / "config.toml")
    with LiveView(config, directory, console=console, clock=lambda: records[-1]["t"]) as view:
        view.update(records)
    return output.getvalue()


def test_the_picture_says_what_the_run_does(tmp_path: Path):
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    shown = _render(tmp_path, records, terminal=True)
    for part in ("training", "step 10 of 20", "0.800", "0.1000 of 0.5", "1.50 mean, 2 max (bound 2)", "275 tokens/s",
                 "9, pause 57 ms mean, 100 max", "30 answers spanned an update", "50% idle", "rollout-bound",
                 "0.8 of 2 cores for the learner and 1.2 for sampling", "0: 25%, 1: 50%, 2: 25%",
                 "learner waits for 3 of 64 groups of step 11 from rollout", "1 healthy",
                 "golden log-probs differ", "0:10 left"):  # fmt: skip
        assert part in shown, part
    assert max(len(line) for line in shown.splitlines() if "\x1b" not in line) <= 100


def test_lines_stand_in_for_the_picture_without_a_terminal(tmp_path: Path):
    write_run(tmp_path)
    shown = _render(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), terminal=False)
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert "== held-out accuracy before: 25.0% of 200" in lines
    assert "step 10/20  reward 0.800  held-out 25% → 75%" in lines[-1]
    assert "rollout-bound (idle: learner 50%, rollout 25%)" in lines[-1]


def test_a_run_that_has_only_begun_can_be_shown(tmp_path: Path):
    write_run(tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    for count in range(1, len(records) + 1):
        assert "by-hand" in _render(tmp_path, records[:count], terminal=True, width=70)
        assert plain_line(_history(tmp_path), load_config(tmp_path / "config.toml"))


def test_sparklines_and_clocks():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 16) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([3, 3], 4) == "▁▁"
    assert (clock(59.9), clock(61), clock(3661)) == ("0:59", "1:01", "1:01:01")


def _write(directory: Path, *events: tuple[float, str, dict[str, object]]) -> RunHistory:
    """A run of these (time, event, fields), all of the learner's."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(CONFIG)
    now = [0.0]
    with MetricsLog(directory / "metrics.jsonl", "learner", clock=lambda: now[0]) as log:
        for now[0], event, fields in events:
            log.write(event, **fields)
    return _history(directory)


def _measured(accuracy: float, mean_score: float) -> dict[str, object]:
    return dict(accuracy=accuracy, mean_score=mean_score, num_problems=40, samples=[])


def test_the_wall_time_is_that_of_all_sittings(tmp_path: Path):
    begin = ("phase", {"name": "starting"})
    history = _write(tmp_path, (100.0, *begin), (160.0, "step", _step(1)), (5000.0, *begin), (5030.0, "step", _step(2)))
    assert (history.wall_s(), history.sittings) == (90.0, 2)
    assert history.wall_s(now=5040.0) == 100.0
    summary = write_summary(tmp_path)
    assert (summary["wall_s"], summary["sittings"]) == (90.0, 2)
    assert "1 min 30 s in 2 sittings" in headline(summary, tmp_path)


def test_processes_that_were_started_by_hand_have_sittings_too(tmp_path: Path):
    history = _write(tmp_path, (100.0, "step", _step(1)), (90_000.0, "engine", {}), (90_020.0, "step", _step(2)))
    assert (history.wall_s(), history.sittings) == (20.0, 2)


@pytest.mark.parametrize(
    ("events", "phase", "is_over"),
    [
        ([], "starting", False),
        ([("warm_start", {"step": 1, "loss": 1.0})], "supervised start", False),
        ([("step", _step(1))], "training", False),
        ([("step", _step(1)), ("ended", {"reason": "finished", "step": 1})], "finished", True),
        ([("step", _step(1)), ("ended", {"reason": "stopped", "step": 1})], "ended (stopped)", True),
        ([("ended", {"reason": "stopped", "step": 1}), ("step", _step(2))], "training", False),
        ([("step", _step(1)), ("phase", {"name": "evaluating"})], "evaluating", False),
        ([("step", _step(1)), ("phase", {"name": "finished"})], "finished", True),
        ([("phase", {"name": "finished"}), ("step", _step(2))], "training", False),
    ],
)
def test_the_phase_is_known_with_and_without_train(
    tmp_path: Path, events: list[tuple[str, dict[str, object]]], phase: str, is_over: bool
):
    history = _write(tmp_path, *((float(t), *event) for t, event in enumerate(events, 1)))
    assert (history.phase, history.is_over) == (phase, is_over)


def test_graded_answers_are_told_by_their_mean_score(tmp_path: Path):
    _write(
        tmp_path,
        (1.0, "evaluation", {"which": "before", **_measured(0.0, 0.161)}),
        (2.0, "step", _step(1)),
        (3.0, "evaluation", {"which": "after", **_measured(0.0, 0.764)}),
    )
    summary = write_summary(tmp_path)
    assert headline(summary, tmp_path).startswith("held-out mean score 0.161 → 0.764 after 1 steps")
    page = write_report(tmp_path).read_text()
    assert "0.161 → 0.764" in page
    assert "Held-out mean score from 0.161 to 0.764" in page
    shown = _render(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), terminal=False)
    assert "== held-out accuracy before: 0.0% of 40, mean score 0.161" in shown
    assert "held-out 0.161 → 0.764" in shown


def test_a_little_credit_for_wrong_answers_leaves_accuracy_in_front(tmp_path: Path):
    _write(
        tmp_path,
        (1.0, "evaluation", {"which": "before", **_measured(0.285, 0.323)}),
        (2.0, "step", _step(1)),
        (3.0, "evaluation", {"which": "after", **_measured(0.812, 0.83)}),
    )
    assert headline(write_summary(tmp_path), tmp_path).startswith("held-out accuracy 28.5% → 81.2% (+52.7 points)")


def test_what_was_not_learned_from_is_shown(tmp_path: Path):
    write_run(tmp_path, finished=False)
    with MetricsLog(tmp_path / "metrics.jsonl", "rollout") as log:
        for _ in range(2):
            lost = dict(skipped_prompts=6, verdicts=50, failed_verdicts=2, unjudged_groups=1)
            log.write("interval", **_interval(tokens=0, idle_s=0.0, mixed=0), **lost)
    summary = write_summary(tmp_path)
    assert [summary[key] for key in ("skipped_prompts", "verdicts", "failed_verdicts", "unjudged_groups")] == [
        12, 100, 4, 2,
    ]  # fmt: skip
    records = read_metrics(tmp_path / "metrics.jsonl")
    for shown in (
        _render(tmp_path, records, terminal=True, width=220),
        _render(tmp_path, records, terminal=False),
        write_report(tmp_path).read_text(),
    ):
        text = " ".join(shown.split())
        assert "12 prompts too long" in text
        assert "4 of 100 verdicts failed" in text
        assert "2 groups without enough verdicts" in text
    clean = write_run(tmp_path / "clean")
    assert "prompts too long" not in _render(clean, read_metrics(clean / "metrics.jsonl"), terminal=False)


def test_replicas_of_a_killed_fleet_are_silent(tmp_path: Path):
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    now = records[-1]["t"]
    ReplicaRegistry(tmp_path / "weights" / "replicas", clock=lambda: now - 5).report(
        "r0", url="http://127.0.0.1:1", state="healthy", version=1, step=1
    )
    assert "1 healthy" in _render(tmp_path, records, terminal=True)
    ReplicaRegistry(tmp_path / "weights" / "replicas", clock=lambda: now - 500).report(
        "r0", url="http://127.0.0.1:1", state="healthy", version=1, step=1
    )
    shown = _render(tmp_path, records, terminal=True)
    assert "1 silent" in shown
    assert "healthy" not in shown


def test_what_a_model_wrote_cannot_steer_the_terminal(tmp_path: Path):
    hostile = "\x1b]0;owned\x07\x9b2J\u202egnp\ud800"
    write_run(tmp_path, finished=False)
    records = read_metrics(tmp_path / "metrics.jsonl")
    records.append({"t": 1111.0, "process": hostile, "event": "retry", "error": hostile})
    records.append({"t": 1111.0, "process": "train", "event": "phase", "name": hostile})
    records.append({"t": 1111.0, "process": hostile, "event": "waits",
                    "waits": [{"what": hostile, "on": hostile, "waited_s": 1.0, "limit_s": 9.0}]})  # fmt: skip
    plain = _render(tmp_path, records, terminal=False)
    assert "\\x1b]0;owned\\x07\\x9b2J\\u202egnp\\ud800" in plain
    for shown in (plain, _render(tmp_path, records, terminal=True, width=200)):
        for control in "\x07\x9b\u202e\ud800":
            assert control not in shown
        assert "\x1b]" not in shown


def test_the_summary_adds_up_verdicts_and_skipped_prompts_of_all_workers(tmp_path: Path):
    directory = write_run(tmp_path)
    log = MetricsLog(directory / "metrics.jsonl", "rollout-2", clock=lambda: 1105.0)
    for _ in range(2):
        log.write("interval", **_interval(tokens=1, idle_s=0.1, mixed=0), verdicts=40, failed_verdicts=3,
                  unjudged_groups=1, skipped_prompts=5, failed_groups=0)  # fmt: skip
    log.close()
    summary = write_summary(directory)
    assert (summary["verdicts"], summary["failed_verdicts"], summary["unjudged_groups"]) == (80, 6, 2)
    assert summary["skipped_prompts"] == 10
