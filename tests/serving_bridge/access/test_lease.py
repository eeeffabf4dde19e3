"""The lease of a replica: one round at a time, also past the death of its controller."""

from __future__ import annotations

import pytest

from serving_bridge.access.lease import MAX_LEASE_S, Lease, LeaseError


@pytest.mark.parametrize("duration_s", [0.0, -1.0, MAX_LEASE_S + 1, float("nan")])
def test_a_lease_lasts_for_a_day_at_most(duration_s: float):
    lease = Lease(clock=lambda: 0.0)
    lease.take("a", MAX_LEASE_S)
    lease.release("a")
    with pytest.raises(LeaseError, match="expected more than 0 and at most"):
        lease.take("a", duration_s)


def test_a_lease_is_free_at_its_end_and_its_holder_may_take_it_anew():
    now = 0.0
    lease = Lease(clock=lambda: now)
    lease.take("a", 10)
    now = 5.0
    lease.take("a", 20)
    now = 24.0
    with pytest.raises(LeaseError, match="for up to 1.0 s more"):
        lease.take("b", 10)
    now = 25.0
    lease.take("b", 10)
    with pytest.raises(LeaseError, match="round b does"):
        lease.check("a")
    now = 30.0
    lease.renew("a")  # not its own: nothing is prolonged
    now = 35.0
    lease.renew("b")  # it ran out, and nobody came
    now = 44.0
    with pytest.raises(LeaseError, match="for up to 1.0 s more"):
        lease.take("c", 10)
    lease.release("b")
    lease.take("c", 10)
    lease.renew("a")
    now = 53.0
    lease.renew("b")
    now = 54.0
    lease.take("d", 10)


def test_one_round_at_a_time():
    now = 0.0
    lease = Lease(clock=lambda: now)
    lease.take("a", 10)
    with pytest.raises(LeaseError, match=r"round a of another controller holds this replica for up to 10.0 s more"):
        lease.take("b", 10)
    now = 8.0
    lease.renew("a")
    lease.renew("b")  # not its own
    now = 17.0
    with pytest.raises(LeaseError, match="for up to 1.0 s more"):
        lease.take("b", 10)
    lease.check("a")
    with pytest.raises(LeaseError, match="round b does not hold this replica, round a does"):
        lease.check("b")
    lease.release("b")
    with pytest.raises(LeaseError, match="round a"):
        lease.take("b", 10)
    lease.release("a")
    lease.take("b", 10)
    now = 28.0  # its controller died
    lease.take("c", 10)
    lease.check("c")
