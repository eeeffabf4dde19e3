"""Which replica serves which arm: sizes by traffic, and few swaps."""

from __future__ import annotations

import itertools

import pytest

from serving_bridge.fleet.arm_plan import Placeable, arm_sizes, assigned
from serving_bridge.registry import TrafficSplit


def sizes(replicas: int, canary: float = 0.0, shadow: float = 0.0, *, has_canary: bool = True) -> tuple[int, int]:
    found = arm_sizes(replicas, TrafficSplit("default", canary, shadow), has_canary=has_canary)
    return found["stable"], found["canary"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 0.5), (1, 0)),
        ((2, 0.0), (2, 0)),
        ((2, 0.01), (1, 1)),
        ((2, 1.0), (1, 1)),
        ((10, 0.05), (9, 1)),
        ((10, 0.25), (8, 2)),
        ((10, 0.5), (5, 5)),
        ((10, 1.0), (1, 9)),
        ((3, 0.0, 0.1), (2, 1)),
        ((10, 0.0, 1.0), (5, 5)),
        ((10, 0.5, 1.0), (3, 7)),
        ((0, 0.5), (0, 0)),
    ],
)
def test_arms_are_as_large_as_what_they_sample(given: tuple[float, ...], expected: tuple[int, int]) -> None:
    assert sizes(int(given[0]), *given[1:]) == expected


def test_every_arm_with_traffic_has_a_replica_and_none_is_left_out() -> None:
    for replicas, canary, shadow in itertools.product(range(2, 20), (0.0, 0.01, 0.3, 0.99, 1.0), (0.0, 0.01, 1.0)):
        stable, of_canary = sizes(replicas, canary, shadow)
        assert stable + of_canary == replicas
        assert stable >= 1
        assert (of_canary >= 1) == (canary + shadow > 0)
    assert sizes(4, 0.5, has_canary=False) == (4, 0)


def plan(*replicas: tuple[int, str], canary: int, stable: int | None = 3, other: int | None = 4) -> str:
    """Arms of replicas given by (version, arm): "s" and "c"."""
    placed = [Placeable(f"r{number}", version, arm) for number, (version, arm) in enumerate(replicas)]
    found = assigned(placed, {"stable": len(placed) - canary, "canary": canary}, {"stable": stable, "canary": other})
    return "".join(found[replica.name][0] for replica in placed)


def test_who_serves_a_version_already_keeps_it() -> None:
    assert plan((4, "canary"), (3, "stable"), (3, "stable"), canary=1) == "css"
    assert plan((4, "stable"), (3, "canary"), canary=1) == "cs", "as after arms were exchanged"
    assert plan((3, "stable"), (3, "stable"), (-1, ""), canary=1) == "ssc", "who serves nothing goes first"
    assert plan((3, "stable"), (3, "stable"), (3, "stable"), canary=1) == "ssc"
    assert plan((3, "stable"), (3, "canary"), (3, "stable"), canary=1) == "scs", "on its way already"
    assert plan((4, "canary"), (3, "stable"), canary=0) == "ss"
    assert plan((2, "stable"), (3, "stable"), canary=1) == "cs", "who serves neither goes before who serves stable"
