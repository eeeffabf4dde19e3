"""A learner of several real processes: the same parameters as one process, and ends without hanging.

They are joined by `jax.distributed`, with gloo's collectives on the CPU.
"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.checkpoints.checkpoints import Checkpoints, restore_parameters
from learner_jax.contracts.model import parse_model_config
from learner_jax.hosts.peers import END_WITHIN_S
from learner_jax.runtime import CANNOT_HEAL_STATUS
from learner_jax.settings.learner import LearnerSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
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
from tests.support.host_worker import random_parameters
from tests.support.learner_runs import assert_same_parameters
from tests.support.tiny_model import TINY_JSON

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
    """The same run of two processes with two devices each, started by the real command: their hash seeds differ."""
    directory = tmp_path_factory.mktemp("two")
    fill(directory, 24)
    Processes(directory, 2, settings=TRAINING, anew=True).finish()
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
    expected = final(two)
    for path, value in flatten_dict(state.params).items():
        np.testing.assert_array_equal(np.asarray(value), expected[path])
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
    assert_same_parameters(tmp_path, two)
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
    processes = Processes(tmp_path, 2, settings=TRAINING, raise_at=(1, 1))
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
