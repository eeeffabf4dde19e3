"""Looks at the queue's database that change nothing and hold nobody up."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

from learner_jax.runtime import WeirError
from serving_bridge.database import DatabaseError, Session, look
from serving_bridge.database.postgres_url import split_url
from serving_bridge.queue import glance
from tests.support.queue_engines import Place, place
from tests.support.trajectories import make_group

__all__ = ["place"]


def completed(session: Session) -> int:
    return int(session.execute("SELECT value FROM progress WHERE key = 'completed_steps'")[0][0])


def test_a_look_sees_what_was_committed_while_a_writer_goes_on(place: Place) -> None:
    queue = place.open()
    queue.producer.put([(0, make_group("run/0"))])
    seen: list[int] = []

    def work(session: Session) -> None:
        session.execute("UPDATE progress SET value = 5 WHERE key = 'completed_steps'")
        seen.append(look(place.url, completed))

    queue.database.write(work)
    assert seen == [0]
    assert look(place.url, completed) == 5


def test_a_look_cannot_write(place: Place) -> None:
    place.open()
    with pytest.raises(WeirError, match="can't be read now"):
        look(place.url, lambda session: session.execute("UPDATE progress SET value = 9"))
    assert look(place.url, completed) == 0


def test_a_look_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="does not exist: expected the queue of a run that has begun"):
        look(tmp_path / "state.db", completed)
    assert list(tmp_path.iterdir()) == []


def test_an_idle_file_is_read_without_another_beside_it(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "state.db"))
    place.open().close()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert look(place.url, completed) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_look_holds_up_no_checkpoint(tmp_path: Path) -> None:
    """A reader that stayed in its transaction would keep the log from being cut."""
    place = Place(str(tmp_path / "state.db"))
    queue = place.open()
    for number in range(3):
        queue.producer.put([(number, make_group(f"run/{number}"))])
        look(place.url, completed)
    connection = apsw.Connection(place.url)
    connection.pragma("journal_mode", "wal")
    assert connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE) == (0, 0)
    connection.close()
    assert os.path.getsize(f"{place.url}-wal") == 0


def test_a_file_that_somebody_holds_alone_is_not_waited_for(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "state.db"))
    place.open()
    connection = apsw.Connection(place.url)
    connection.pragma("locking_mode", "exclusive")
    place.opened[0].close()
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseError, match="can't be read now"):
        look(place.url, completed)
    connection.execute("ROLLBACK")
    connection.close()


def test_the_newest_groups_are_glanced_at(place: Place, tmp_path: Path) -> None:
    queue = place.open(blobs=tmp_path / "blobs", blob_bytes=2000)
    for number in range(4):
        queue.producer.put([(number, make_group(f"run/{number}", answer_tokens=2 if number % 2 else 400))])
    lease = queue.consumer.lease_groups(1, trained_version=1, max_staleness=3)
    queue.consumer.mark_trained([lease.groups[0][0].group_id], completed_steps=1, trained_version=2)
    found = glance(place.url, blobs=tmp_path / "blobs", max_groups=3)
    assert [group[0].group_id for group in found.groups] == ["run/3", "run/2", "run/1"]
    assert (found.progress.num_ready, found.progress.num_trained, found.progress.completed_steps) == (3, 1, 1)
    assert [group[0].group_id for group in glance(place.url, max_groups=3).groups] == ["run/3", "run/1"]
    small = glance(place.url, blobs=tmp_path / "blobs", max_group_bytes=2000)
    assert [group[0].group_id for group in small.groups] == ["run/3", "run/1"]


@pytest.mark.postgres
def test_a_look_at_a_server_is_of_its_schema(postgres_url: str) -> None:
    assert split_url(postgres_url)
    with pytest.raises(DatabaseError, match="can't be read now"):
        look(f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema=nobody_made_this", completed)
