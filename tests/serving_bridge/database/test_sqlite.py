"""The queue on a real SQLite file: bad files, full disks, locks, killed processes, older schemas, size."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from learner_jax.contracts.weights import encode_group
from learner_jax.runtime.waits import Waits
from serving_bridge.database.database import (
    Database,
    DatabaseError,
    DiskFullError,
    Session,
    SqliteDatabase,
    absolute_url,
    open_database,
    sqlite_path,
)
from serving_bridge.database.migrations import migrate
from serving_bridge.queue import rows as queue_rows
from serving_bridge.queue.bounds import QueueBounds, QueueFullError
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from tests.conftest import REPOSITORY
from tests.support.queue_engines import PACE, execute, lease, put, train
from tests.support.trajectories import make_group

#: The schema as its first version wrote it.
SCHEMA_1 = """
CREATE TABLE groups (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  group_id TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL CHECK (state IN ('ready', 'leased', 'trained', 'acknowledged', 'dropped', 'dead')),
  oldest_version INTEGER NOT NULL,
  payload BLOB,
  tries INTEGER NOT NULL DEFAULT 0,
  lease_token INTEGER,
  lease_expires_s REAL,
  reason TEXT,
  created_s REAL NOT NULL
) STRICT;
CREATE INDEX groups_by_state ON groups (state, sequence);
CREATE TABLE claims (prompt_index INTEGER PRIMARY KEY, worker TEXT NOT NULL, expires_s REAL NOT NULL) STRICT;
CREATE TABLE progress (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
PRAGMA user_version = 1;
PRAGMA application_id = 1464158546;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def _write_schema_1(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.executescript(SCHEMA_1)
        states = ["acknowledged", "trained", "leased", "ready", "dead", "dropped"]
        for index, state in enumerate(states):
            payload = None if state in ("acknowledged", "dropped") else encode_group(make_group(f"run/0/{index}"))
            raw.execute(
                "INSERT INTO groups (group_id, state, oldest_version, payload, tries, lease_token, lease_expires_s, "
                "reason, created_s) VALUES (?, ?, 1, ?, 1, ?, 9e9, 'why', 5)",
                (f"run/0/{index}", state, payload, None if state == "ready" else index),
            )
        raw.execute("INSERT INTO claims VALUES (6, 'w', 9e9)")
        progress = {"completed_steps": 2, "trained_version": 3, "next_prompt": 7, "next_lease_token": 9}
        raw.executemany("INSERT INTO progress VALUES (?, ?)", progress.items())
    raw.close()


def test_a_file_of_the_first_schema_goes_on(path: Path) -> None:
    _write_schema_1(path)
    queue = TrajectoryQueue(path)
    progress = queue.admin.progress()
    assert (progress.completed_steps, progress.trained_version, progress.next_prompt) == (2, 3, 7)
    assert (progress.num_ready, progress.num_leased, progress.num_trained) == (1, 1, 1)
    assert (progress.num_acknowledged, progress.num_dead, progress.num_dropped) == (1, 1, 1)
    assert queue.producer.resume_claims("w") == [6]
    assert queue.admin.dead_letters() == [("run/0/4", "why")]
    queue.consumer.recover(["run/0/0"], completed_steps=1, prompt_cursor=7)
    assert queue.producer.put([(i, make_group(f"run/0/{i}")) for i in range(6)]) == 0
    assert lease(queue) == ["run/0/1", "run/0/2", "run/0/3"]
    queue.consumer.mark_trained(["run/0/1", "run/0/2", "run/0/3"], completed_steps=2, trained_version=4)
    queue.consumer.acknowledge(["run/0/1", "run/0/2", "run/0/3"])
    queue.admin.requeue()
    assert lease(queue) == ["run/0/4"]
    assert queue.producer.put([(6, make_group("run/0/6"))]) == 1
    assert queue.producer.put([(i, make_group(f"run/0/{i}")) for i in range(7)]) == 0
    TrajectoryQueue(path).close()  # opening again changes nothing
    assert queue.admin.progress().num_ready == 1
    queue.close()


def test_old_rows_stay_until_every_prompt_that_they_may_be_of_has_ended(path: Path) -> None:
    _write_schema_1(path)
    with sqlite3.connect(path) as raw:
        raw.execute("DELETE FROM groups WHERE group_id <> 'run/0/5'")
        raw.execute("UPDATE claims SET prompt_index = 2")
    raw.close()
    queue = TrajectoryQueue(path)
    queue.consumer.acknowledge([])
    assert queue.admin.overview().watermark == 2
    assert queue.producer.put([(5, make_group("run/0/5"))]) == 0
    queue.close()


def test_every_transaction_is_as_durable_as_it_was_asked_to_be(path: Path) -> None:
    database = SqliteDatabase(path, timeout_s=1, waits=Waits())

    def level(session: Session) -> int:
        return int(session.execute("PRAGMA synchronous")[0][0])

    full, normal = 2, 1
    assert database.write(level) == full
    for synced in (False, False, True, True, False, True):
        assert database.write(level, synced=synced) == (full if synced else normal)
    database.write(level, synced=False)
    assert database.read(level) == normal, "reading needs no change of it"
    assert database.write(level) == full
    database.close()


def test_a_migration_that_is_cut_off_leaves_the_old_schema(path: Path) -> None:
    _write_schema_1(path)
    database = SqliteDatabase(path, timeout_s=1, waits=Waits())

    def work(session: Session) -> None:
        migrate(session, "x")
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        database.write(work)
    database.close()
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (1,)
        assert raw.execute("SELECT count(payload) FROM groups").fetchone() == (4,)
    raw.close()
    assert TrajectoryQueue(path).admin.progress().num_ready == 1


def test_foreign_and_newer_files_are_refused(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE other (x)")
    raw.close()
    with pytest.raises(DatabaseError, match="another program"):
        TrajectoryQueue(path)
    path.unlink()
    TrajectoryQueue(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 7")
    raw.close()
    with pytest.raises(DatabaseError, match="schema version 7, this build reads 5"):
        TrajectoryQueue(path)
    path.write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(DatabaseError, match="not an SQLite database"):
        TrajectoryQueue(path)


def test_urls_name_the_same_file_as_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(TrajectoryQueue(f"sqlite:///{path}"), 0)
    assert TrajectoryQueue(path).admin.progress().num_ready == 1
    assert sqlite_path("sqlite:////a%20b/x.db") == Path("/a b/x.db")
    monkeypatch.chdir(path.parent)
    assert absolute_url("sqlite:///state.db", schema="run") == absolute_url("state.db", schema="run") == str(path)
    with pytest.raises(DatabaseError, match=r"mysql://\.\.\.: expected a path, sqlite:///path or postgresql"):
        TrajectoryQueue("mysql://user:secret@host/x")


def test_a_schema_of_its_own_is_added_to_a_server_url() -> None:
    assert absolute_url("postgresql://h/d", schema="demo") == "postgresql://h/d?schema=demo"
    assert absolute_url("postgresql://h/d?sslmode=require", schema="a") == "postgresql://h/d?sslmode=require&schema=a"
    assert absolute_url("postgresql://h/d?schema=x", schema="demo") == "postgresql://h/d?schema=x"


def test_a_queue_in_memory_works_like_any_other() -> None:
    queue = TrajectoryQueue(":memory:")
    put(queue, 0, 1)
    train(queue, lease(queue))
    assert queue.admin.progress().num_trained == 2
    queue.close()


def test_full_disk_refuses_the_put_and_loses_nothing(path: Path) -> None:
    queue = TrajectoryQueue(path, blob_bytes=2**30)
    put(queue, 0)
    ((pages,),) = queue.database.read(lambda session: session.execute("PRAGMA page_count"))
    queue.database.read(lambda session: session.execute(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(DiskFullError, match="free disk space"):
        put(queue, *range(1, 4), size=8, answer_tokens=5000)
    assert lease(TrajectoryQueue(path)) == ["run/0"]
    queue.close()


def test_the_disk_is_waited_for_where_somebody_may_outlive_the_machine(path: Path) -> None:
    """Workers and checkpoints rely on what is put and acknowledged; who holds claims and leases goes down with it."""

    class Noting:
        def __init__(self, inner: Database):
            self.inner, self.name, self.levels = inner, inner.name, list[int]()

        def write(self, work: Callable[[Session], Any], *, synced: bool = True) -> Any:
            def noting(session: Session) -> Any:
                self.levels += [level for (level,) in session.execute("PRAGMA synchronous")]
                return work(session)

            return self.inner.write(noting, synced=synced)

        def read(self, work: Callable[[Session], Any]) -> Any:
            return self.inner.read(work)

        def close(self) -> None:
            self.inner.close()

    full, normal = 2, 1
    database = Noting(open_database(path))
    queue = TrajectoryQueue(database=database)
    queue.producer.claim_prompts("w", 1, PACE, served_step=0)
    put(queue, 0)
    trained = lease(queue)
    train(queue, trained)
    queue.consumer.prompt_cursor()
    queue.consumer.acknowledge(trained)
    assert database.levels == [normal, full, normal, normal, full, full]
    queue.close()


def test_a_checkpoint_s_cursor_brings_the_claims_below_it_to_the_disk(path: Path) -> None:
    """SQLite syncs its log at a commit that appends to it, and at no other."""
    queue = TrajectoryQueue(path)
    queue.consumer.take_over()
    queue.producer.claim_prompts("w", 2, PACE, served_step=0)
    log = path.with_name(f"{path.name}-wal")
    before = log.read_bytes()
    assert queue.consumer.prompt_cursor() == 2
    assert log.read_bytes() != before, "nothing was synced"
    queue.close()


def test_groups_that_are_named_are_looked_up_and_not_looked_for(path: Path) -> None:
    queue = TrajectoryQueue(path)
    statements: list[str] = []

    def work(session: Session) -> list[Any]:
        class Noting:
            dialect = session.dialect

            def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
                statements.append(sql)
                return session.execute("EXPLAIN QUERY PLAN " + sql, parameters)

        return queue_rows.change_named(Noting(), "train", [f"run/{i}" for i in range(16)])  # type: ignore[arg-type]

    ((*_, plan),) = queue.database.write(work)
    assert "(group_id=?)" in plan, (plan, statements)
    queue.close()


def test_busy_database_is_waited_for_and_then_reported(path: Path) -> None:
    waits = Waits()
    queue = TrajectoryQueue(path, timeout_s=0.1, waits=waits)
    holder = apsw.Connection(str(path))
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match=r"the lock of .*state\.db.*database_timeout_s = 0\.1.*another process"):
        put(queue, 0)
    assert waits.current() == []
    holder.execute("ROLLBACK")
    assert put(queue, 0) == 1
    holder.close()


def test_every_commit_is_synced(path: Path) -> None:
    database = open_database(path)
    assert database.read(lambda session: session.execute("PRAGMA synchronous")) == [(2,)]
    assert database.read(lambda session: session.execute("PRAGMA journal_mode")) == [("wal",)]
    database.close()


_DIES = """
import os, signal, sys
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import put
queue = TrajectoryQueue(sys.argv[1])
put(queue, 0)
queue.database.write(lambda session: [
    session.execute("DELETE FROM groups"),
    os.kill(os.getpid(), signal.SIGKILL),
])
"""


def test_committed_put_survives_a_killed_process(path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", _DIES, str(path)], cwd=REPOSITORY)
    assert died.returncode == -signal.SIGKILL
    assert lease(TrajectoryQueue(path)) == ["run/0"]


def test_a_file_does_not_grow_with_what_went_through(path: Path) -> None:
    """Twenty times what it may hold, with a learner that is slower than the workers and dies once."""
    limit = 600_000
    queue = TrajectoryQueue(path, bounds=QueueBounds(max_bytes=limit))
    pace, step, sizes, put_bytes = Pace(100, 4, 10**6), 0, [], 0
    while put_bytes < 20 * limit:
        claimed = queue.producer.claim_prompts("w", 6, pace, served_step=step)
        groups = [(index, make_group(f"run/{index}", size=4, answer_tokens=200)) for index in claimed]
        try:
            queue.producer.put(groups)
            put_bytes += sum(len(encode_group(group)) for _, group in groups)
        except QueueFullError:
            for index, _ in groups:
                queue.producer.release_claim(index)
        trained = lease(queue, 4)
        train(queue, trained, step := step + 1)
        queue.consumer.acknowledge(trained)
        if step == 20:
            queue.consumer.recover([], completed_steps=step, prompt_cursor=0)
        log = Path(f"{path}-wal")
        sizes.append(path.stat().st_size + log.stat().st_size)
    assert len(sizes) > 40
    assert max(sizes) < 2 * limit + 40 * 2**20  # what it holds, and the log at its longest
    assert path.stat().st_size < 3 * limit
    assert execute(queue, "SELECT count(*) FROM groups")[0][0] < 200
    queue.close()
