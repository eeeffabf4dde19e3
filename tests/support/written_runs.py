"""Runs whose events were written by hand, so that every number is known, and how the live view shows them."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from configs.load import load_config
from serving_bridge.telemetry.metrics_log import MetricsLog, Record, read_metrics
from tools.reporting.figures import RunHistory
from tools.reporting.live_view import LiveView

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

SCRIPT = "<script>alert(1)</script>"


def step(number: int, *, wait_s: float = 0.5, reward: float | None = None) -> dict[str, object]:
    return dict(
        step=number, version=number + 1, loss=0.0, reward=number / 10 if reward is None else reward, kl=0.01 * number,
        entropy=1.0, clip_fraction=0.02, grad_norm=1.0, staleness_mean=1.5, staleness_max=2,
        staleness_tokens=[100, 200, 100],
        mismatch_mean_abs_logprob=1e-6 * number, mismatch_max_abs_logprob=1e-5, mismatch_tokens=100 * number,
        num_tokens=400, answer_tokens_mean=3.0, wait_s=wait_s, prepare_s=0.05, transfer_s=0.05,
        compute_s=0.3, train_s=0.4, publish_s=0.1, save_s=0.0, step_s=1.0, mfu=0.21, real_token_share=0.97,
        dropped_stale=1 if number == 2 else 0, zero_variance_groups=0,
    )  # fmt: skip


def interval(*, tokens: int, idle_s: float, mixed: int) -> dict[str, object]:
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
    samples = [{"prompt": f"2 + 2 = {SCRIPT}", "answer": "5", "expected": "4", "score": 0.0}]
    train.write("phase", name="starting")
    # Neither the first weights nor the worker's wait for them belong to training.
    fleet.write("round", replica="r0", version=1, step=0, outcome="updated", stage_s=0.1, pause_s=9.0,
                running_at_pause=0, probe_max_abs=0.0, error=None)  # fmt: skip
    rollout.write("interval", **interval(tokens=0, idle_s=1.0, mixed=0))
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
        rollout.write("interval", **interval(tokens=50 * number, idle_s=0.25, mixed=3))
        learner.write("step", **step(number))
        outcome = "rejected" if number == 4 else "updated"
        fleet.write("round", replica="r0", version=number + 1, step=number, outcome=outcome, stage_s=0.1,
                    pause_s=None if number == 4 else 0.01 * number, running_at_pause=7, probe_max_abs=0.0,
                    error="golden log-probs differ" if number == 4 else None)  # fmt: skip
    if finished:
        after = [samples[0] | {"answer": f"4 {SCRIPT}", "score": 1.0}]
        now[0] += 5
        train.write("evaluation", which="after", accuracy=0.75, mean_score=0.75, num_problems=200, samples=after)
        train.write("phase", name="finished")
    for log in (train, learner, rollout, fleet):
        log.close()
    return directory


def history_of(directory: Path) -> RunHistory:
    history = RunHistory()
    history.add(read_metrics(directory / "metrics.jsonl"))
    return history


def render(directory: Path, records: list[Record], *, terminal: bool, width: int = 100) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=width, height=40, color_system=None)
    config = load_config(directory / "config.toml")
    with LiveView(config, directory, console=console, clock=lambda: records[-1]["t"]) as view:
        view.update(records)
    return output.getvalue()


def write_events(directory: Path, *events: tuple[float, str, dict[str, object]]) -> RunHistory:
    """A run of these (time, event, fields), all of the learner's."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(CONFIG)
    now = [0.0]
    with MetricsLog(directory / "metrics.jsonl", "learner", clock=lambda: now[0]) as log:
        for now[0], event, fields in events:
            log.write(event, **fields)
    return history_of(directory)


def measured(accuracy: float, mean_score: float) -> dict[str, object]:
    return dict(accuracy=accuracy, mean_score=mean_score, num_problems=40, samples=[])
