"""Orders as wishes: which replica leaves or restarts next, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serving_bridge.fleet.orders import Orders
from serving_bridge.fleet.plan import FleetPlan
from serving_bridge.settings import ServingSettings


def plan_of(replicas: int, min_healthy: int = 1) -> FleetPlan:
    return FleetPlan(ServingSettings(max_model_len=8, replicas=replicas, min_healthy=min_healthy))


def members(*states: str) -> list[Any]:
    return [
        SimpleNamespace(
            name=f"r{index}", index=index, state=state, wish="serve", returning=False,
            describe=lambda index=index, state=state: f"r{index} is {state}",
        )
        for index, state in enumerate(states)
    ]  # fmt: skip


def wishes(found: list[Any]) -> list[str]:
    return [member.wish for member in found]


def follow(plan: FleetPlan, found: list[Any]) -> int:
    """How many replicas the plan has join."""
    joined: list[None] = []
    plan.follow(found, join=lambda: joined.append(None))
    return len(joined)


@pytest.mark.parametrize(("ordered", "wanted"), [(None, 3), (2, 2), (1, 3), (9, 9)])
def test_a_controller_takes_up_what_was_ordered_within_the_settings(ordered: int | None, wanted: int) -> None:
    plan = plan_of(3, min_healthy=2)
    plan.begin(Orders("before", ordered, "restart before"))
    assert (plan.wanted, plan.order_id) == (wanted, "before")
    found = members("healthy", "healthy", "healthy")
    assert not plan.take(Orders("before", 5, "x"), found)
    assert plan.take(Orders("next", None, "restart before"), found)
    assert plan.order_id == "next"
    assert "to restart" not in plan.doing(found)
    fresh = plan_of(3)
    fresh.begin(None)
    assert (fresh.wanted, fresh.order_id) == (3, "")
    assert not fresh.take(None, found)


def test_too_few_replicas_are_refused_and_the_next_order_is_not() -> None:
    plan, found = plan_of(3, min_healthy=2), members("healthy", "healthy", "healthy")
    assert plan.take(Orders("one", 1), found)
    assert (plan.refused, plan.wanted) == ("1 replicas are fewer than serving.min_healthy allows (2)", 3)
    assert plan.take(Orders("two", 2), found)
    assert (plan.refused, plan.wanted) == ("", 2)
    assert plan.take(Orders("three", 2, "again"), found)
    assert "a rolling restart of 2 replicas would leave fewer than serving.min_healthy = 2: scale to 3" in plan.refused
    none = plan_of(1, min_healthy=0)
    none.take(Orders("zero", 0), found)
    assert none.refused == "0 replicas are fewer than serving.min_healthy allows (1)"


def test_replicas_join_until_there_are_as_many_as_wanted() -> None:
    plan = plan_of(3)
    found = members("healthy", "starting")
    assert follow(plan, found) == 1
    found[0].wish = "leave"
    assert follow(plan, found) == 2
    assert follow(plan, members("healthy", "healthy", "healthy")) == 0


def test_those_that_serve_nothing_leave_first_then_the_highest_number() -> None:
    plan = plan_of(2)
    found = members("healthy", "starting", "healthy", "healthy")
    assert follow(plan, found) == 0
    assert wishes(found) == ["serve", "leave", "serve", "leave"]
    assert follow(plan, found) == 0
    assert wishes(found) == ["serve", "leave", "serve", "leave"]


def test_nobody_leaves_who_is_needed_to_serve() -> None:
    plan = plan_of(2, min_healthy=2)
    found = members("healthy", "suspect", "healthy", "dead")
    follow(plan, found)
    assert wishes(found) == ["serve", "leave", "serve", "leave"]
    found = members("healthy", "healthy", "healthy", "healthy")
    follow(plan, found)
    assert wishes(found) == ["serve", "serve", "leave", "leave"]


def test_one_replica_restarts_at_a_time_and_each_once() -> None:
    plan, found = plan_of(3), members("healthy", "healthy", "healthy")
    plan.take(Orders("one", None, "now"), found)
    assert plan.doing(found) == "to restart: r0, r1, r2"
    for index in range(3):
        follow(plan, found)
        follow(plan, found)
        assert wishes(found) == ["restart" if at == index else "serve" for at in range(3)]
        assert f"restarting: r{index} is healthy" in plan.doing(found)
        found[index].wish, found[index].state = "serve", "starting"
        follow(plan, found)
        assert [member.returning for member in found] == [at == index for at in range(3)]
        found[index].state = "healthy"
    follow(plan, found)
    assert (wishes(found), plan.doing(found)) == (["serve"] * 3, "")


def test_a_restart_waits_for_enough_that_serve_and_forgets_who_left() -> None:
    plan, found = plan_of(2), members("healthy", "starting")
    plan.take(Orders("one", None, "now"), found)
    follow(plan, found)
    assert wishes(found) == ["serve", "restart"], "it serves nothing anyway"
    found[1].wish, found[1].returning = "serve", False
    follow(plan, found)
    assert wishes(found) == ["serve", "serve"]
    assert plan.doing(found) == "to restart: r0; not healthy: r1 is starting"
    follow(plan, found[1:])
    assert "to restart" not in plan.doing(found[1:])
    assert plan.doing(found[1:]).startswith("1 of 2 replicas")
    found[1].state = "healthy"  # so that the first, which comes back new, could be spared
    follow(plan, found)
    assert wishes(found) == ["serve", "serve"]
