"""The queue's state machine on a real SQLite file: effect once, leases, staleness, recovery, bad files."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import apsw
import pytest

from serving_bridge.database import DatabaseError, DiskFullError
from serving_bridge.queue import LeaseLostError, QueueError, TrajectoryQueue
from serving_bridge.staleness import Pace, dispatch_room, is_stale
from tests.trajectories import make_group


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(path: Path, clock: Clock) -> TrajectoryQueue:
    return TrajectoryQueue(path, lease_s=60, max_tries=2, clock=clock)


PACE = Pace(max_staleness=1, groups_per_step=2, total_steps=10)


def lease(queue: TrajectoryQueue, count: int = 10, *, version: int = 1, max_staleness: int = 5) -> list[str]:
    report = queue.lease_groups(count, trained_version=version, max_staleness=max_staleness)
    return [group[0].group_id for group in report.groups]


def test_put_is_idempotent_and_leases_come_oldest_first(queue: TrajectoryQueue) -> None:
    groups = [(i, make_group(f"run/{i}", seed=i)) for i in range(3)]
    assert queue.put(groups) == 3
    assert queue.put(groups[:2]) == 0
    assert lease(queue, 2) == ["run/0", "run/1"]
    assert lease(queue) == ["run/2"]
    assert lease(queue) == []


def test_a_group_is_never_available_again_after_training(queue: TrajectoryQueue) -> None:
    queue.put([(0, make_group("run/0"))])
    lease(queue)
    queue.mark_trained(["run/0"], completed_steps=1, trained_version=2)
    queue.acknowledge(["run/0"])
    assert queue.put([(0, make_group("run/0"))]) == 0
    assert lease(queue) == []
    progress = queue.progress()
    assert (progress.num_acknowledged, progress.completed_steps, progress.trained_version) == (1, 1, 2)


def test_acknowledge_frees_only_what_was_trained(queue: TrajectoryQueue) -> None:
    queue.put([(0, make_group("run/0"))])
    queue.acknowledge(["run/0"])
    assert lease(queue) == ["run/0"]


def test_expired_lease_returns_and_the_late_consumer_is_fenced_off(
    queue: TrajectoryQueue, path: Path, clock: Clock
) -> None:
    queue.put([(0, make_group("run/0"))])
    assert lease(queue) == ["run/0"]
    clock.now_s += 61
    other = TrajectoryQueue(path, lease_s=60, max_tries=2, clock=clock)
    assert lease(other) == ["run/0"]
    with pytest.raises(LeaseLostError, match="run/0"):
        queue.mark_trained(["run/0"], completed_steps=1, trained_version=2)
    assert queue.progress().completed_steps == 0
    other.mark_trained(["run/0"], completed_steps=1, trained_version=2)


def test_too_many_tries_make_a_dead_letter_that_keeps_its_reason(queue: TrajectoryQueue) -> None:
    queue.put([(0, make_group("run/0"))])
    for _ in range(2):
        assert lease(queue) == ["run/0"]
        queue.reject("run/0", "the learner choked")
    assert lease(queue) == []
    assert queue.dead_letters() == [("run/0", "the learner choked")]


def test_expired_leases_also_end_as_dead_letters(queue: TrajectoryQueue, clock: Clock) -> None:
    queue.put([(0, make_group("run/0"))])
    for _ in range(2):
        assert lease(queue) == ["run/0"]
        clock.now_s += 61
    assert lease(queue) == []
    assert queue.dead_letters() == [("run/0", "lease expired")]


def test_damaged_payload_becomes_a_dead_letter_and_the_rest_goes_on(queue: TrajectoryQueue, path: Path) -> None:
    queue.put([(i, make_group(f"run/{i}")) for i in range(2)])
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE groups SET payload = substr(payload, 1, 40) WHERE group_id = 'run/0'")
    assert lease(queue) == ["run/1"]
    ((group_id, reason),) = queue.dead_letters()
    assert group_id == "run/0"
    assert "not a group of trajectories" in reason


def test_stale_groups_are_dropped_counted_and_their_place_refunded(queue: TrajectoryQueue) -> None:
    assert queue.claim_prompts("w", 10, PACE, served_step=0) == [0, 1, 2, 3]
    queue.put([(i, make_group(f"run/{i}", version=1)) for i in range(4)])
    assert queue.claim_prompts("w", 10, PACE, served_step=0) == []
    report = queue.lease_groups(2, trained_version=9, max_staleness=1)
    assert report.groups == []
    assert report.num_dropped_stale == 4
    assert queue.progress().num_dropped == 4
    assert queue.claim_prompts("w", 10, PACE, served_step=0) == [4, 5, 6, 7]


def test_gate_opens_only_with_steps_that_the_fleet_serves(queue: TrajectoryQueue) -> None:
    assert queue.claim_prompts("w", 10, PACE, served_step=0) == [0, 1, 2, 3]
    queue.put([(i, make_group(f"run/{i}")) for i in range(4)])
    trained = lease(queue, 2)
    queue.mark_trained(trained, completed_steps=1, trained_version=2)
    assert queue.claim_prompts("w", 10, PACE, served_step=0) == []
    assert queue.claim_prompts("w", 10, PACE, served_step=1) == [4, 5]


def test_claims_survive_their_worker_and_are_handed_on(queue: TrajectoryQueue, path: Path, clock: Clock) -> None:
    assert queue.claim_prompts("a", 2, PACE, served_step=0) == [0, 1]
    again = TrajectoryQueue(path, lease_s=60, clock=clock)
    assert again.resume_claims("a") == [0, 1]
    assert again.resume_claims("b") == []
    clock.now_s += 61
    assert again.claim_prompts("b", 1, PACE, served_step=0) == [0]
    assert again.claim_prompts("b", 9, PACE, served_step=0) == [1, 2, 3]


def test_recovery_agrees_with_the_checkpoint(queue: TrajectoryQueue, path: Path) -> None:
    queue.put([(i, make_group(f"run/{i}")) for i in range(4)])
    assert lease(queue, 3) == ["run/0", "run/1", "run/2"]
    queue.mark_trained(["run/0"], completed_steps=1, trained_version=2)
    queue.mark_trained(["run/1"], completed_steps=2, trained_version=3)
    restarted = TrajectoryQueue(path)
    restarted.recover(["run/0", "run/77"], completed_steps=1, prompt_cursor=9)
    assert lease(restarted) == ["run/1", "run/2", "run/3"]
    assert restarted.put([(77, make_group("run/77"))]) == 0
    assert restarted.progress().completed_steps == 1
    assert restarted.prompt_cursor() == 9
    with pytest.raises(LeaseLostError):
        queue.mark_trained(["run/2"], completed_steps=3, trained_version=4)


def _claim_many(path: str, worker: str, results: multiprocessing.Queue) -> None:
    queue = TrajectoryQueue(path)
    pace = Pace(max_staleness=0, groups_per_step=200, total_steps=1)
    mine: list[int] = []
    while got := queue.claim_prompts(worker, 3, pace, served_step=0):
        mine += got
    results.put(mine)


def test_concurrent_workers_share_prompts_without_overlap(path: Path) -> None:
    TrajectoryQueue(path).close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_claim_many, args=(str(path), f"w{i}", results)) for i in range(3)]
    for worker in workers:
        worker.start()
    claimed = sorted(index for _ in workers for index in results.get(timeout=60))
    for worker in workers:
        worker.join()
    assert claimed == list(range(200))


def test_foreign_and_newer_files_are_refused(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE other (x)")
    with pytest.raises(DatabaseError, match="another program"):
        TrajectoryQueue(path)
    path.unlink()
    TrajectoryQueue(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 7")
    with pytest.raises(DatabaseError, match="schema version 7, this build reads 1"):
        TrajectoryQueue(path)
    path.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(DatabaseError, match="not an SQLite database"):
        TrajectoryQueue(path)


def test_full_disk_refuses_the_put_and_loses_nothing(queue: TrajectoryQueue, path: Path) -> None:
    queue.put([(0, make_group("run/0"))])
    queue._db.pragma("max_page_count", queue._db.pragma("page_count") + 2)
    with pytest.raises(DiskFullError, match="free disk space"):
        queue.put([(i, make_group(f"run/{i}", size=8, answer_tokens=500)) for i in range(1, 4)])
    assert lease(TrajectoryQueue(path)) == ["run/0"]


def test_committed_put_survives_a_killed_process(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_put_then_die, args=(str(path),))
    worker.start()
    worker.join()
    assert worker.exitcode == -9
    assert lease(TrajectoryQueue(path)) == ["run/0"]


def _put_then_die(path: str) -> None:
    import os
    import signal

    queue = TrajectoryQueue(path)
    queue.put([(0, make_group("run/0"))])
    queue._db.execute("BEGIN IMMEDIATE")
    queue._db.execute("INSERT INTO groups (group_id, state, oldest_version, created_s) VALUES ('x', 'ready', 0, 0)")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_gate_bounds_staleness_of_every_in_order_group(max_staleness: int, lag: int) -> None:
    """Simulates a fleet that serves `lag` steps behind: consumed in order, no group is ever too stale."""
    pace = Pace(max_staleness=max_staleness, groups_per_step=3, total_steps=40)
    waiting: list[int] = []
    completed = 0
    worst = 0
    for tick in range(400):
        served = max(0, completed - (lag if tick % (lag + 2) else 0))
        room = dispatch_room(pace, completed_steps=completed, served_step=served, outstanding=len(waiting), running=0)
        waiting += [served] * room
        if len(waiting) >= pace.groups_per_step and completed < pace.total_steps:
            batch, waiting = waiting[: pace.groups_per_step], waiting[pace.groups_per_step :]
            worst = max(worst, completed - min(batch))
            assert not any(
                is_stale(trained_version=completed, oldest_version=v, max_staleness=max_staleness) for v in batch
            )
            completed += 1
    assert completed == pace.total_steps
    assert waiting == []
    if max_staleness and lag:
        assert worst > 0


def test_gate_after_a_learner_restart_does_not_trust_a_fleet_that_is_ahead() -> None:
    pace = Pace(max_staleness=0, groups_per_step=4, total_steps=100)
    assert dispatch_room(pace, completed_steps=5, served_step=9, outstanding=0, running=0) == 4


def test_busy_database_is_reported(path: Path) -> None:
    queue = TrajectoryQueue(path)
    queue._db.set_busy_timeout(50)
    holder = apsw.Connection(str(path))
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked by another process"):
        queue.put([(0, make_group("run/0"))])
    holder.execute("ROLLBACK")
    assert queue.put([(0, make_group("run/0"))]) == 1


def test_names_are_leased_and_read_elsewhere(queue: TrajectoryQueue, path: Path, clock: Clock) -> None:
    queue.put([(i, make_group(f"run/{i}", seed=i, answer_tokens=2 + 4 * i)) for i in range(3)])
    leased = queue.lease(2, trained_version=1, max_staleness=5)
    assert leased.group_ids == ["run/0", "run/1"]
    assert leased.num_bytes[0] < leased.num_bytes[1]
    reader = TrajectoryQueue(path, clock=clock)
    groups = reader.read(["run/1", "run/0"]).groups
    assert [groups[name][0].group_id for name in leased.group_ids] == leased.group_ids
    assert len(groups["run/1"][0].tokens) == 9
    assert lease(reader) == ["run/2"]
    with pytest.raises(QueueError, match=r"run/9 is not leased in .*state\.db.*same queue"):
        reader.read(["run/9"])
    queue.mark_trained(leased.group_ids, completed_steps=1, trained_version=2)
    assert queue.progress().num_trained == 2


def test_stale_groups_are_dropped_from_leases_of_names(queue: TrajectoryQueue) -> None:
    queue.put([(i, make_group(f"run/{i}", version=1 + 5 * i)) for i in range(2)])
    leased = queue.lease(2, trained_version=7, max_staleness=2)
    assert (leased.group_ids, leased.num_dropped_stale) == (["run/1"], 1)


def test_a_group_that_can_not_be_read_is_buried(queue: TrajectoryQueue, path: Path) -> None:
    queue.put([(0, make_group("run/0"))])
    queue._db.execute("UPDATE groups SET payload = ?", (b"nonsense",))
    queue.lease(1, trained_version=1, max_staleness=5)
    reader = TrajectoryQueue(path)
    read = reader.read(["run/0"])
    assert read.groups == {}
    assert "not a group of trajectories" in read.unreadable["run/0"]
    with pytest.raises(LeaseLostError):
        reader.bury("run/0", "not mine")
    queue.bury("run/0", read.unreadable["run/0"])
    assert queue.dead_letters() == [("run/0", read.unreadable["run/0"])]
    assert queue.progress().num_leased == 0
