"""The rules of a rollout, one at a time."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from serving_bridge.canary import CanaryPolicy, Cell, Decision, Look, MetricPolicy, State, StepPolicy, decide, machine

POLICY = CanaryPolicy(
    interval_s=60.0,
    holdout=0.2,
    metrics=(MetricPolicy(name="error", margin=0.05), MetricPolicy(name="distinct", margin=0.1, role="goal")),
    steps=(
        StepPolicy(shadow=0.5, min_samples=20, min_time_s=60.0),
        StepPolicy(share=0.5, min_samples=100, min_time_s=120.0, proof="goals"),
        StepPolicy(share=1.0, min_samples=100, min_time_s=60.0, proof="all"),
    ),
)


def look(
    n: int = 400,
    *,
    canary: float = 0.01,
    stable: float = 0.01,
    distinct: float = 0.8,
    share: float = 0.5,
    tenant: dict[str, float] | None = None,
    **more: Any,
) -> Look:
    """A look at `n` conversations of which the canary has a share, with these rates of errors."""
    counts = {"canary": round(n * share), "stable": n - round(n * share)}
    cells, covered = (
        [],
        {"error": (counts["canary"], counts["stable"]), "distinct": (counts["canary"], counts["stable"])},
    )
    for arm, rate, mean in (("canary", canary, distinct), ("stable", stable, 0.8)):
        number = counts[arm]
        if number:
            cells.append(Cell("error", arm, "", number, number * rate, number * rate))
            cells.append(Cell("distinct", arm, "", number, number * mean, number * (mean * mean + 0.01)))
            for name, of_tenant in (tenant or {}).items():
                rate_ = of_tenant if arm == "canary" else stable
                cells.append(Cell("error", arm, name, number / 2, number / 2 * rate_, number / 2 * rate_))
    fields = {"at_s": 0.0, "passed_s": 60.0, "until": 1, "cells": cells, "covered": covered} | more
    both = (counts["canary"], counts["stable"])
    return Look(**({"answers": both, "conversations": both} | fields))


def looked(looks: list[Look], state: State | None = None) -> tuple[State, Decision]:
    state = State() if state is None else state
    decision = None
    for one in looks:
        state, decision = decide(POLICY, state, one)
    assert decision is not None
    return state, decision


AT_50 = State(step=1)


def test_a_good_candidate_goes_through_every_step() -> None:
    state, verdicts = State(), []
    for number in range(40):
        share = {0: 0.33, 1: 0.5, 2: 0.8}[state.step]
        state, decision = decide(POLICY, state, look(share=share))
        verdicts.append(decision.verdict)
        if decision.verdict == "success":
            break
        assert number < 30
    assert [verdict for verdict in verdicts if verdict != "hold"] == ["next", "next", "success"]
    assert state.step == 2


def test_a_step_takes_its_time_and_its_conversations() -> None:
    _, decision = looked([look()], AT_50)
    assert decision.verdict == "hold"
    assert "60 s of 120" in decision.reasons
    _, decision = looked([look(40)] * 3, AT_50)
    assert decision.reasons[0] == "60 of 100 conversations"


def test_a_metric_that_is_worse_ends_it_with_its_numbers() -> None:
    _, decision = looked([look(1000, canary=0.3)], AT_50)
    assert decision.verdict == "failure"
    assert decision.reasons[0].startswith("error is worse: more by at least 0.1")
    finding = next(one for one in decision.findings if one.metric == "error")
    assert finding.is_worse
    assert not finding.is_harmless
    assert finding.at_least < 0.29 < finding.at_most
    _, decision = looked([look(distinct=0.3)], AT_50)
    assert decision.reasons[0].startswith("distinct is worse: less by at least")


def test_one_tenant_that_is_hurt_ends_it_where_all_together_look_well() -> None:
    _, decision = looked([look(2000, canary=0.02, tenant={"a": 0.01, "b": 0.2})], AT_50)
    assert decision.verdict == "failure"
    assert decision.reasons[0].startswith("error for tenant b is worse")
    assert len(decision.reasons) == 1


def test_a_guardrail_never_counts_in_favour() -> None:
    """At `goals` only the goal must be shown; at `all` the guardrail holds it up, however good the goal is."""
    state, decision = looked([look(240, canary=0.04, stable=0.04)] * 4, AT_50)
    assert decision.verdict == "next"
    assert not next(one for one in decision.findings if one.metric == "error").is_harmless
    _, decision = looked([look(240, share=0.8, canary=0.04, distinct=0.95)] * 4, state)
    assert decision.verdict == "hold"
    assert any(reason.startswith("error: worse by at most") for reason in decision.reasons)


@pytest.mark.parametrize(
    ("looks", "match"),
    [
        (
            [look(failure="cut off", answers=(0, 0), conversations=(0, 0), cells=[], covered={})] * 3,
            "no observations in 3",
        ),
        ([look(80, share=0.0)] * 1, "no answers of the canary where about 80 conversations were to be"),
        ([look(covered={"error": (200, 200)})] * 2, "distinct is missing: 0 of 400 answers"),
        ([look(dropped=100)], "100 observations were dropped beside 400"),
        ([look(2000, share=0.3)], r"at most 3\d\.\d+% of the conversations were the canary's, and 50.00% were to be"),
    ],
    ids=["blind", "silent", "uncovered", "dropped", "hidden"],
)
def test_what_is_missing_fails(looks: list[Look], match: str) -> None:
    state = AT_50
    for one in looks[:-1]:
        state, decision = decide(POLICY, state, one)
        assert decision.verdict == "hold", "not at once"
    _, decision = decide(POLICY, state, looks[-1])
    assert decision.verdict == "failure"
    assert any(re.search(match, reason) for reason in decision.reasons), decision.reasons


def test_a_quiet_night_is_not_missing() -> None:
    quiet = look(answers=(0, 0), conversations=(0, 0), cells=[], covered={})
    _, decision = looked([look(), *[quiet] * 50], AT_50)
    assert decision.verdict != "failure"


def test_values_that_come_a_look_late_are_not_missing() -> None:
    late = [look(covered={"error": (200, 200)}), look(covered={"error": (200, 200), "distinct": (400, 400)})] * 5
    state = AT_50
    for one in late:
        state, decision = decide(POLICY, state, one)
        assert decision.verdict != "failure"
        state = msgspec.structs.replace(state, step=1)


@pytest.mark.parametrize("passed_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_an_hour_is_a_hold_and_no_progress(passed_s: float) -> None:
    state, _ = looked([look()], AT_50)
    after, decision = decide(POLICY, state, look(passed_s=passed_s))
    assert decision.verdict == "hold"
    assert any("the clock moved by" in reason for reason in decision.reasons)
    assert after.spent_s - state.spent_s <= 2 * POLICY.interval_s
    _, decision = decide(POLICY, state, look(1000, canary=0.3, passed_s=passed_s))
    assert decision.verdict == "failure", "a candidate that is worse goes back all the same"


def test_a_pause_stops_progress_and_no_guardrail() -> None:
    state, decision = looked([look(paused=True)] * 50, AT_50)
    assert (decision.verdict, decision.reasons[0], state.spent_s) == ("hold", "it is paused", 0.0)
    assert decide(POLICY, state, look(20_000, canary=0.4, paused=True))[1].verdict == "failure"


def test_what_never_becomes_clear_is_inconclusive() -> None:
    unclear = look(2, canary=0.05, stable=0.05, passed_s=120.0)
    state, decision = looked([unclear] * 50, AT_50)
    assert decision.verdict == "hold"
    _, decision = looked([unclear] * 3, msgspec.structs.replace(state, spent_s=86_399.0))
    assert decision.verdict == "inconclusive"
    assert "max_hold_s is over" in decision.reasons[0]


def test_the_last_step_compares_with_what_stable_keeps() -> None:
    """Both arms get worse by the hour of the day; that is no fault of the canary's."""
    state, _ = looked([look()] * 6, AT_50)
    assert state.step == 2
    _, decision = decide(POLICY, state, look(4000, share=0.8, canary=0.3, stable=0.3))
    assert decision.verdict != "failure"
    _, decision = decide(POLICY, state, look(4000, share=0.8, canary=0.3))
    assert decision.verdict == "failure"


def test_a_share_that_falls_short_is_never_taken_for_enough() -> None:
    """Too little to tell from chance that observations are hidden, and not enough to show that they are not."""
    _, decision = looked([look(400, share=0.66)] * 4, State(step=2))
    assert decision.verdict == "hold"
    assert any("of the conversations were the canary's" in reason for reason in decision.reasons)


def test_all_comparisons_of_a_rollout_share_one_error_rate() -> None:
    """Whatever number of tenants there is, and also where a metric has two directions."""
    policy = CanaryPolicy()
    spent = sum(
        machine._alpha(policy, metric, rank)
        for metric in policy.metrics
        for _ in metric.directions
        for _ in policy.steps
        for rank in range(machine.MAX_TENANTS + 1)
    )
    assert 0.9 * policy.alpha < spent <= (1 - machine._BALANCE_PART) * policy.alpha


def test_a_state_survives_its_text() -> None:
    state, decision = looked([look(tenant={"a": 0.1})] * 2, AT_50)
    assert msgspec.json.decode(msgspec.json.encode(state), type=State) == state
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision
