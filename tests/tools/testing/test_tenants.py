"""Limits and bills under kills, cuts, clock jumps and duplicates: in short here, at 200 seeds in the soak."""

from __future__ import annotations

from unittest import mock

import pytest

from serving_bridge.database import Session
from serving_bridge.tenants import meter_rows
from serving_bridge.tenants.answers import Answers
from serving_bridge.tenants.slices import Slice, SliceGrant
from tools.testing.tenants.run import simulate

SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_bills_and_limits_hold(seed: int) -> None:
    outcome = simulate(seed)
    assert outcome.violations == ()
    assert outcome.admitted > 20


@pytest.mark.soak
def test_bills_and_limits_hold_at_200_seeds() -> None:
    outcomes = [simulate(seed) for seed in range(200)]
    assert [(outcome.seed, outcome.violations) for outcome in outcomes if outcome.violations] == []
    kinds = {kind for outcome in outcomes for kind in outcome.faults}
    assert kinds == {"kill", "move", "stop", "cut", "cut_after", "jump"}
    assert sum(outcome.cut_offs for outcome in outcomes) > 50


def test_without_faults_a_limit_is_used_and_kept() -> None:
    outcome = simulate(1, faults=False)
    assert outcome.violations == ()
    assert outcome.cut_offs == 0
    assert outcome.charged["flood"] > 0.5 * (4_000 + 30 * 200)


def seen(*seeds: int) -> str:
    return "; ".join(violation for seed in seeds for violation in simulate(seed).violations)


def test_a_bill_that_is_written_twice_is_noticed() -> None:
    real = meter_rows.write_bills

    def twice(session: Session, bills) -> None:
        real(session, bills)
        real(session, [(began, ended) for began, ended in bills if ended.settled == "usage"])
        for (scope, month), amount in meter_rows.spent_by_scope(bills).items():
            meter_rows.add_spent(session, scope, month, amount)

    with mock.patch.object(meter_rows, "write_bills", twice):
        assert "the sum is" in seen(0)


def test_a_bill_that_a_crash_loses_is_noticed() -> None:
    with mock.patch.object(Answers, "adopt", return_value=None):
        assert "is not billed" in seen(*range(8))


def test_units_from_nowhere_are_noticed() -> None:
    real = Slice.granted

    def generous(self: Slice, grant: SliceGrant, now: float) -> bool:
        again = real(self, grant, now)
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.level = bucket.burst
        return again

    with mock.patch.object(Slice, "granted", generous):
        assert "bound" in seen(*range(8))
