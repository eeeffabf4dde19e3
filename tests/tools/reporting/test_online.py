"""Users' answers in a run's figures: their share, reward and staleness, in summary, report, picture and lines."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.telemetry.metrics_log import read_metrics
from tests.support.written_runs import CONFIG, history_of, render, step, write_events, write_run
from tools.reporting.online import online_figures
from tools.reporting.page import write_report, write_summary

ONLINE: dict[str, Any] = dict(
    online_groups=1, online_answers=2, online_tokens=40, online_reward=0.5, online_staleness_mean=3.0,
    online_staleness_max=7,
)  # fmt: skip


def test_figures_weigh_by_answers() -> None:
    more = dict(ONLINE, online_groups=2, online_answers=6, online_tokens=80, online_reward=1.0, online_staleness_mean=1)
    unjudged = dict(ONLINE, online_reward=None)
    none = dict.fromkeys(ONLINE, 0) | {"online_reward": None}
    found = online_figures([{**step(n), **own} for n, own in enumerate((ONLINE, more, none, unjudged), start=1)])
    assert found is not None
    assert (found.steps, found.groups, found.answers, found.staleness_max) == (3, 4, 10, 7)
    assert found.token_share == pytest.approx(160 / 1600)
    assert found.reward == pytest.approx((2 * 0.5 + 6 * 1.0) / 8)
    assert found.staleness_mean == pytest.approx((2 * 3 + 6 * 1 + 2 * 3) / 10)


def test_a_run_without_users_says_nothing_of_them(tmp_path: Path) -> None:
    assert write_summary(write_run(tmp_path))["online"] is None
    assert "Users' answers" not in write_report(tmp_path).read_text()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert "users' " not in render(tmp_path, records, terminal=True) + render(tmp_path, records, terminal=False)


def test_a_run_with_users_tells_their_share(tmp_path: Path) -> None:
    write_events(tmp_path, *((float(n), "step", {**step(n), **ONLINE}) for n in range(1, 5)))
    (tmp_path / "config.toml").write_text(CONFIG.replace("loss = {", "online = { share = 0.25 }\nloss = {").replace(
        "budget = 0.5 }", 'budget = 0.5 }, policy = { objective = "decoupled_ppo", importance = "truncated" }'
    ))  # fmt: skip
    summary = write_summary(tmp_path)["online"]
    assert summary == json.loads((tmp_path / "summary.json").read_text())["online"]
    assert (summary["groups"], summary["answers"], summary["token_share"]) == (4, 8, 0.1)
    page = html.unescape(write_report(tmp_path).read_text())
    assert "25.0% of groups" in page
    assert "8 answers in 4 groups, 10.0% of tokens; the bound is 25% of a step" in page
    assert "3.0 versions on average, 7 at most; the bound is 64" in page
    assert "Users' share of groups from 0.25 to 0.25" in page
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert "users' answers 10% of tokens, reward 0.500" in render(tmp_path, records, terminal=False)
    assert "10%, 7 max behind (bound 64)" in render(tmp_path, records, terminal=True)
    assert len(history_of(tmp_path).steps) == 4
