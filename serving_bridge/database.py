"""The SQLite file that holds the queue and the run's progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

SCHEMA_VERSION = 1
APPLICATION_ID = 0x57454952  # "WEIR"

_SCHEMA = """
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
CREATE TABLE claims (
  prompt_index INTEGER PRIMARY KEY,
  worker TEXT NOT NULL,
  expires_s REAL NOT NULL
) STRICT;
CREATE TABLE progress (
  key TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT;
"""


class DatabaseError(RuntimeError):
    """The database file can't be used; the message says what is wrong with it and what to do."""


class DiskFullError(DatabaseError):
    """Nothing was written because the disk is full; nothing that was accepted before is lost."""


def open_database(path: str | Path, *, busy_timeout_s: float = 30.0) -> apsw.Connection:
    """Opens or creates the database (WAL, fsync on every commit).

    Raises:
      DatabaseError: the file is not a Weir database, is damaged, or has another schema version.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(int(busy_timeout_s * 1000))
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        with transaction(connection):
            _check_or_create(connection, path)
    except apsw.NotADBError as error:
        raise DatabaseError(f"{path} is not an SQLite database; expected a file that Weir wrote, or none") from error
    except apsw.CantOpenError as error:
        raise DatabaseError(f"{path} can't be opened ({error}); check the folder's permissions") from error
    except apsw.CorruptError as error:
        raise DatabaseError(f"{path} is damaged ({error}); restore it or move it away to start a new queue") from error
    return connection


def _check_or_create(connection: apsw.Connection, path: Path) -> None:
    version = connection.pragma("user_version")
    application = connection.pragma("application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables == 0:
        connection.execute(_SCHEMA)
        connection.pragma("user_version", SCHEMA_VERSION)
        connection.pragma("application_id", APPLICATION_ID)
        return
    if application != APPLICATION_ID:
        raise DatabaseError(f"{path} is an SQLite database of another program; set store.database to another path")
    if version != SCHEMA_VERSION:
        raise DatabaseError(
            f"{path} has queue schema version {version}, this build reads {SCHEMA_VERSION}: "
            f"use the build that wrote it, or set store.database to a new path"
        )


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[apsw.Connection]:
    """One write transaction: everything inside commits together or not at all.

    Raises:
      DiskFullError: the disk is full; the transaction was rolled back.
      DatabaseError: another process held the write lock for longer than the busy timeout.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    except (apsw.FullError, apsw.IOError) as error:
        raise DiskFullError(f"{connection.filename}: {error}; free disk space and start again") from error
    except apsw.BusyError as error:
        raise DatabaseError(f"{connection.filename}: locked by another process for too long") from error
