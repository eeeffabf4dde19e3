"""Simulated candidates through the real controller: in short here, in numbers in the study and the soak."""

from __future__ import annotations

from unittest import mock

import pytest

from serving_bridge.canary import machine, moves
from tools.testing.canary import BAD, GOOD, Kind, roll_out

#: A seed that ends soon, for each kind that the short form runs.
_QUICK = ("errors", "mode_collapse", "missing", "slow_drift", "first_tenant", "last_tenant")


def test_a_good_candidate_reaches_all_users() -> None:
    outcome = roll_out(GOOD[1], 1)
    assert (outcome.phase, outcome.step, outcome.violations) == ("promoted", "100%", ())
    assert 2 < outcome.hours < 24


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind.name in _QUICK], ids=lambda kind: kind.name)
def test_a_bad_candidate_goes_back(kind: Kind) -> None:
    outcome = roll_out(kind, 0)
    assert (outcome.phase, outcome.violations) == ("rolled_back", ())
    assert outcome.late_s is None or outcome.late_s <= 600
    metric = {"mode_collapse": "distinct", "missing": "guard", "slow_drift": "refusal"}.get(kind.name, "error")
    assert outcome.metric == metric


def test_the_same_seed_gives_the_same_outcome() -> None:
    assert roll_out(BAD[5], 3) == roll_out(BAD[5], 3)


def test_a_split_that_does_not_follow_the_rollout_is_noticed() -> None:
    real = moves.traffic_of

    def wrong(policy, step):
        return real(policy, step) if step.shadow else moves.TrafficChange(canary_share=step.share / 2)

    with mock.patch.object(moves, "traffic_of", wrong):
        assert any("aliases and split are" in violation for violation in roll_out(BAD[0], 0, max_hours=1).violations)


def test_a_decision_that_depends_on_anything_else_is_noticed() -> None:
    real, calls = machine._verdict, []

    def moody(*given):
        calls.append(1)
        verdict, reasons = real(*given)
        return verdict, [*reasons, f"call {len(calls)}"]

    with mock.patch.object(machine, "_verdict", moody):
        assert any("comes out as" in violation for violation in roll_out(BAD[5], 0, max_hours=1).violations)


@pytest.mark.soak
def test_no_bad_candidate_is_promoted_and_good_ones_are_not_rolled_back() -> None:
    bad = [roll_out(kind, seed) for kind in BAD for seed in range(20)]
    assert {(one.phase, one.violations) for one in bad} == {("rolled_back", ())}
    good = [roll_out(kind, seed) for kind in GOOD for seed in range(40)]
    assert not [violation for one in good for violation in one.violations]
    assert sum(one.phase != "promoted" for one in good) <= 4
