"""A look at the queue's database that writes nothing, makes nothing and holds nobody up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import apsw

from serving_bridge.database.database import DatabaseError, Session, SqliteSession, is_postgres, sqlite_path

T = TypeVar("T")


def look(url: str | Path, work: Callable[[Session], T], *, timeout_s: float = 2.0) -> T:
    """Runs `work` on one consistent state of the database, on a connection of its own that is closed at the end.

    On SQLite no file is made and no lock is waited for: a writer goes on meanwhile, and one that holds the file alone
    has the look refused. On PostgreSQL the transaction is read only, which the server enforces.

    Args:
      timeout_s: bound on PostgreSQL's connection and on each of its statements.

    Raises:
      DatabaseError: there is no database, it is another program's, or it can't be read now.
    """
    return _on_server(str(url), work, timeout_s) if is_postgres(url) else _in_file(sqlite_path(url), work)


def _in_file(path: Path, work: Callable[[Session], T]) -> T:
    if not path.is_file():
        raise DatabaseError(f"{path} does not exist: expected the queue of a run that has begun")
    # Without a log nobody has the file open, and a plain read would make one beside it.
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        connection = apsw.Connection(f"file:{quote(str(path.absolute()))}?{mode}", flags=flags)
        try:
            connection.set_busy_timeout(0)
            connection.pragma("query_only", True)
            connection.execute("BEGIN")
            return work(SqliteSession(connection))
        finally:
            connection.close()
    except (apsw.Error, UnicodeDecodeError, OverflowError) as error:
        raise DatabaseError(f"{path} can't be read now: {error}") from error


def _on_server(url: str, work: Callable[[Session], T], timeout_s: float) -> T:
    import psycopg  # a driver that runs on one machine do without
    from psycopg import sql

    from serving_bridge.database.postgres import PostgresSession
    from serving_bridge.database.postgres_url import split_url

    conninfo, schema, name = split_url(url)
    limit_ms = str(max(1, int(timeout_s * 1000)))
    try:
        with psycopg.connect(
            conninfo, autocommit=True, connect_timeout=max(2, int(timeout_s)), application_name="weir view"
        ) as connection:
            for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute("SELECT set_config(%s, %s, false)", (setting, limit_ms))
            connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            found = work(PostgresSession(connection))
            connection.execute("ROLLBACK")
            return found
    except psycopg.Error as error:
        raise DatabaseError(f"{name} can't be read now: {' '.join(str(error).split())}") from error
