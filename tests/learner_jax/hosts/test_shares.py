"""Each host's share of a step: groups from one queue, parts of a batch that make up the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from learner_jax.batches import Batch, BatchStats, rl_batch
from learner_jax.batches.packing import Plan, pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.hosts.hosts import HostError, Hosts
from learner_jax.loop.feed import Feed, StarvedError, StepGroups, divided
from learner_jax.settings.learner import LearnerSettings, LossSettings
from serving_bridge.queue.bounds import QueueError
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.host_processes import (
    fill,
)
from tests.support.host_threads import on_hosts
from tests.support.trajectories import failing, make_group

GROUPS = [
    make_group(f"run/{i}", seed=i, size=2, answer_tokens=1 + i % 4, rewards=[0.5 * (i % 3), 1.0]) for i in range(8)
]


def of_host(index: int, groups: Sequence[Any] = GROUPS) -> list[Any]:
    """Parts of unlike size: two groups of each update go to host 0, one each to the others."""
    owners = [0, 1, 0, 2] * 2
    return [group for group, owner in zip(groups, owners, strict=True) if owner == index]


#: Groups of four, in some of which answers have no verdict: one of them, three, all.
UNJUDGED = [
    [
        failing(t) if i in failed else t
        for i, t in enumerate(make_group(f"run/{n}", seed=n, size=4, answer_tokens=1 + n % 4, rewards=[1, 0, 0.5, 0]))
    ]
    for n, failed in enumerate([(), (0,), (), (1, 2, 3), (), (), (0, 1, 2, 3), (2,)])
]


@pytest.mark.parametrize("all_groups", [GROUPS, UNJUDGED], ids=["all judged", "failed verdicts"])
@pytest.mark.parametrize("estimator", ["grpo", "reinforce_pp", "reinforce_pp_baseline"])
@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_parts_of_a_batch_make_up_the_whole(estimator: str, reduction: str, all_groups: list[Any]) -> None:
    tables: dict[str, Any] = {"advantage": {"estimator": estimator}, "reduction": reduction}
    loss = LossSettings.model_validate(tables | ({"constant_tokens": 4} if reduction == "constant" else {}))

    def build(groups: Sequence[Any], updates: int | list[int], hosts: Hosts | None) -> tuple[Batch, BatchStats]:
        return rl_batch(groups, loss, sequence_length=8, trained_version=3, minibatches=updates, hosts=hosts)

    whole, expected = build(all_groups, 2, None)
    size = len(all_groups[0])
    sizes = [[2 * size] * 2, [size] * 2, [size] * 2]
    parts = on_hosts(3, lambda hosts: build(of_host(hosts.index, all_groups), sizes[hosts.index], hosts))
    order = [t.trajectory_id for index in range(3) for group in of_host(index, all_groups) for t in group]
    rows = [order.index(t.trajectory_id) for group in all_groups for t in group]
    for name in ("weights", "advantages", "tokens"):
        together = np.concatenate([np.asarray(getattr(batch, name)) for batch, _ in parts])[rows]
        np.testing.assert_allclose(together, np.asarray(getattr(whole, name)), rtol=1e-6, err_msg=name)
    assert np.abs(np.asarray(whole.advantages)).max() > 0.1
    for _, stats in parts:
        assert stats == expected


def test_value_weights_of_parts_make_up_the_whole() -> None:
    loss = LossSettings.model_validate({"advantage": {"estimator": "vtrace"}, "value": {"model": "shared"}})

    def total(hosts: Hosts) -> float:
        batch, _ = rl_batch(of_host(hosts.index), loss, sequence_length=8, trained_version=1, hosts=hosts)
        assert batch.episodes is not None
        return float(np.sum(batch.episodes.value_weights))

    assert sum(on_hosts(3, total)) == pytest.approx(1.0)


@pytest.mark.parametrize("may_share", [False, True])
def test_hosts_lay_out_the_same_number_of_rows_of_one_length(may_share: bool) -> None:
    lengths = [
        Lengths(np.array([30, 30, 30]), np.zeros(3, int), np.array([20, 20, 20])),  # alone: shared, in rows of 64
        Lengths.of([8] * 5),  # alone: a row of 64 or three of 16
        Lengths.of([]),
    ]

    def plan(hosts: Hosts) -> Plan:
        return pack_rows(
            lengths[hosts.index],
            width=32,
            row_lengths=(16, 32, 64),
            may_share=may_share,
            gather=lambda counts: hosts.gather(counts, "rows"),
        ).plan()

    plans = on_hosts(3, plan)
    assert len({plan.sources.shape for plan in plans}) == 1
    assert len({plan.shares_prompts for plan in plans}) == 1
    assert plans[0].shares_prompts == may_share
    assert plans[0].row_tokens == (64 if may_share else 32)
    values = np.arange(5 * 32).reshape(5, 32)
    np.testing.assert_array_equal(plans[1].unpack(plans[1].pack(values))[:, :8], values[:, :8])
    assert (plans[2].sources == -1).all()
    assert plans[2].unpack(plans[2].pack(np.zeros((0, 32), np.float32))).shape == (0, 32)


def test_groups_are_divided_by_number_and_size() -> None:
    sizes = [100, 1, 1, 100, 50, 50, 1, 1]
    owners = divided(sizes, 2, parts=2)
    for part in (slice(0, 4), slice(4, 8)):
        loads = [sum(s for s, o in zip(sizes[part], owners[part], strict=True) if o == host) for host in (0, 1)]
        assert loads[0] == loads[1]
        assert owners[part].count(0) == 2
    assert divided([100, 1, 1, 1], 2, parts=1).count(0) == 2
    assert set(divided([5] * 5, 4, parts=1)) == {0, 1, 2, 3}


def take(
    directory: Path,
    hosts: Hosts,
    *,
    stop: bool = False,
    steps: int = 1,
    **changes: Any,
) -> list[StepGroups | None]:
    settings = LearnerSettings.model_validate(
        {"steps": 1, "groups_per_step": 4, "sequence_length": 8, "microbatch_rows": 2, "max_wait_s": 0.3} | changes
    )
    queue = TrajectoryQueue(directory / "state.db")
    feed = Feed(
        queue.consumer, hosts, settings, max_staleness=9, should_stop=lambda: stop, on_arrival=lambda groups: None
    )
    try:
        taken = [feed.take(step, trained_version=1) for step in range(1, steps + 1)]
        hosts.barrier("that every host has read")
        return taken
    finally:
        queue.close()


def damage(directory: Path, *group_ids: str) -> None:
    queue = TrajectoryQueue(directory / "state.db")
    for group_id in group_ids:
        change = (
            "UPDATE payloads SET payload = ? WHERE sequence = (SELECT sequence FROM groups WHERE group_id = ?)",
            (b"nonsense", group_id),
        )
        queue.database.write(lambda session, change=change: session.execute(*change))  # type: ignore[misc]
    queue.close()


def test_each_group_goes_to_one_host_and_unreadable_ones_are_replaced(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    damage(tmp_path, "run/1", "run/4")
    first, second = on_hosts(2, lambda hosts: take(tmp_path, hosts, steps=2, minibatches=2))
    for step, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        assert mine is not None
        assert theirs is not None
        own = [{t.trajectory_id for group in taken.groups for t in group} for taken in (mine, theirs)]
        assert own[0].isdisjoint(own[1])
        assert own[0] | own[1] == set(mine.trajectory_ids) == set(theirs.trajectory_ids)
        assert mine.group_ids == theirs.group_ids
        assert mine.update_rows == theirs.update_rows == [2, 2]
        expected = [["run/0", "run/5", "run/2", "run/3"], ["run/6", "run/7", "run/8", "run/9"]][step]
        assert sorted(mine.group_ids) == sorted(expected)
    queue = TrajectoryQueue(tmp_path / "state.db")
    assert [group for group, _ in queue.admin.dead_letters()] == ["run/1", "run/4"]
    assert queue.admin.progress().num_leased == 8
    queue.close()


def test_all_hosts_stop_when_the_leader_is_asked_to(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    assert on_hosts(2, lambda hosts: take(tmp_path, hosts, stop=hosts.is_leader)) == [[None], [None]]


def test_all_hosts_starve_together(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    reasons: list[str] = []

    def program(hosts: Hosts) -> None:
        try:
            take(tmp_path, hosts)
        except (StarvedError, HostError) as error:
            reasons.append(f"{type(error).__name__}: {error}")
            raise

    with pytest.raises(StarvedError):
        on_hosts(2, program)
    assert any(
        r.startswith("HostError: host 1 of 2 stops, because host 0 failed: StarvedError: waited") for r in reasons
    )


def test_a_host_with_another_queue_is_refused_before_any_group_is_lost(tmp_path: Path) -> None:
    fill(tmp_path / "0", 4)
    fill(tmp_path / "1", 4)
    with pytest.raises((QueueError, HostError), match="same queue"):
        on_hosts(2, lambda hosts: take(tmp_path / str(hosts.index), hosts))
    queue = TrajectoryQueue(tmp_path / "0" / "state.db")
    assert queue.admin.dead_letters() == []
    queue.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatch_rows": 3}, r"microbatch_rows is 3.*hosts\.count 2"),
        ({"groups_per_step": 2, "minibatches": 2}, "groups_per_step / minibatches is 1, fewer than"),
        ({"hosts": {"count": 2, "index": 2}}, "index is 2, expected 0 to 1"),
        (
            {"loss": {"advantage": {"estimator": "gae", "whiten": True}, "value": {"model": "shared"}}},
            "whiten normalises over the whole batch",
        ),
    ],
)
def test_settings_that_hosts_can_not_share_are_refused(changes: dict[str, Any], message: str) -> None:
    base = {"steps": 1, "groups_per_step": 4, "sequence_length": 8, "microbatch_rows": 4, "hosts": {"count": 2}}
    LearnerSettings.model_validate(base)
    with pytest.raises(ValidationError, match=message):
        LearnerSettings.model_validate(base | changes)
