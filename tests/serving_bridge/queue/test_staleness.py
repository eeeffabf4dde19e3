"""The staleness gate by itself: no group that is consumed in order is ever too old."""

from __future__ import annotations

import pytest

from serving_bridge.queue.staleness import Pace, dispatch_room, is_stale


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_gate_bounds_staleness_of_every_in_order_group(max_staleness: int, lag: int) -> None:
    """Simulates a fleet that serves `lag` steps behind: consumed in order, no group is ever too stale."""
    pace = Pace(max_staleness=max_staleness, groups_per_step=3, total_steps=40)
    waiting: list[int] = []
    completed = 0
    worst = 0
    for tick in range(400):
        served = max(0, completed - (lag if tick % (lag + 2) else 0))
        room = dispatch_room(pace, completed_steps=completed, served_step=served, outstanding=len(waiting), running=0)
        waiting += [served] * room
        if len(waiting) >= pace.groups_per_step and completed < pace.total_steps:
            batch, waiting = waiting[: pace.groups_per_step], waiting[pace.groups_per_step :]
            worst = max(worst, completed - min(batch))
            assert not any(
                is_stale(trained_version=completed, oldest_version=v, max_staleness=max_staleness) for v in batch
            )
            completed += 1
    assert completed == pace.total_steps
    assert waiting == []
    if max_staleness and lag:
        assert worst > 0


def test_gate_after_a_learner_restart_does_not_trust_a_fleet_that_is_ahead() -> None:
    pace = Pace(max_staleness=0, groups_per_step=4, total_steps=100)
    assert dispatch_room(pace, completed_steps=5, served_step=9, outstanding=0, running=0) == 4
