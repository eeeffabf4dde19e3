"""Whether the queue's database can be used, found out without writing to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from serving_bridge.checks.findings import Finding
from serving_bridge.checks.machine import clock_findings, file_findings
from serving_bridge.database import APPLICATION_ID, SCHEMA_VERSION, is_postgres, sqlite_path

_SETTING = "store.database"
_MAGIC = b"SQLite format 3\x00"
#: places in the header of an SQLite file: https://www.sqlite.org/fileformat.html
_USER_VERSION, _APPLICATION_ID = slice(60, 64), slice(68, 72)
#: What a worker's or learner's role needs of tables that are there; who makes them needs more.
_TABLE = "progress"


def database_findings(url: str, *, timeout_s: float, lease_s: float) -> Iterator[Finding]:
    """Whether the database can be reached and used.

    Args:
      timeout_s: bound on connecting to a server.
      lease_s: the shortest lease, for the offset of the server's clock.

    Raises:
      DatabaseError: the URL can't be used.
    """
    if is_postgres(url):
        yield from _postgres_findings(url, timeout_s=timeout_s, lease_s=lease_s)
    else:
        yield from _sqlite_findings(sqlite_path(url))


def _sqlite_findings(path: Path) -> Iterator[Finding]:
    problems = list(file_findings(_SETTING, path))
    yield from problems
    if problems or not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(_MAGIC):
        yield Finding(_SETTING, f"an SQLite database at {path}", "another file", "name another path")
        return
    # A file that was made and not yet filled has neither number.
    application, version = (int.from_bytes(header[place], "big") for place in (_APPLICATION_ID, _USER_VERSION))
    if application not in (0, APPLICATION_ID):
        yield Finding(_SETTING, f"a queue of Weir's at {path}", "another program's database", "name another path")
    elif version > SCHEMA_VERSION:
        yield Finding(
            _SETTING,
            f"queue schema version {SCHEMA_VERSION} or older",
            f"{version} in {path}",
            "use the build that wrote it, or name a new place",
        )


def _postgres_findings(url: str, *, timeout_s: float, lease_s: float) -> Iterator[Finding]:
    import psycopg  # a driver that runs on one machine do without

    from serving_bridge.database import split_url

    conninfo, schema, name = split_url(url)
    try:
        with psycopg.connect(conninfo, connect_timeout=max(2, int(timeout_s)), autocommit=True) as connection:
            row = connection.execute(
                "SELECT current_user, current_database(), to_regnamespace(quote_ident(%(schema)s)) IS NOT NULL, "
                "has_database_privilege(current_database(), 'CREATE'), extract(epoch FROM clock_timestamp())::float8",
                {"schema": schema},
            ).fetchone()
            now_s = time.time()
            assert row is not None
            user, database, is_there, may_create, server_s = row
            may_use = not is_there or _may_use(connection, schema)
    except psycopg.Error as error:
        yield Finding(
            _SETTING,
            f"{name} to take a connection",
            " ".join(str(error).split()) or type(error).__name__,
            "check that it runs and can be reached, its pg_hba.conf, and the password (~/.pgpass or PGPASSWORD)",
            may_heal=True,
        )
        return
    if not is_there and not may_create:
        yield Finding(
            _SETTING,
            f"user {user} to have the right to create schema {schema}",
            f"no CREATE on database {database}",
            "have its owner make the schema (python -m tools.database), or grant it",
        )
    elif not may_use:
        yield Finding(
            _SETTING,
            f"user {user} to have rights in schema {schema}",
            "none",
            "have the schema's owner grant them (python -m tools.database)",
        )
    yield from clock_findings(now_s, built_s=0.0, server_s=server_s, lease_s=lease_s)


def _may_use(connection: object, schema: str) -> bool:
    import psycopg

    assert isinstance(connection, psycopg.Connection)
    row = connection.execute(
        "SELECT has_schema_privilege(%(schema)s, 'USAGE') AND coalesce((SELECT has_table_privilege(c.oid, 'SELECT') "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %(schema)s AND c.relname = %(table)s), has_schema_privilege(%(schema)s, 'CREATE'))",
        {"schema": schema, "table": _TABLE},
    ).fetchone()
    return bool(row and row[0])
