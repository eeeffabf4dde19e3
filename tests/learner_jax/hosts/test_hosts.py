"""A learner of several processes: what hosts agree on, the same parameters as one process, and ends without hanging.

The first part runs hosts as threads around a store in memory; the second starts real processes, joined by
`jax.distributed`, with gloo's collectives on the CPU.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from pydantic import ValidationError

from learner_jax.batches import Batch, BatchStats, rl_batch
from learner_jax.batches.packing import Lengths, Plan, pack_rows
from learner_jax.checkpoints.checkpoints import Checkpoints, restore_parameters
from learner_jax.contracts.model import parse_model_config
from learner_jax.hosts.hosts import HostError, Hosts, _place
from learner_jax.hosts.peers import END_WITHIN_S
from learner_jax.loop.feed import Feed, StarvedError, StepGroups, divided
from learner_jax.runtime import CANNOT_HEAL_STATUS
from learner_jax.settings.learner import HostsSettings, LearnerSettings, LossSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from serving_bridge.queue.bounds import QueueError
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.weights.store import WeightStore
from tests.support.host_processes import (
    HEARTBEAT_S,
    PLAIN,
    TRAINING,
    Processes,
    fill,
    final,
    largest_difference,
    last_line,
    records,
)
from tests.support.host_threads import MemoryStore, on_hosts
from tests.support.host_worker import random_parameters
from tests.support.tiny_model import TINY_JSON
from tests.support.trajectories import failing, make_group

# What hosts agree on.


def test_hosts_get_the_leaders_value_and_everyones() -> None:
    def program(hosts: Hosts) -> Any:
        return hosts.agree({"mine": hosts.index}, "a"), hosts.gather([hosts.index, None], "b"), hosts.agree("x", "c")

    assert on_hosts(3, program) == [({"mine": 0}, [[0, None], [1, None], [2, None]], "x")] * 3


def test_the_store_does_not_grow() -> None:
    store = MemoryStore()

    def program(hosts: Hosts) -> None:
        for number in range(300):
            assert hosts.agree(number, "number") == number
        for number in range(50):
            hosts.gather(number, "number")

    on_hosts(2, program, store=store)
    assert len(store.values) <= 2


def test_one_host_needs_no_store() -> None:
    hosts = Hosts()
    assert (hosts.agree(3, "a"), hosts.gather(3, "b"), hosts.is_leader) == (3, [3], True)
    with pytest.raises(ValueError, match="share"):
        Hosts(0, 2)


@pytest.mark.parametrize(("silent", "asked"), [(2, "gather"), (0, "agree")])
def test_a_host_that_does_not_answer_is_named_in_time(silent: int, asked: str) -> None:
    def program(hosts: Hosts) -> None:
        if hosts.index != silent:
            getattr(hosts, asked)(1, "groups of step 17")
        else:
            time.sleep(2.5)

    started = time.monotonic()
    with pytest.raises(HostError, match=rf"host {silent} of 3 did not answer 'groups of step 17' within 0\.5 s"):
        on_hosts(3, program, timeout_s=0.5)
    assert time.monotonic() - started < 5


def test_hosts_at_different_places_are_told_so() -> None:
    with pytest.raises(HostError, match=r"host 1 is at 'right' where host 0 is at 'left'.*same program"):
        on_hosts(2, lambda hosts: hosts.gather(0, "right" if hosts.index else "left"))


def test_a_failure_ends_the_others_waits_at_once() -> None:
    def program(hosts: Hosts) -> None:
        if hosts.index == 1:
            raise RuntimeError("no disk")
        hosts.gather(0, "anything")

    started = time.monotonic()
    with pytest.raises(HostError, match="host 0 of 2 stops, because host 1 failed: RuntimeError: no disk"):
        on_hosts(2, program, timeout_s=60)
    assert time.monotonic() - started < 5


def test_what_hosts_must_have_alike_is_compared_by_name() -> None:
    on_hosts(3, lambda hosts: hosts.require_same("model folder", {"config.json": "12 bytes, ab"}))

    def program(hosts: Hosts) -> None:
        files = {"config.json": "12 bytes, ab"} | ({"model.safetensors": "9 bytes"} if hosts.index < 2 else {})
        hosts.require_same("model folder", files)

    expected = r"disagree on the model folder: model\.safetensors is 9 bytes on host 0 and missing on host 2"
    with pytest.raises(HostError, match=expected):
        on_hosts(3, program)


@pytest.mark.parametrize(
    ("told", "environment", "expected"),
    [
        ({"index": 1, "coordinator": "a:1"}, {}, ("a:1", 1, None)),
        ({}, {"JOB_COMPLETION_INDEX": "2", "JAX_COORDINATOR_ADDRESS": "b:2"}, ("b:2", 2, None)),
        ({"index": 0, "coordinator": "a:1"}, {"JAX_LOCAL_DEVICE_IDS": "2,3"}, ("a:1", 0, [2, 3])),
    ],
)
def test_a_host_s_place_is_told_or_stands_in_the_environment(
    told: dict[str, Any], environment: dict[str, str], expected: tuple[str, int, list[int] | None]
) -> None:
    assert _place(HostsSettings.model_validate({"count": 3} | told), environment) == expected


def test_a_host_that_does_not_know_its_place_is_told_what_to_set() -> None:
    with pytest.raises(HostError, match=r"coordinator and index is not known: set learner\.hosts\.coordinator"):
        _place(HostsSettings(count=3), {})
    with pytest.raises(HostError, match="index 5 by its environment, expected 0 to 2"):
        _place(HostsSettings(count=3, coordinator="a:1"), {"JOB_COMPLETION_INDEX": "5"})


def test_a_host_that_is_interrupted_says_so() -> None:
    def program(hosts: Hosts) -> None:
        if hosts.index == 1:
            raise KeyboardInterrupt
        hosts.gather(0, "anything")

    with pytest.raises(HostError, match="host 0 of 2 stops, because host 1 failed: it was interrupted"):
        on_hosts(2, program)


# Parts of a batch.

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


# A step's groups from one queue.


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


# Real processes.

#: Log-probs of older versions are recomputed; not for resumed runs, which no longer have their weights in memory.
LAGGING = PLAIN | {
    "mismatch_versions": 2,
    "mismatch_rows": 8,
    "loss": {"mismatch": {"truncation": 2.0, "lagging": True}},
}
DEMO_JSON = TINY_JSON | {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 512,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process on four devices."""
    directory = tmp_path_factory.mktemp("one")
    fill(directory, 24)
    Processes(directory, 1, settings=TRAINING).finish()
    return directory


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of two processes with two devices each."""
    directory = tmp_path_factory.mktemp("two")
    fill(directory, 24)
    Processes(directory, 2, settings=TRAINING).finish()
    return directory


def test_two_processes_train_what_one_does(one: Path, two: Path) -> None:
    start = flatten_dict(random_parameters(parse_model_config(TINY_JSON, origin="test")))
    assert min(np.abs(value - start[path]).max() for path, value in final(two).items()) > 1e-3
    # Not bit-equal: each host packs its own sequences, so that sums run in another order.
    assert largest_difference(two, one) < 1e-5
    for expected, leader, follower in zip(
        records(one, 0, "step"), records(two, 0, "step"), records(two, 1, "step"), strict=True
    ):
        for name in ("loss", "kl", "grad_norm", "mismatch_max_abs_logprob"):
            known = expected[name]  # None where nothing was compared
            assert leader[name] == (None if known is None else pytest.approx(known, rel=1e-4, abs=1e-7)), name
            assert follower[name] == leader[name]
        for name in ("reward", "num_tokens", "mismatch_tokens", "lagged_tokens", "staleness_mean", "reward_parts"):
            assert follower[name] == leader[name] == expected[name], name


def test_each_process_reads_its_own_payloads(two: Path) -> None:
    (leader,), (follower,) = records(two, 0, "read"), records(two, 1, "read")
    assert sorted(leader["ids"] + follower["ids"]) == sorted(f"run/{i}" for i in range(24))
    assert len(leader["ids"]) == len(follower["ids"]) == 12


def test_the_leader_alone_publishes_and_ends_the_queue(two: Path) -> None:
    progress = TrajectoryQueue(two / "state.db").admin.progress()
    assert (progress.num_acknowledged, progress.completed_steps, progress.finished) == (24, 6, True)
    store = WeightStore(two / "weights", "test")
    assert store.versions() == [1, 2, 3, 4, 5, 6, 7]  # no number was claimed by the other
    assert [store.manifest(version).step for version in store.versions()] == [0, 1, 2, 3, 4, 5, 6]
    assert len(records(two, 0, "published")) == 7
    assert records(two, 1, "published") == []
    assert [record["process"] for record in records(two, 1, "outcome")] == ["learner-1"]


def test_several_processes_compile_as_little_as_one(one: Path, two: Path) -> None:
    assert records(two, 0, "compilations")[0]["count"] == records(one, 0, "compilations")[0]["count"]


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2}, {"data": 1, "fsdp": 1}])
def test_a_checkpoint_of_two_processes_is_restored_on_another_mesh(mesh: dict[str, int], two: Path) -> None:
    settings = LearnerSettings.model_validate(TRAINING | {"mesh": mesh})
    config = parse_model_config(TINY_JSON, origin="test")
    engine = Engine(
        settings,
        config,
        objective=objective.reinforcement(settings.loss),
        temperature=1.0,
        devices=jax.devices()[: mesh["data"] * mesh["fsdp"]],
    )
    checkpoints = Checkpoints(two / "checkpoints", keep=3)
    state, position, _ = checkpoints.restore(engine.init_state(random_parameters(config), seed=1))
    checkpoints.close()
    assert (position.completed_steps, int(state.step)) == (6, 12)
    for path, value in flatten_dict(state.params).items():
        np.testing.assert_array_equal(np.asarray(value), final(two)[path])
        assert value.sharding.mesh.size == mesh["data"] * mesh["fsdp"]
    moments = [np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1]
    assert min(moments) > 0


def test_a_killed_process_ends_the_others_and_all_go_on_from_the_checkpoint(two: Path, tmp_path: Path) -> None:
    fill(tmp_path, 24)
    killed = Processes(tmp_path, 2, settings=TRAINING, kill_at=(1, "checkpoint", 4))
    assert killed.wait_for(1) == -signal.SIGKILL
    started = time.monotonic()
    assert killed.wait()[0] == 1
    assert time.monotonic() - started < HEARTBEAT_S + END_WITHIN_S + 20
    assert last_line(killed, 0).startswith("error: host 0 of 2 stops, because host 1 died: its process was killed")
    assert records(tmp_path, 0, "host_failed")[0]["host"] == 1
    restore_parameters(tmp_path / "checkpoints")
    Processes(tmp_path, 2, settings=TRAINING).finish()
    assert records(tmp_path, 0, "resumed")[0]["step"] in (2, 4)
    for path, value in final(two).items():
        np.testing.assert_array_equal(final(tmp_path)[path], value, err_msg=str(path))
    assert TrajectoryQueue(tmp_path / "state.db").admin.progress().num_acknowledged == 24


@pytest.mark.soak
def test_the_demo_model_on_two_and_four_processes(tmp_path: Path) -> None:
    """A follower of the four asks to stop after two steps: all stop there, with a checkpoint.

    In the second step only one group, and so one host, has tokens of an older version, which all must recompute.
    """
    running = {}
    for count in (1, 2, 4):
        fill(tmp_path / str(count), 12, vocabulary=64, versions=lambda i: 2 if i > 4 else 1)
        told: dict[str, Any] = {"stop_at": (3, 2)} if count == 4 else {}
        settings = LAGGING | {"steps": 4 if count == 4 else 2, "mesh": {"data": 2, "fsdp": 2}}
        running[count] = Processes(tmp_path / str(count), count, settings=settings, model=DEMO_JSON, **told)
        running[count].finish()
    assert {r["reason"] for host in range(4) for r in records(tmp_path / "4", host, "outcome")} == {"stopped"}
    assert [r["completed"] for r in records(tmp_path / "4", 3, "outcome")] == [2]
    (expected,) = (r["mismatch_tokens"] for r in records(tmp_path / "1", 0, "step") if r["step"] == 2)
    assert [r["mismatch_tokens"] for r in records(tmp_path / "4", 0, "step")][1] == expected > 0
    for count in (2, 4):
        assert largest_difference(tmp_path / str(count), tmp_path / "1") < 1e-5


def test_an_exception_on_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    fill(tmp_path, 12)
    processes = Processes(tmp_path, 2, settings=PLAIN, raise_at=(1, 1))
    assert processes.wait_for(1) == 1
    started = time.monotonic()
    assert processes.wait()[0] == 1
    assert time.monotonic() - started < HEARTBEAT_S + END_WITHIN_S + 20
    assert last_line(processes, 0) == (
        "error: host 0 of 2 stops, because host 1 failed: RuntimeError: raised at step 1"
    )


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_that_never_starts_is_missed_in_time(there: int, tmp_path: Path) -> None:
    processes = Processes(tmp_path, 2, settings=PLAIN, start=[there], connect_timeout_s=3)
    (status,) = processes.wait()
    assert status == 1
    problem = ["not all 2 hosts joined", "host 0 could not be reached"][there]
    assert last_line(processes, there).startswith(f"error: host {there} of 2: {problem}")


@pytest.mark.parametrize(
    ("mesh", "num_devices", "message"),
    [
        ({"data": 1, "fsdp": 2}, 4, r"makes 2 devices, but there are 4 \(on 2 hosts\)"),
        ({"data": 1, "fsdp": 1, "tensor": 2}, 2, r"mesh.tensor = 2 cuts the rows of a batch over hosts \[0, 1\]"),
    ],
)
def test_a_mesh_that_does_not_fit_the_hosts_is_refused(
    mesh: dict[str, int], num_devices: int, message: str, tmp_path: Path
) -> None:
    processes = Processes(tmp_path, 2, settings=PLAIN | {"mesh": mesh}, num_devices=num_devices)
    assert set(processes.wait()) <= {1, CANNOT_HEAL_STATUS}
    for host in (0, 1):
        assert re.search(message, processes.output(host))
