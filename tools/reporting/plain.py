"""A run in plain lines, for files and pipes."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import Config
from learner_jax.runtime import printable
from serving_bridge.telemetry import Record
from tools.reporting.figures import (
    GRADED_FROM,
    RunHistory,
    idle_shares,
    intervals_during,
    left_out,
    mean,
    steps_in_order,
    tokens_per_s,
    values,
)
from tools.reporting.online import online_figures
from tools.reporting.shown import WINDOW, accuracy_now, clock, heldout_skill, number, percent, phase_now, scientific


def plain_line(history: RunHistory, config: Config) -> str:
    """The state of a run in one line."""
    steps = steps_in_order(history)
    head = f"{clock(history.wall_s())}  {phase_now(history)}"
    if not steps:
        if not history.warm_start:
            return head
        last = history.warm_start[-1]
        return f"{head}  step {last['step']}  loss {number(last['loss'])}  accuracy {percent(accuracy_now(history))}"
    recent, last = steps[-WINDOW:], steps[-1]
    intervals = intervals_during(history, recent)
    shares = idle_shares(recent, intervals)
    worst = max(values(steps, "staleness_max"), default=None)
    parts = [
        head,
        f"step {last['step']}/{config.learner.steps}",
        f"reward {number(mean(values(recent[-5:], 'reward')))}",
        f"held-out {heldout_skill(history)}",
        f"KL {number(last.get('kl'))}",
        f"staleness {number(mean(values(recent, 'staleness_mean')), 2)} (max {number(worst, 0)})",
        f"mismatch {scientific(last.get('mismatch_mean_abs_logprob'))}",
        f"{number(tokens_per_s(intervals), 0)} tokens/s",
        f"{shares.bottleneck or 'starting'} (idle: learner {percent(shares.learner)},"
        f" rollout {percent(shares.rollout)})",
        *online_words(recent),
        *left_out(history),
    ]
    return "  ".join(parts)


def online_words(steps: Sequence[Record]) -> list[str]:
    """What users' answers had in these steps; empty where there was none."""
    found = online_figures(steps)
    if found is None:
        return []
    return [f"users' answers {percent(found.token_share)} of tokens, reward {number(found.reward)}"]


def plain_event(record: Record) -> str:
    if record["event"] == "phase":
        return f"== {printable(record['name'])}"
    accuracy, score = record["accuracy"], record.get("mean_score")
    text = f"== held-out accuracy {record['which']}: {percent(accuracy, 1)} of {record['num_problems']}"
    is_graded = None not in (accuracy, score) and abs(score - accuracy) > GRADED_FROM
    text = f"{text}, mean score {number(score)}" if is_graded else text
    return "; ".join([text, *(printable(note) for note in record.get("notes") or ())])
