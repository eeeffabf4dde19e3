"""A step's groups from a source that is a list: how many are leased, what is buried, and who reads what."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from learner_jax.contracts import Trajectory
from learner_jax.contracts.weights import Lease, LeaseReport
from learner_jax.hosts import Hosts
from learner_jax.loop.feed import Feed, StarvedError, StepGroups, divided
from learner_jax.settings import LearnerSettings
from tests.support.host_threads import on_hosts
from tests.support.trajectories import make_group


class Source:
    """Gives out its groups as they are asked for, of each lease at most so many, with one dropped each time."""

    def __init__(self, groups: Sequence[list[Trajectory]], *, at_most: int = 99) -> None:
        self.waiting = list(groups)
        self.by_name = {group[0].group_id: group for group in groups}
        self.at_most = at_most
        self.leases: list[int] = []
        self.buried: dict[str, str] = {}
        self.read_by: list[list[str]] = []
        self.unreadable: set[str] = set()

    def _next(self, count: int) -> list[list[Trajectory]]:
        self.leases.append(count)
        taken, self.waiting = self.waiting[: min(count, self.at_most)], self.waiting[min(count, self.at_most) :]
        return taken

    def lease_groups(self, count: int, *, trained_version: int, max_staleness: int) -> LeaseReport:
        assert (trained_version, max_staleness) == (5, 2)
        return LeaseReport(self._next(count), num_dropped_stale=1)

    def lease(self, count: int, *, trained_version: int, max_staleness: int) -> Lease:
        assert (trained_version, max_staleness) == (5, 2)
        groups = self._next(count)
        return Lease(
            group_ids=[group[0].group_id for group in groups],
            num_bytes=[100 * len(group[0].tokens) for group in groups],
            num_dropped_stale=1,
        )

    def read(self, group_ids: Sequence[str]) -> Any:
        self.read_by.append(list(group_ids))
        return SimpleNamespace(
            groups={name: self.by_name[name] for name in group_ids if name not in self.unreadable},
            unreadable={name: "damaged" for name in group_ids if name in self.unreadable},
        )

    def bury(self, group_id: str, reason: str) -> None:
        self.buried[group_id] = reason


def groups(*versions: int, size: int = 2) -> list[list[Trajectory]]:
    return [make_group(f"run/{i}", version=version, size=size) for i, version in enumerate(versions)]


def feed(
    source: Source, hosts: Hosts | None = None, *, stop: Callable[[], bool] = lambda: False, **changed: Any
) -> tuple[Feed, list[list[str]]]:
    settings = LearnerSettings.model_validate(
        {"steps": 1, "groups_per_step": 4, "sequence_length": 8, "microbatch_rows": 2, "max_wait_s": 0.2} | changed
    )
    arrived: list[list[str]] = []
    found = Feed(
        source,  # type: ignore[arg-type]
        hosts or Hosts(),
        settings,
        max_staleness=2,
        should_stop=stop,
        on_arrival=lambda found: arrived.append([group[0].group_id for group in found]),
    )
    return found, arrived


def test_a_step_takes_what_it_lacks_and_no_more() -> None:
    source = Source(groups(5, 5, 5, 5, 5, 5), at_most=3)
    found, arrived = feed(source, minibatches=2)
    taken = found.take(1, trained_version=5)
    assert taken is not None
    assert source.leases == [4, 1]
    assert arrived == [["run/0", "run/1", "run/2"], ["run/3"]]
    assert taken.group_ids == ["run/0", "run/1", "run/2", "run/3"]
    assert taken.trajectory_ids == [f"run/{i}/{j}" for i in range(4) for j in range(2)]
    assert (taken.update_rows, taken.num_dropped_stale) == ([4, 4], 2)


def test_what_may_not_be_trained_on_is_buried_and_replaced() -> None:
    source = Source(groups(5, 2, 6, 3, 4, 5))
    found, _ = feed(source)
    taken = found.take(1, trained_version=5)
    assert taken is not None
    assert taken.group_ids == ["run/0", "run/3", "run/4", "run/5"]
    assert source.buried.keys() == {"run/1", "run/2"}
    assert "stale" in source.buried["run/1"]
    assert "never published" in source.buried["run/2"]


def test_each_step_counts_what_was_dropped_for_it() -> None:
    found, _ = feed(Source(groups(*[5] * 8)))
    for _ in range(2):
        taken = found.take(1, trained_version=5)
        assert taken is not None
        assert taken.num_dropped_stale == 1


def test_a_stop_ends_the_wait_but_not_a_step_that_is_there() -> None:
    found, _ = feed(Source(groups(5, 5)), stop=lambda: True)
    assert found.take(1, trained_version=5) is None
    found, _ = feed(Source(groups(5, 5, 5, 5)), stop=lambda: True)
    assert found.take(1, trained_version=5) is not None


def test_a_wait_without_a_group_is_bounded_and_says_what_was_missing() -> None:
    found, _ = feed(Source(groups(5)))
    with pytest.raises(StarvedError, match=r"for 3 of 4 groups of step 7 from rollout .*learner\.max_wait_s = 0\.2 s"):
        found.take(7, trained_version=5)


def shared(source: Source, count: int = 2, **changed: Any) -> list[StepGroups]:
    """What each host takes; the source is one, and used by one host at a time."""
    lock = threading.Lock()

    class Locked:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                with lock:
                    return getattr(source, name)(*arguments, **named)

            return call

    def program(hosts: Hosts) -> Any:
        found, _ = feed(Locked(), hosts, **changed)  # type: ignore[arg-type]
        return found.take(1, trained_version=5)

    return on_hosts(count, program)


def test_each_host_reads_its_share_and_all_know_the_whole() -> None:
    source = Source(groups(5, 5, 5, 5), at_most=3)
    first, second = shared(source, minibatches=2)
    assert first.group_ids == second.group_ids == ["run/0", "run/1", "run/2", "run/3"]
    assert sorted(first.trajectory_ids) == [f"run/{i}/{j}" for i in range(4) for j in range(2)]
    assert first.trajectory_ids == second.trajectory_ids
    own = [{group[0].group_id for group in taken.groups} for taken in (first, second)]
    assert own[0] | own[1] == set(first.group_ids)
    assert not own[0] & own[1]
    assert [taken.update_rows for taken in (first, second)] == [[2, 2], [2, 2]]
    assert [taken.num_dropped_stale for taken in (first, second)] == [2, 2]
    assert sorted(name for names in source.read_by for name in names) == first.group_ids


def test_what_a_host_can_not_read_is_replaced_in_its_place() -> None:
    source = Source(groups(5, 5, 2, 5, 5, 5))
    source.unreadable = {"run/1"}
    first, second = shared(source)
    assert first.group_ids == ["run/0", "run/4", "run/5", "run/3"]
    assert source.buried.keys() == {"run/1", "run/2"}
    assert source.leases == [4, 2]
    names = [group[0].group_id for taken in (first, second) for group in taken.groups]
    assert sorted(names) == ["run/0", "run/3", "run/4", "run/5"]
    assert [len(taken.groups) for taken in (first, second)] == [2, 2]
    assert [sum(taken.update_rows) for taken in (first, second)] == [4, 4]


def test_groups_are_divided_by_number_and_the_largest_first() -> None:
    assert divided([1, 9, 5, 5], 2, parts=1) == [0, 0, 1, 1]
    assert divided([3, 3, 2, 2, 2, 6], 3, parts=1) == [1, 2, 1, 2, 0, 0]
    assert divided([5, 1, 1, 5], 2, parts=2) == [0, 1, 1, 0]
    for sizes, hosts in (([9, 8, 7, 1, 1, 1], 2), ([4] * 7, 3)):
        owners = divided(sizes, hosts, parts=1)
        counts = [owners.count(host) for host in range(hosts)]
        assert max(counts) == -(-len(sizes) // hosts)
    assert sorted(sum(s for s, o in zip([9, 8, 7, 1, 1, 1], divided([9, 8, 7, 1, 1, 1], 2, parts=1), strict=True)
                      if o == host) for host in (0, 1)) == [11, 16]  # fmt: skip
