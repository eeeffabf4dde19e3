"""The lease of a replica: one round at a time, also past the death of its controller."""

from __future__ import annotations

import pytest

from serving_bridge.access.lease import Lease, LeaseError


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
