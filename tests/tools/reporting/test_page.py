"""The report of a run: one page that loads nothing, and a summary of its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serving_bridge.telemetry.metrics_log import MetricsLog, read_metrics
from tests.support.written_runs import CONFIG, SCRIPT, interval, measured, render, step, write_events, write_run
from tools.reporting.page import ReportError, headline, pair_samples, write_report, write_summary


def test_the_headline_says_what_was_gained(tmp_path: Path):
    line = headline(write_summary(write_run(tmp_path)), "runs/x")
    assert line == (
        "held-out accuracy 25.0% → 75.0% (+50.0 points) after 10 steps and 1 min 55 s; report: runs/x/report.html"
    )


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


@pytest.mark.parametrize("clips", [True, False])
def test_an_objective_that_clips_nothing_has_a_chart_of_the_samples_alone(tmp_path: Path, clips: bool):
    path = write_run(tmp_path) / "metrics.jsonl"
    events = [{**event, "effective_sample_share": 0.9} for event in read_metrics(path)]
    kept = [{name: value for name, value in event.items() if clips or name != "clip_fraction"} for event in events]
    path.write_text("".join(f"{json.dumps(event)}\n" for event in kept))
    page = write_report(tmp_path).read_text()
    assert "Effective sample share from 0.9 to 0.9" in page
    assert ("; clipped share from" in page) == clips


def test_a_report_says_for_how_long_training_was_held(tmp_path: Path):
    assert "was held" not in write_report(write_run(tmp_path)).read_text()
    (tmp_path / "summary.json").unlink(missing_ok=True)
    write_events(tmp_path, (10.0, "hold", {"held": True}), (100.0, "hold", {"held": False, "seconds": 90.0}))
    assert "Training was held for 1 min 30 s after a rollback." in write_report(tmp_path).read_text()


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
                  f"2 + 2 = {SCRIPT}", f"4 {SCRIPT}", "golden log-probs differ", 'name = "by-hand"'):  # fmt: skip
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


def test_graded_answers_are_told_by_their_mean_score(tmp_path: Path):
    write_events(
        tmp_path,
        (1.0, "evaluation", {"which": "before", **measured(0.0, 0.161)}),
        (2.0, "step", step(1)),
        (3.0, "evaluation", {"which": "after", **measured(0.0, 0.764)}),
    )
    summary = write_summary(tmp_path)
    assert headline(summary, tmp_path).startswith("held-out mean score 0.161 → 0.764 after 1 steps")
    page = write_report(tmp_path).read_text()
    assert "0.161 → 0.764" in page
    assert "Held-out mean score from 0.161 to 0.764" in page
    shown = render(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), terminal=False)
    assert "== held-out accuracy before: 0.0% of 40, mean score 0.161" in shown
    assert "held-out 0.161 → 0.764" in shown


def test_a_little_credit_for_wrong_answers_leaves_accuracy_in_front(tmp_path: Path):
    write_events(
        tmp_path,
        (1.0, "evaluation", {"which": "before", **measured(0.285, 0.323)}),
        (2.0, "step", step(1)),
        (3.0, "evaluation", {"which": "after", **measured(0.812, 0.83)}),
    )
    assert headline(write_summary(tmp_path), tmp_path).startswith("held-out accuracy 28.5% → 81.2% (+52.7 points)")


def test_what_was_not_learned_from_is_shown(tmp_path: Path):
    write_run(tmp_path, finished=False)
    with MetricsLog(tmp_path / "metrics.jsonl", "rollout") as log:
        for _ in range(2):
            lost = dict(skipped_prompts=6, verdicts=50, failed_verdicts=2, unjudged_groups=1)
            log.write("interval", **interval(tokens=0, idle_s=0.0, mixed=0), **lost)
    summary = write_summary(tmp_path)
    assert [summary[key] for key in ("skipped_prompts", "verdicts", "failed_verdicts", "unjudged_groups")] == [
        12, 100, 4, 2,
    ]  # fmt: skip
    records = read_metrics(tmp_path / "metrics.jsonl")
    for shown in (
        render(tmp_path, records, terminal=True, width=220),
        render(tmp_path, records, terminal=False),
        write_report(tmp_path).read_text(),
    ):
        text = " ".join(shown.split())
        assert "12 prompts too long" in text
        assert "4 of 100 verdicts failed" in text
        assert "2 groups without enough verdicts" in text
    clean = write_run(tmp_path / "clean")
    assert "prompts too long" not in render(clean, read_metrics(clean / "metrics.jsonl"), terminal=False)


def write_reasons(directory: Path, temperature: str) -> None:
    """A run whose answers are sampled at a temperature, with an answer whose verifier says what it missed."""
    write_run(directory)
    (directory / "config.toml").write_text(f"{CONFIG}\n[evaluation]\nnum_problems = 200\ntemperature = {temperature}\n")
    events = []
    for event in read_metrics(directory / "metrics.jsonl"):
        if event["event"] == "evaluation":
            missed = {"reason": "not followed: <b>no commas</b>", "is_cut": True}
            told = missed if event["which"] == "before" else {"reason": "expected '4'", "is_cut": False}
            event = {**event, "samples": [event["samples"][0] | told]}
        events.append(event)
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))


def test_the_report_tells_why_an_answer_has_its_score(tmp_path: Path):
    write_reasons(tmp_path, "0.7")
    page = write_report(tmp_path).read_text()
    assert "problems, at temperature 0.7, by vLLM" in page
    assert page.count("cut at the longest length") == 1
    assert "not followed: &lt;b&gt;no commas&lt;/b&gt;" in page
    assert "expected &#39;4&#39;" not in page, "it stands beside the prompt"


def test_a_greedy_evaluation_is_called_greedy(tmp_path: Path):
    write_reasons(tmp_path, "0.0")
    assert "problems, greedy, by vLLM" in write_report(tmp_path).read_text()
