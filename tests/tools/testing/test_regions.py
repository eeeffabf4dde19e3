"""Cells in virtual time: in short here, with more seeds in the soak; each invariant is broken once."""

from __future__ import annotations

from unittest import mock

import pytest

from serving_bridge.tenants import slice_rows
from serving_bridge.tenants.slices import SliceGrant
from tools.testing.regions import edge
from tools.testing.regions.cell import Cell
from tools.testing.regions.run import Outcome, simulate
from tools.testing.regions.shape import Shape

SHORT = Shape(
    num_cells=4,
    num_replicas=200,
    num_tenants=4,
    load=0.5,
    kinds=("lost", "crowd"),
    warm_s=30.0,
    event_s=30.0,
    rest_s=50.0,
    look_every_s=2.0,
)
CALM = Shape(num_cells=3, num_replicas=200, num_tenants=4, kinds=(), warm_s=25.0, rest_s=10.0, look_every_s=5.0)
LOST = Shape(
    num_cells=2,
    num_replicas=200,
    num_gateways=1,
    num_tenants=4,
    load=0.2,
    kinds=("lost",),
    warm_s=5.0,
    event_s=5.0,
    rest_s=40.0,
    look_every_s=5.0,
)


@pytest.fixture(scope="module")
def short() -> Outcome:
    return simulate(0, SHORT)


def test_a_lost_cell_fails_those_that_are_bound_to_it_and_nobody_after_it(short: Outcome) -> None:
    assert short.violations == ()
    usual, lost, crowd = short.phases
    assert (usual.failed, usual.shed, usual.spilled) == (0, 0, 0)
    assert lost.failed == pytest.approx(lost.bound + lost.broken)
    assert lost.bound > 0
    assert lost.broken > 0
    assert lost.spilled > 0.02
    assert lost.steady_s <= SHORT.event_s + 2
    assert crowd.failed == 0


def test_a_tenant_that_roams_gets_up_to_the_sum_of_its_cells(short: Outcome) -> None:
    used = {one.tenant: one.used for one in short.overshoots}
    assert all(one.used <= one.bound for one in short.overshoots)
    assert 1.3 < max(used[f"tenant-{number}-3"] for number in range(4)) < 2.2
    assert max(used[f"tenant-{number}-0"] for number in range(4)) < 1.1


def test_the_same_seed_gives_the_same_outcome() -> None:
    assert simulate(3, LOST) == simulate(3, LOST) != simulate(4, LOST)


def test_a_request_that_leaves_its_tenants_cells_is_noticed() -> None:
    def anywhere(order, conversation, states, now_s, *, avoid):
        return next((cell for cell in sorted(states, reverse=True) if cell not in avoid), None)

    with mock.patch.object(edge, "choose_cell", anywhere):
        assert any("bound to cell-0, was sent to cell-2" in found for found in simulate(0, CALM).violations)


def test_limits_that_every_gateway_has_whole_are_noticed() -> None:
    def generous(session, gateway, offers):
        return [SliceGrant(offer.scope, 1.0, offer.request_burst, offer.token_burst, 1.0) for offer in offers]

    with mock.patch.object(slice_rows, "exchange", generous):
        assert any(" tokens in " in found and "bound" in found for found in simulate(0, CALM).violations)


def test_a_cell_that_does_not_come_back_is_noticed() -> None:
    real = Cell.start

    def once(cell: Cell) -> None:
        if not cell.processes:
            real(cell)

    with mock.patch.object(Cell, "start", once):
        assert any("when nothing went wrong any more" in found for found in simulate(0, LOST).violations)
    assert simulate(0, LOST).violations == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"num_cells": 1}, "expected at least 2 cells"), ({"load": 0.0}, "load 0.0: expected a part")],
    ids=["cells", "load"],
)
def test_a_shape_that_can_not_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shape(**wrong)


@pytest.mark.soak
def test_invariants_hold_at_ten_seeds_of_all_events() -> None:
    shape = Shape(num_cells=4, num_replicas=400, num_tenants=5, load=0.6)
    assert [(seed, found) for seed in range(10) if (found := simulate(seed, shape).violations)] == []
