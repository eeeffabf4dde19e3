"""Training that is held takes no step and publishes nothing; it saves, hears a stop, and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from learner_jax.checkpoints.checkpoints import Checkpoints
from learner_jax.hosts.hosts import Hosts
from learner_jax.loop import holding as module
from learner_jax.loop.holding import Holding
from learner_jax.training.engine import Engine
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.weights.store import WeightStore
from tests.support.host_threads import on_hosts
from tests.support.learner_runs import Records, assert_same_parameters, fill, run
from tests.support.whole_run import engine, params

__all__ = ["engine", "params"]  # fixtures

HELD = "entry 7 was rolled back"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)


def asked(answers: Iterable[Any]) -> Callable[[], Any]:
    left = iter(answers)
    return lambda: next(left)


def holding(hosts: Hosts, hold: Iterable[str | None], stop: Iterable[bool]) -> tuple[Holding, list[str]]:
    did: list[str] = []

    def log(event: str, **fields: Any) -> None:
        did.append(f"{event} {fields['held']} at {fields['step']}")

    return Holding(
        hosts,
        asked(hold),
        asked(stop),
        begun=lambda: did.append("begun"),
        meanwhile=lambda: did.append("meanwhile"),
        log=log,
    ), did


def test_a_hold_is_told_once_and_ends_where_it_began() -> None:
    held, did = holding(Hosts(), [None, HELD, HELD, "another", None, None], [False] * 6)
    assert held.may_go_on(3)
    assert did == []
    assert held.may_go_on(4)
    assert did == ["hold True at 3", "begun", "meanwhile", "meanwhile", "hold False at 3"]
    assert held.may_go_on(5)
    assert len(did) == 5


def test_a_stop_ends_a_hold() -> None:
    held, did = holding(Hosts(), [HELD] * 3, [False, False, True])
    assert not held.may_go_on(1)
    assert did == ["hold True at 0", "begun", "meanwhile", "hold False at 0"]


def test_all_hosts_hold_by_what_the_leader_read_and_stop_where_one_is_asked_to() -> None:
    def program(hosts: Hosts) -> tuple[list[bool], list[str]]:
        # A follower that asked itself would raise: it has nothing to answer.
        hold = [None, HELD, HELD, None, HELD, HELD] if hosts.is_leader else []
        stop = [False] * 5 + [not hosts.is_leader]
        held, did = holding(hosts, hold, stop)
        return [held.may_go_on(step) for step in (1, 2, 3)], did

    first, second = on_hosts(2, program)
    assert first == second
    assert first[0] == [True, True, False]
    once = ["begun", "meanwhile", "hold False at 1"]
    assert first[1] == ["hold True at 1", *once, "hold True at 2", "begun", "hold False at 2"]


def test_a_held_run_trains_and_publishes_nothing_and_saves_and_comes_to_the_same_weights(
    engine: Engine, params: Any, tmp_path: Path
) -> None:
    """Held before step 4, which no checkpoint would follow by itself: `every` is 2."""
    whole, broken = tmp_path / "whole", tmp_path / "held"
    fill(whole, 12)
    run(engine, params, whole)
    fill(broken, 12)
    log, seen = Records(), list[tuple[int, list[int], int | None, int]]()

    def hold() -> str | None:
        if len(log.steps()) != 3 or len(seen) >= 40:
            return None
        progress = queue.admin.progress()
        seen.append((progress.completed_steps, store.versions(), checkpoints.latest_step(), progress.num_leased))
        return HELD

    queue, store = TrajectoryQueue(broken / "state.db"), WeightStore(broken / "weights", "test")
    checkpoints = Checkpoints(broken / "checkpoints", keep=2)
    try:
        outcome, _ = run(engine, params, broken, log=log, hold=hold)
        progress = queue.admin.progress()
    finally:
        checkpoints.close()
        queue.close()
    assert outcome.reason == "finished"
    steps, versions, _, leased = zip(*seen, strict=True)
    assert (set(steps), set(leased)) == ({3}, {0}), "no step, and no group that a lease could lose"
    assert versions[-1] == versions[5] == [1, 2, 3, 4]
    assert [record["step"] for record in log if record["event"] == "checkpoint"] == [2, 3, 4, 6]
    assert [(record["held"], record["step"]) for record in log if record["event"] == "hold"] == [(True, 3), (False, 3)]
    assert progress.num_acknowledged == 12
    assert_same_parameters(broken, whole)


def test_a_stop_while_held_leaves_a_checkpoint_and_the_next_life_goes_on(
    engine: Engine, params: Any, tmp_path: Path
) -> None:
    fill(tmp_path, 12)
    log = Records()
    outcome, _ = run(
        engine,
        params,
        tmp_path,
        log=log,
        hold=lambda: HELD if len(log.steps()) == 3 else None,
        should_stop=lambda: log[-1]["event"] == "hold" or (log[-1]["event"] in ("checkpoint", "stopping")),
    )
    assert (outcome.reason, outcome.position.completed_steps) == ("stopped", 3)
    assert [record["event"] for record in log][-1] == "stopping"
    queue = TrajectoryQueue(tmp_path / "state.db")
    assert queue.admin.progress().num_acknowledged == 6
    assert not queue.admin.progress().finished
    queue.close()
    _, second = run(engine, params, tmp_path, hold=lambda: None)
    assert [record["step"] for record in second.steps()] == [4, 5, 6]


def test_a_learner_that_starts_while_held_saves_where_it_stands_and_takes_no_step(
    engine: Engine, params: Any, tmp_path: Path
) -> None:
    fill(tmp_path, 12)
    log = Records()
    outcome, _ = run(
        engine, params, tmp_path, log=log, hold=lambda: HELD, should_stop=lambda: log[-1]["event"] == "checkpoint"
    )
    assert (outcome.reason, log.steps()) == ("stopped", [])
    assert WeightStore(tmp_path / "weights", "test").versions() == [1]
