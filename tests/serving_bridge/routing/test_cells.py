"""The cell of a conversation: home first, spilled by pressure, never outside of a tenant's cells."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_bridge.routing import CellState, SpillPolicy, cells_of, choose_cell, limit_shares, may_try_another

CELLS = ["a", "b", "c", "d", "e"]
CALM = CellState(100.0, True, 0.3, 0.0)


def state(kv: float = 0.3, queue_s: float = 0.0, told_s: float = 100.0, *, ready: bool = True) -> CellState:
    return CellState(told_s, ready, kv, queue_s)


def where(states: dict[str, CellState], order: tuple[str, ...] = ("a", "b", "c")) -> Counter[str | None]:
    return Counter(choose_cell(order, f"conversation {number}", states, 100.0) for number in range(1000))


def test_home_answers_while_it_has_room() -> None:
    assert where({"a": state(0.79), "b": CALM, "c": CALM}) == {"a": 1000}


@pytest.mark.parametrize(("pressed", "spilled"), [(state(0.875), 500), (state(0.3, 5.5), 500), (state(0.95), 1000)])
def test_a_share_of_conversations_spills_evenly_and_stays_spilled(pressed: CellState, spilled: int) -> None:
    found = where({"a": pressed, "b": CALM, "c": CALM})
    assert found["b"] + found["c"] == pytest.approx(spilled, abs=60)
    assert found["b"] == pytest.approx(found["c"], abs=100)
    before = {n for n in range(300) if choose_cell("ab", f"{n}", {"a": state(0.85), "b": CALM}, 100.0) == "b"}
    after = {n for n in range(300) if choose_cell("ab", f"{n}", {"a": state(0.9), "b": CALM}, 100.0) == "b"}
    assert before < after, "a conversation went back home as the pressure rose"


def test_nobody_spills_to_a_cell_without_room() -> None:
    assert where({"a": state(0.95), "b": state(0.8), "c": state(0.3, 1.0)}) == {"a": 1000}


@pytest.mark.parametrize("gone", [None, state(ready=False), state(told_s=94.9)], ids=["silent", "not ready", "stale"])
def test_a_lost_home_is_shared_out_even_to_cells_without_room(gone: CellState | None) -> None:
    others = {"b": CALM, "c": CALM} if gone is None else {"a": gone, "b": CALM, "c": CALM}
    found = where(others)
    assert set(found) == {"b", "c"}
    assert min(found.values()) > 430
    assert where({"b": state(0.99), "c": state(0.9)}) == {"c": 1000}


def test_tried_cells_are_left_out_until_none_is_left() -> None:
    states = dict.fromkeys("abc", CALM)
    assert choose_cell("abc", "x", states, 100.0, avoid={"a", "b"}) == "c"
    assert choose_cell("abc", "x", states, 100.0, avoid={"a", "b", "c"}) is None


@given(
    tenant=st.text(max_size=8),
    bound=st.sets(st.sampled_from(CELLS), min_size=1),
    alternates=st.integers(0, 5),
    conversation=st.text(max_size=8),
    states=st.dictionaries(
        st.sampled_from(CELLS),
        st.builds(CellState, st.floats(90, 100), st.booleans(), st.floats(0, 1), st.floats(0, 30)),
    ),
    avoid=st.frozensets(st.sampled_from(CELLS)),
)
def test_nothing_leaves_what_a_tenant_is_bound_to(
    tenant: str,
    bound: set[str],
    alternates: int,
    conversation: str,
    states: dict[str, CellState],
    avoid: frozenset[str],
) -> None:
    home = min(bound)
    order = cells_of(tenant, home, CELLS, alternates=alternates, bound_to=bound)
    assert order[0] == home
    assert len(set(order)) == len(order) == min(len(bound), alternates + 1)
    assert set(order) <= bound
    chosen = choose_cell(order, conversation, states, 100.0, avoid=avoid)
    usable = {c for c in order if c not in avoid and c in states and states[c].is_ready and states[c].told_s >= 95.0}
    assert chosen in usable if usable else chosen is None


def test_a_home_that_a_tenant_may_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="home 'a' of tenant 't': expected one of b, c"):
        cells_of("t", "a", CELLS, bound_to={"b", "c"})
    with pytest.raises(ValueError, match="expected one of no cell"):
        cells_of("t", "a", CELLS, bound_to={"elsewhere"})


def test_limits_of_a_lost_home_are_what_its_alternates_hold_together() -> None:
    for alternates in (1, 2, 4):
        shares = limit_shares(cells_of("t", "a", CELLS, alternates=alternates))
        assert shares.pop("a") == 1.0
        assert sum(shares.values()) == pytest.approx(1.0)
    assert limit_shares(("a",)) == {"a": 1.0}


def test_tenants_of_one_home_have_different_alternates() -> None:
    seen = Counter(cell for number in range(400) for cell in cells_of(f"tenant {number}", "a", CELLS)[1:])
    assert set(seen) == {"b", "c", "d", "e"}
    assert min(seen.values()) > 150


@pytest.mark.parametrize(
    ("status", "code", "may"),
    [
        (None, None, True),
        (503, "keys_unavailable", True),
        (429, "overloaded", True),
        (429, "queue_full", True),
        (429, "rate_limit_exceeded", False),
        (429, "insufficient_quota", False),
        (400, "invalid_value", False),
        (401, "invalid_api_key", False),
    ],
)
def test_only_what_another_cell_can_mend_goes_to_one(status: int | None, code: str | None, may: bool) -> None:
    assert may_try_another(status, code) is may


def test_shares_rise_evenly() -> None:
    policy = SpillPolicy(from_kv=0.8, full_kv=0.9, from_queue_s=2.0, full_queue_s=4.0)
    assert [policy.share(state(kv, q)) for kv, q in ((0.8, 2.0), (0.85, 0), (0, 3.5), (1, 0))] == pytest.approx(
        [0, 0.5, 0.75, 1]
    )
