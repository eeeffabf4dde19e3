"""Users' reactions reach a rollout: each once, on both engines, and a version that users turn down goes back."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from serving_bridge.canary import CanaryPolicy, MetricPolicy, Reacted, StepPolicy, observe_reactions
from tests.support.canary_world import NAMESPACE, CanaryWorld, canary_world

__all__ = ["canary_world"]  # a fixture


@dataclass(frozen=True)
class Seen:
    arm: str
    version: int
    thumbs_down: bool = False
    regenerated: bool = False
    tenant: str = "acme"
    conversation: str = "c1"


def observed(world: CanaryWorld, *seen: Reacted, until: int, starts: list[int] | None = None) -> int:
    def read(after: int) -> tuple[tuple[Reacted, ...], int]:
        if starts is not None:
            starts.append(after)
        return seen, until

    return observe_reactions(world.log, NAMESPACE, "run", read, now_s=5.0)


def test_reactions_are_written_once_and_the_next_reader_goes_on(canary_world: CanaryWorld) -> None:
    starts: list[int] = []
    given = (Seen("canary", 2, thumbs_down=True), Seen("stable", 1, regenerated=True), Seen("former", 9))
    assert observed(canary_world, *given, Seen("stable", 1, tenant="a b"), until=7, starts=starts) == 2
    assert observed(canary_world, until=9, starts=starts) == 0
    assert starts == [0, 7]
    assert canary_world.log.mark("run") == 9
    assert canary_world.log.mark("another") == 0
    assert [
        (kind, arm, msgspec.json.decode(text)) for _, kind, arm, *_, text in canary_world.log.after(NAMESPACE, 0)
    ] == [
        ("feedback", "canary", {"thumbs_down": 1.0, "regenerated": 0.0}),
        ("feedback", "stable", {"thumbs_down": 0.0, "regenerated": 1.0}),
    ]


def test_two_readers_at_once_count_nothing_twice(canary_world: CanaryWorld) -> None:
    def read(after: int) -> tuple[tuple[Reacted, ...], int]:
        assert observed(canary_world, Seen("canary", 2), until=4) == 1  # another one, meanwhile
        return (Seen("canary", 2),), 4

    assert observe_reactions(canary_world.log, NAMESPACE, "run", read, now_s=5.0) == 0
    assert len(canary_world.log.after(NAMESPACE, 0)) == 1
    assert canary_world.log.mark("run") == 4


@pytest.mark.parametrize("metric", ["thumbs_down", "regenerated"])
def test_a_version_that_users_turn_down_goes_back(canary_world: CanaryWorld, metric: str) -> None:
    policy = CanaryPolicy(
        holdout=0.5,
        metrics=(MetricPolicy(name="error", margin=0.2), MetricPolicy(name=metric, margin=0.1, coverage=0)),
        steps=(StepPolicy(share=1.0, min_samples=5000, proof="all"),),
    )
    controller = canary_world.start(policy=policy)
    canary_world.pass_time()
    rollout = controller.look()
    assert rollout is not None
    assert rollout.is_open
    bad = [Seen("canary", 2, conversation=f"c{n}", **{metric: n % 2 == 0}) for n in range(200)]
    assert (
        observed(canary_world, *bad, *(Seen("stable", 1, conversation=f"d{n}") for n in range(200)), until=400) == 400
    )
    canary_world.pass_time()
    rollout = controller.look()
    assert rollout is not None
    assert (rollout.phase, rollout.reason.partition(":")[0]) == ("rolled_back", f"{metric} is worse")
