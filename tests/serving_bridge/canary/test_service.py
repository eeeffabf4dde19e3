"""The controller as a process: it looks in time by a clock that nobody sets, survives cuts, and stands by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_bridge.canary import Service, TrainingNote, read_note, write_note
from serving_bridge.database import DatabaseError
from tests.support.canary_world import NAMESPACE, POLICY, CanaryWorld, canary_world
from tests.support.queue_engines import Clock

__all__ = ["canary_world"]  # a fixture


def serviced(
    world: CanaryWorld, root: Path, name: str = "controller", standing: list[dict[str, Any]] | None = None
) -> tuple[Service, Clock, list[dict[str, Any]]]:
    standing = [] if standing is None else standing
    ticks, told = Clock(), list[dict[str, Any]]()
    service = Service(
        world.place(),
        world.controller(name),
        root,
        monotonic=ticks,
        purge=lambda: world.log.purge(0.0),
        log=lambda event, **fields: told.append({"event": event, **fields}),
        standing=lambda **fields: standing.append(fields),
    )
    return service, ticks, told


def test_it_looks_once_an_interval_and_ends_with_a_note_to_training(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    service, ticks, told = serviced(world, tmp_path)
    assert (service.turn(), service.pause_s) == (None, 1.0)
    world.start(world.controller("cli")).release()
    world.pass_time()
    for _ in range(5):
        service.turn()
    assert world.rollouts.latest(NAMESPACE)[0].looks == 1, "not before the next interval"
    world.errors["canary"] = 0.9
    world.pass_time()
    ticks.now_s += 60
    service.turn()
    assert world.agreement() == ("rolled_back", None, world.stable, 0.0, 0.0)
    service.turn()
    note = read_note(tmp_path, NAMESPACE)
    assert note is not None
    assert (note.hold, note.entry, note.good_entry) == (True, world.candidate, world.stable)
    world.rollouts.release(NAMESPACE)
    service.turn()
    note = read_note(tmp_path, NAMESPACE)
    assert note is not None
    assert not note.hold
    assert [one["event"] for one in told] == ["look", "rollout", "look", "rollout"]
    assert world.index.aliases.holder(NAMESPACE) is None, "whoever starts the next one finds the lease free"


def test_a_policy_lets_training_begin_anew_by_itself(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    service, ticks, _ = serviced(world, tmp_path)
    world.start(world.controller("cli"), POLICY.model_copy(update={"after_rollback": "anew"})).release()
    world.errors["canary"] = 0.9
    for _ in range(2):
        world.pass_time()
        ticks.now_s += 60
        service.turn()
        note = read_note(tmp_path, NAMESPACE)
        assert note is not None
        assert (note.hold, note.anew) == (False, world.rollouts.latest(NAMESPACE)[0].phase == "rolled_back")
    service.turn()
    note = read_note(tmp_path, NAMESPACE)
    assert note is not None
    assert (note.hold, note.anew, note.good_entry) == (False, True, world.stable)
    world.rollouts.release(NAMESPACE)
    service.turn()
    note = read_note(tmp_path, NAMESPACE)
    assert note is not None
    assert (note.hold, note.anew) == (False, False), "somebody decides otherwise"


def test_the_next_rollout_lets_training_go_on(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    service, _, _ = serviced(world, tmp_path)
    write_note(tmp_path, NAMESPACE, TrainingNote(True, "worse", 9, world.candidate, "", 0, world.stable, "", 0))
    world.start(world.controller("cli")).release()
    service.turn()
    note = read_note(tmp_path, NAMESPACE)
    assert note is not None
    assert (note.hold, note.entry, note.good_entry) == (False, world.candidate, world.stable)


def test_a_wall_clock_that_is_set_back_delays_no_look(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    service, ticks, _ = serviced(world, tmp_path)
    world.start(world.controller("cli")).release()
    service.turn()
    world.clock.now_s -= 3600
    world.answers()
    ticks.now_s += 60
    service.turn()
    rollout = world.rollouts.latest(NAMESPACE)[0]
    assert (rollout.looks, rollout.phase, rollout.state.step) == (2, "running", 0)


def test_a_cut_database_is_waited_for_and_nothing_is_decided_twice(
    canary_world: CanaryWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = canary_world
    service, _, told = serviced(world, tmp_path)
    world.start(world.controller("cli")).release()
    world.pass_time()
    database = world.index.aliases._db
    real = database.write

    def lost_after_commit(*given: Any, **more: Any) -> None:
        real(*given, **more)
        raise DatabaseError("the connection was lost")

    monkeypatch.setattr(database, "write", lost_after_commit)
    for _ in range(3):
        service.turn()
    assert [one["error"] for one in told] == ["the connection was lost"], "told once"
    monkeypatch.setattr(database, "write", real)
    service.turn()
    rollout = world.rollouts.latest(NAMESPACE)[0]
    assert [one.look for one in world.rollouts.decisions(rollout.rollout)] == list(range(1, rollout.looks + 1))
    step = rollout.policy.steps[rollout.state.step]
    assert world.agreement()[3] == rollout.policy.share_of(step)


def test_one_stands_by_while_another_is_at_work(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    world.start(world.controller("first"))
    second, ticks, told = serviced(world, tmp_path, "second")
    world.pass_time(5)
    assert second.turn() is None
    assert "first holds the aliases" in told[0]["error"]
    world.clock.now_s += 21
    ticks.now_s += 1
    assert second.turn() is not None
    assert world.rollouts.latest(NAMESPACE)[0].looks == 1


def test_files_out_of_reach_are_told_and_the_next_turn_tries_again(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    (tmp_path / "training").write_text("no folder")
    service, _, told = serviced(world, tmp_path)
    world.start(world.controller("cli")).release()
    for _ in range(2):
        assert service.turn() is None
    assert [one["event"] for one in told if one["event"] == "waits"] == ["waits"]
    (tmp_path / "training").unlink()
    assert service.turn() is not None
    assert read_note(tmp_path, NAMESPACE) is not None


def test_it_tells_where_a_rollout_stands_and_whether_it_leads(canary_world: CanaryWorld, tmp_path: Path) -> None:
    world = canary_world
    first, second = list[dict[str, Any]](), list[dict[str, Any]]()
    leader, ticks, _ = serviced(world, tmp_path, "leader", first)
    other, _, _ = serviced(world, tmp_path, "other", second)
    leader.turn()
    assert first[-1] == {"open": 0, "leads": 0}
    world.start(world.controller("cli")).release()
    world.pass_time()
    leader.turn()
    other.turn()
    assert (first[-1]["open"], first[-1]["leads"], first[-1]["phase"], first[-1]["step"]) == (1, 1, "running", 2)
    assert second[-1] == first[-1] | {"leads": 0}, "who stands by tells the same, also after the leader has gone"
    world.errors["canary"] = 0.9
    world.pass_time()
    ticks.now_s += 60
    leader.turn()
    assert (first[-1]["open"], first[-1]["phase"], first[-1]["looked_s"]) == (0, "rolled_back", world.clock.now_s)
    leader.turn()
    assert first[-1]["leads"] == 0
