"""A gateway's part of a limit: what a bucket gives, what a share moves, and that Retry-After is true."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_bridge.tenants.buckets import Bucket, Places

SHARES = st.floats(0.01, 1.0)
AMOUNTS = st.floats(0.0, 50.0)


def bucket(*, share: float = 1.0, level: float = 10.0) -> Bucket:
    return Bucket(rate=2.0, burst=10.0, share=share, level=level, filled_s=0.0)


def test_it_fills_by_its_rate_up_to_its_burst() -> None:
    found = bucket(level=0.0)
    assert found.wait_s(4.0, now=0.0) == 2.0
    assert found.wait_s(4.0, now=2.0) == 0.0
    found.fill(100.0)
    assert found.level == 10.0


def test_a_share_is_a_part_of_rate_and_burst() -> None:
    found = bucket(share=0.25, level=0.0)
    assert found.wait_s(2.0, now=0.0) == 4.0
    found.fill(100.0)
    assert found.level == 2.5


@given(SHARES, st.floats(-20.0, 10.0), st.floats(0.1, 20.0))
def test_what_it_refuses_it_takes_after_the_time_it_tells(share: float, level: float, cost: float) -> None:
    found = bucket(share=share, level=min(level, share * 10.0))
    wait_s = found.wait_s(cost, now=0.0)
    assert found.wait_s(cost, now=wait_s + 1e-6) == 0.0
    if wait_s > 1e-3:
        found = bucket(share=share, level=min(level, share * 10.0))
        assert found.wait_s(cost, now=0.9 * wait_s) > 0.0


def test_a_request_above_its_part_passes_when_the_part_is_full_and_leaves_a_debt() -> None:
    found = bucket(share=0.5, level=5.0)
    assert found.wait_s(8.0, now=0.0) == 0.0
    found.take(8.0)
    assert found.level == -3.0
    assert found.wait_s(1.0, now=0.0) == 4.0


def test_a_clock_that_goes_back_fills_nothing() -> None:
    found = bucket(level=0.0)
    found.fill(5.0)
    before = found.level
    found.fill(1.0)
    found.fill(5.0)
    assert found.level == before


def test_without_a_share_nothing_passes() -> None:
    assert bucket(share=0.0, level=0.0).wait_s(1.0, now=5.0) == math.inf


@given(st.lists(st.tuples(SHARES, AMOUNTS, st.floats(0.0, 5.0)), max_size=20))
def test_no_units_come_from_resharing(changes: list[tuple[float, float, float]]) -> None:
    """Two gateways that hand a share to and fro take no more than one that has all of it."""
    one, other = bucket(share=1.0, level=10.0), bucket(share=0.0, level=0.0)
    now = taken = 0.0
    for share, cost, pause_s in changes:
        now += pause_s
        for found, changed in ((one, share), (other, 1.0 - share)):
            if changed < found.share:
                units = found.reshare(changed, now)
                rest = other if found is one else one
                rest.reshare(1.0 - changed, now)
                rest.give_back(units)
                break
        for found in (one, other):
            cost = min(cost, found.capacity)
            if found.wait_s(cost, now) == 0.0:
                found.take(cost)
                taken += cost
        assert taken <= 10.0 + 2.0 * now + 1e-6


@pytest.mark.parametrize(("share", "allowed"), [(1.0, 8), (0.5, 4), (0.49, 3), (0.1, 0), (0.7 + 0.3, 8)])
def test_places_are_whole(share: float, allowed: int) -> None:
    places = Places(8, share)
    assert places.allowed == allowed
    places.used = allowed
    assert not places.is_free()
