"""The database that a job would use: looked at, and left as it is."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest

from serving_bridge.checks.database import database_findings
from serving_bridge.queue.queue import TrajectoryQueue


def sqlite_findings(path: Path) -> list[str]:
    return [str(finding) for finding in database_findings(str(path), timeout_s=5, lease_s=60)]


def test_a_database_file_that_cannot_be_the_queue(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to have been one" * 10)
    assert "an SQLite database at" in sqlite_findings(tmp_path / "text")[0]
    assert "got a folder" in sqlite_findings(tmp_path)[0]
    assert "is a file" in sqlite_findings(tmp_path / "text" / "below.db")[0]
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("PRAGMA application_id = 7")
        connection.execute("CREATE TABLE t (x)")
    assert "another program's database" in sqlite_findings(foreign)[0]
    assert sqlite_findings(tmp_path / "new.db") == []
    assert not (tmp_path / "new.db").exists()


def test_the_queues_own_file_is_read_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    TrajectoryQueue(path).close()
    before = path.read_bytes()
    assert sqlite_findings(path) == []
    assert path.read_bytes() == before
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    assert "got 999 in" in sqlite_findings(path)[0]


@pytest.mark.postgres
def test_a_server_without_the_right_to_make_a_schema_is_refused(postgres_url: str) -> None:
    import psycopg
    from psycopg import sql

    role = f"preflight_{os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            place = connection.info
            url = f"postgresql://{role}@/{place.dbname}?host={place.host}&port={place.port}&schema=preflight_none"
            (finding,) = database_findings(url, timeout_s=5, lease_s=60)
            assert "to have the right to create schema preflight_none" in str(finding)
            assert list(database_findings(postgres_url, timeout_s=5, lease_s=60)) == []
            names = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'preflight_none'").fetchall()
            assert names == []
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_server_that_is_away_may_heal() -> None:
    started = time.monotonic()
    (finding,) = database_findings("postgresql://u@127.0.0.1:1/d", timeout_s=5, lease_s=60)
    assert finding.may_heal
    assert "refused" in str(finding)
    assert time.monotonic() - started < 30
