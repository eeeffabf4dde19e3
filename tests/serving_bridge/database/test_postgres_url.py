"""Which servers are on this machine, what libpq is told so that nobody else learns the password, and where none is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner_jax.runtime.waits import Waits
from serving_bridge.database.database import DatabaseError
from serving_bridge.database.postgres import PostgresDatabase
from serving_bridge.database.postgres_url import _is_local, _protection

SCRAM = "scram-sha-256"


@pytest.mark.parametrize(
    ("settings", "environment", "is_local"),
    [
        ({}, {}, True),
        ({"host": "localhost"}, {}, True),
        ({"host": "127.0.0.3"}, {}, True),
        ({"host": "[::1]"}, {}, True),
        ({"host": "/run/postgresql"}, {}, True),
        ({"host": "@abstract"}, {}, True),
        ({"host": "db.example"}, {}, False),
        ({"host": "10.0.0.3"}, {}, False),
        ({"host": "localhost,db.example"}, {}, False),
        ({"host": "db.example,localhost"}, {}, False),
        ({"host": "localhost,127.0.0.1"}, {}, True),
        ({"host": "localhost", "hostaddr": "10.0.0.3"}, {}, False),
        ({"host": "db.example", "hostaddr": "127.0.0.1"}, {}, False),
        ({"hostaddr": "127.0.0.1"}, {}, True),
        ({}, {"PGHOST": "db.example"}, False),
        ({}, {"PGHOST": "/run/postgresql"}, True),
        ({"host": "localhost"}, {"PGHOST": "db.example"}, True),
        ({}, {"PGHOSTADDR": "10.0.0.3"}, False),
        ({"host": "localhost", "service": "x"}, {}, False),
        ({"host": "localhost"}, {"PGSERVICE": "x"}, False),
    ],
)
def test_all_places_that_may_answer_are_on_this_machine_or_not(
    settings: dict[str, str], environment: dict[str, str], is_local: bool
) -> None:
    assert _is_local(settings, environment) is is_local


def test_a_server_proves_that_it_knows_the_password_too(tmp_path: Path) -> None:
    none = {"PGSSLCERT": str(tmp_path / "none")}
    assert _protection({}, none, "x") == {"require_auth": f"{SCRAM},none"}
    assert _protection({"require_auth": "gss"}, none, "x") == {"require_auth": "gss"}
    far = {"host": "db.example"}
    assert _protection(far, none, "x") == {"sslmode": "verify-full", "require_auth": SCRAM}
    (tmp_path / "own.crt").touch()
    for settings, environment in (
        (far | {"sslcert": str(tmp_path / "own.crt")}, none),
        (far, {"PGSSLCERT": str(tmp_path / "own.crt")}),
    ):
        assert _protection(settings, environment, "x")["require_auth"] == f"{SCRAM},none"
    assert _protection(far | {"require_auth": "gss"}, none, "x")["require_auth"] == "gss"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sslmode": "require"}, "sslmode is require"),
        ({"sslmode": "verify-ca"}, "sslmode is verify-ca"),
        ({"require_auth": "gss,password"}, "require_auth names 'password'"),
        ({"require_auth": "!none"}, "require_auth names '!none'"),
    ],
)
def test_off_this_machine_nothing_less_is_taken(more: dict[str, str], said: str) -> None:
    with pytest.raises(DatabaseError, match=said):
        _protection({"host": "db.example"} | more, {}, "x")


def test_a_server_that_is_not_there_is_told_of_even_by_the_only_attempt(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"check that it runs and can be reached \(.*No such file or directory"):
        PostgresDatabase(f"postgresql:///weir?host={tmp_path}", timeout_s=0.0, waits=Waits())


def test_a_schema_is_made_under_a_lock_that_others_wait_for() -> None:
    class Connection:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def execute(self, statement: Any, parameters: tuple[str, ...] = ()) -> None:
            text = statement if isinstance(statement, str) else statement.as_string()
            self.asked.append(text.split("(")[0].strip())

    connection: Any = Connection()
    database = object.__new__(PostgresDatabase)
    database._schema = "own"
    database._make_schema(connection)
    assert connection.asked == [
        "SELECT pg_advisory_lock",
        'CREATE SCHEMA IF NOT EXISTS "own"',
        "CREATE TABLE IF NOT EXISTS weir_writers",
        "SELECT pg_advisory_unlock",
    ]
