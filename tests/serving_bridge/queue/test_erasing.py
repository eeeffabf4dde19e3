"""Groups whose user withdrew, on both engines: no payload is left in any state, and nobody is in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import Clock, Place, clock, execute, lease, place, put, train

__all__ = ["clock", "place"]  # fixtures
NAMES = [f"run/{number}" for number in range(6)]


@pytest.fixture(params=["rows", "files"])
def queue(request: pytest.FixtureRequest, place: Place, tmp_path: Path) -> TrajectoryQueue:
    """Groups 0 to 4: dead, trained, leased, ready, and one of somebody else; 5 is not there yet."""
    blob_bytes = 2**16 if request.param == "rows" else 1
    queue = place.open(blobs=tmp_path / "blobs", blob_bytes=blob_bytes, erases=True)
    for number in range(5):
        put(queue, number)
    assert lease(queue, 3) == NAMES[:3]
    queue.consumer.bury("run/0", "why")
    train(queue, ["run/1"])
    return queue


def held(queue: TrajectoryQueue, folder: Path) -> list[str]:
    """States of groups whose payload is in a row, and of those whose is in a file that is there."""
    rows = execute(queue, "SELECT state FROM groups JOIN payloads USING (sequence) ORDER BY sequence")
    files = {path.name for path in (folder / "blobs").rglob("*") if path.is_file()}
    named = execute(queue, "SELECT state, blob FROM groups WHERE blob IS NOT NULL ORDER BY sequence")
    return [state for (state,) in rows] + [state for state, blob in named if blob in files]


def test_nothing_is_left_and_work_goes_on(queue: TrajectoryQueue, place: Place, tmp_path: Path) -> None:
    assert held(queue, tmp_path) == ["dead", "trained", "leased", "ready", "ready"]
    mine = [*NAMES[:4], NAMES[5]]
    assert queue.admin.erase(mine, "withdrawn")
    assert held(queue, tmp_path) == ["ready"]
    assert not list((tmp_path / "blobs").glob("spare/*"))
    assert put(queue, 3, 5) == 0  # whoever was about to put one does so in vain
    train(queue, ["run/2"], step=2)  # it was read before
    queue.consumer.acknowledge(["run/1", "run/2"])
    assert lease(queue) == ["run/4"]
    assert queue.admin.dead_letters() == []
    assert queue.admin.erase(mine, "withdrawn")
    assert held(queue, tmp_path) == ["leased"]


def test_a_learner_that_starts_again_finds_nothing_to_read(queue: TrajectoryQueue, place: Place, clock: Clock) -> None:
    queue.admin.erase(NAMES[:4], "withdrawn")
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    assert lease(queue) == ["run/4"]
    assert {name for name, _ in queue.admin.dead_letters()} == {"run/1", "run/2"}
    assert queue.admin.requeue() == ["run/1", "run/2"]
    assert lease(queue) == []


def test_files_in_a_place_that_is_not_known_are_not_forgotten(place: Place, tmp_path: Path) -> None:
    queue = place.open(blobs=tmp_path / "blobs", blob_bytes=1, erases=True)
    put(queue, 0)
    elsewhere = TrajectoryQueue(database=queue.database)
    assert not elsewhere.admin.erase(["run/0"], "withdrawn")
    assert queue.admin.erase(["run/0"], "withdrawn")
    assert held(queue, tmp_path) == []
