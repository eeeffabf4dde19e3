"""Several schemas in one database: each keeps a version of its own, on both engines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving_bridge.database import (
    APPLICATION_ID,
    Database,
    DatabaseError,
    Migration,
    Schema,
    open_database,
)
from serving_bridge.queue import TrajectoryQueue

FIRST = Migration(1, ("CREATE TABLE pets (name TEXT PRIMARY KEY, age {int} NOT NULL){strict}",))
SECOND = Migration(2, ("ALTER TABLE pets ADD COLUMN weight {float}",), postgres_only=("COMMENT ON TABLE pets IS 'x'",))
OLD, NEW = Schema("pets", (FIRST,)), Schema("pets", (FIRST, SECOND))
OTHER = Schema("plants", (Migration(1, ("CREATE TABLE plants (name TEXT PRIMARY KEY){strict}",)),))


def _pets(database: Database) -> list[tuple[object, ...]]:
    return database.read(lambda session: session.execute("SELECT * FROM pets ORDER BY name"))


def test_an_older_schema_is_brought_up_to_date_with_its_rows(database_url: str) -> None:
    database = open_database(database_url, schema=OLD)
    database.write(lambda session: session.execute("INSERT INTO pets VALUES ('rex', 3)"))
    database.close()
    for _ in range(2):
        database = open_database(database_url, schema=NEW)
        assert _pets(database) == [("rex", 3, None)]
        database.close()
    with pytest.raises(DatabaseError, match="pets schema version 2, this build reads 1"):
        open_database(database_url, schema=OLD)


@pytest.mark.parametrize("queue_first", [True, False])
def test_the_queue_and_other_schemas_share_a_database(database_url: str, queue_first: bool) -> None:
    if queue_first:
        TrajectoryQueue(database_url).close()
    open_database(database_url, schema=NEW).close()
    open_database(database_url, schema=OTHER).close()
    queue = TrajectoryQueue(database_url)
    assert queue.admin.progress().next_prompt == 0
    queue.close()
    for schema in (NEW, OTHER):
        database = open_database(database_url, schema=schema)
        assert database.read(lambda session: session.execute("SELECT count(*) FROM plants")) == [(0,)]
        assert _pets(database) == []
        database.close()


def test_many_that_open_it_at_once_make_it_once(database_url: str) -> None:
    def work(number: int) -> int:
        database = open_database(database_url, schema=(NEW, OTHER)[number % 2])
        database.close()
        return number

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(work, range(6))) == list(range(6))
    database = open_database(database_url, schema=NEW)
    versions = database.read(lambda session: session.execute("SELECT name, version FROM weir_schemas ORDER BY name"))
    assert versions == [("pets", 2), ("plants", 1)]
    database.close()


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    import apsw

    path = tmp_path / "other.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE pets (x)")
    with pytest.raises(DatabaseError, match="SQLite database of another program"):
        open_database(path, schema=OLD)
    assert connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,)
    connection.close()


@pytest.mark.parametrize(
    ("name", "numbers"), [("Pets", [1]), ("", [1]), ("pets", []), ("pets", [2]), ("pets", [1, 3]), ("pets", [1, 1])]
)
def test_schemas_that_could_not_be_told_apart_are_refused(name: str, numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Schema(name, tuple(Migration(number, ()) for number in numbers))
