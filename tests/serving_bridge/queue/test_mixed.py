"""Rollouts and online groups as one source: what a step is given, in which order, and when consent is looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_bridge.queue import MixedSource, TrajectoryQueue
from tests.support.trajectories import make_group


class World:
    """Both queues, and the ids whose consent was taken back."""

    def __init__(self, folder: Path) -> None:
        self.rollouts, self.online = TrajectoryQueue(folder / "state.db"), TrajectoryQueue(folder / "online.db")
        self.gone: set[str] = set()
        self.asked: list[list[str]] = []
        self.trained: list[str] = []
        self.source = MixedSource(
            self.rollouts.consumer, self.online.consumer, run="run", per_step=2, max_staleness=9,
            withdrawn=self.withdrawn, trained=lambda ids, _: self.trained.extend(ids),
        )  # fmt: skip

    def withdrawn(self, group_ids: object) -> set[str]:
        self.asked.append(list(group_ids))  # type: ignore[call-overload]
        return self.gone & set(self.asked[-1])

    def put(self, *, rollouts: range = range(0), online: range = range(0)) -> None:
        for number in rollouts:
            self.rollouts.producer.put([(number, make_group(f"run/{number}", rewards=[0.0, 1.0]))])
        for number in online:
            group = make_group(f"run/online/{number}", rewards=[0.0, 1.0])
            self.online.producer.put([(number, [dataclasses.replace(t, source="online") for t in group])])

    def leased(self, count: int, *, by_name: bool) -> list[str]:
        if by_name:
            return self.source.lease(count, trained_version=1, max_staleness=9).group_ids
        report = self.source.lease_groups(count, trained_version=1, max_staleness=9)
        return [group[0].group_id for group in report.groups]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.rollouts.close()
    found.online.close()


@pytest.mark.parametrize("by_name", [False, True], ids=["whole", "by name"])
def test_what_is_withdrawn_while_a_step_waits_is_not_in_it(world: World, by_name: bool) -> None:
    """Both online groups were leased long before the rollouts came that the step waited for."""
    world.put(rollouts=range(1), online=range(2))
    assert world.leased(4, by_name=by_name) == ["run/0"]
    assert world.leased(3, by_name=by_name) == []
    world.gone.add("run/online/0")
    assert world.asked == []  # not before the step is whole: nobody would look again
    world.put(rollouts=range(1, 3))
    assert world.leased(3, by_name=by_name) == ["run/1"]
    assert world.leased(2, by_name=by_name) == ["run/online/1"]
    assert world.leased(1, by_name=by_name) == ["run/2"]
    taken = ["run/0", "run/1", "run/2", "run/online/1"]
    world.source.mark_trained(taken, completed_steps=1, trained_version=2)
    world.source.acknowledge(taken)
    assert world.trained == ["run/online/1"]
    assert world.online.admin.dead_letters() == [("run/online/0", "the consent of its user was withdrawn")]


@pytest.mark.parametrize("by_name", [False, True], ids=["whole", "by name"])
def test_a_step_takes_its_share_and_never_waits_for_it(world: World, by_name: bool) -> None:
    world.put(rollouts=range(3), online=range(3))
    assert world.leased(3, by_name=by_name) == ["run/0"]
    assert world.leased(2, by_name=by_name) == ["run/online/0", "run/online/1"]
    assert world.leased(1, by_name=by_name) == ["run/1"]  # in the place of one that another host could not read
    world.source.mark_trained(["run/0", "run/1", "run/online/0", "run/online/1"], completed_steps=1, trained_version=2)
    assert world.leased(2, by_name=by_name) == ["run/2"]
    assert world.leased(1, by_name=by_name) == ["run/online/2"]


def test_a_learner_that_starts_again_asks_anew(world: World) -> None:
    world.put(online=range(1))
    assert world.leased(2, by_name=False) == []  # held, until a rollout comes
    world.source.recover([], completed_steps=0, prompt_cursor=0)
    world.gone.add("run/online/0")
    world.put(rollouts=range(2))
    assert world.leased(2, by_name=False) == ["run/0"]
    assert world.leased(1, by_name=False) == []
    assert world.leased(1, by_name=False) == ["run/1"]
