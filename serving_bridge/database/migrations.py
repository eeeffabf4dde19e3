"""Schemas as numbered steps from nothing to today's, the same on both engines; the queue's own is here.

One database may hold several schemas: each keeps its own version, and none knows of the others' tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from serving_bridge.database.database import APPLICATION_ID, Session, WrongDatabaseError


@dataclass(frozen=True)
class Migration:
    """One step.

    Attributes:
      statements: SQL for both engines; `{...}` is filled in by the engine's dialect.
      postgres_only: more of them.
    """

    version: int
    statements: tuple[str, ...]
    postgres_only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """The tables of one room.

    Attributes:
      name: lower-case letters and underscores; what its version is kept under.
      migrations: numbered from 1 on, without a gap; those that were released never change.

    Raises:
      ValueError: name or numbers are not as said.
    """

    name: str
    migrations: tuple[Migration, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z_]{1,40}", self.name):
            raise ValueError(f"schema {self.name!r}: expected lower-case letters and underscores")
        numbers = [migration.version for migration in self.migrations]
        if numbers != list(range(1, len(numbers) + 1)) or not numbers:
            raise ValueError(f"schema {self.name}: migrations {numbers}, expected 1, 2, 3 and so on")

    @property
    def version(self) -> int:
        """The newest."""
        return self.migrations[-1].version


#: What `serving_bridge.delayed_rewards` works on; for the schema of any database that keeps such, once in each.
REWARD_TABLES: tuple[str, ...] = (
    """CREATE TABLE awaited_rewards (
      sequence {sequence},
      subject TEXT NOT NULL UNIQUE,
      holder TEXT NOT NULL,
      due_s {float} NOT NULL,
      state TEXT NOT NULL CHECK (state IN ('waiting', 'joined', 'ended')),
      reward_id TEXT,
      value {float},
      parts TEXT
    ){strict}""",
    "CREATE INDEX awaited_by_holder ON awaited_rewards (holder)",
    "CREATE INDEX awaited_by_due ON awaited_rewards (due_s) WHERE state = 'waiting'",
    """CREATE TABLE kept_rewards (
      sequence {sequence},
      subject TEXT NOT NULL,
      reward_id TEXT NOT NULL,
      value {float} NOT NULL,
      parts TEXT NOT NULL,
      outcome TEXT NOT NULL CHECK (outcome IN ('conflict', 'extra', 'late', 'unknown')),
      received_s {float} NOT NULL,
      UNIQUE (subject, reward_id)
    ){strict}""",
    "CREATE TABLE reward_counts (outcome TEXT PRIMARY KEY, number {int} NOT NULL){strict}",
    """INSERT INTO reward_counts VALUES
         ('joined', 0), ('duplicate', 0), ('conflict', 0), ('extra', 0), ('late', 0), ('unknown', 0)""",
)

MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        version=1,
        statements=(
            """CREATE TABLE groups (
              sequence {sequence},
              group_id TEXT NOT NULL UNIQUE,
              state TEXT NOT NULL
                CHECK (state IN ('ready', 'leased', 'trained', 'acknowledged', 'dropped', 'dead')),
              oldest_version {int} NOT NULL,
              payload {bytes},
              tries {int} NOT NULL DEFAULT 0,
              lease_token {int},
              lease_expires_s {float},
              reason TEXT,
              created_s {float} NOT NULL
            ){strict}""",
            "CREATE INDEX groups_by_state ON groups (state, sequence)",
            """CREATE TABLE claims (
              prompt_index {int} PRIMARY KEY,
              worker TEXT NOT NULL,
              expires_s {float} NOT NULL
            ){strict}""",
            "CREATE TABLE progress (key TEXT PRIMARY KEY, value {int} NOT NULL){strict}",
        ),
    ),
    # Payloads in a table of their own: a change of state then doesn't write them again. The prompt of an old row is not
    # known; the next prompt's index is above it, which only makes the row stay longer (`rows.purge`).
    Migration(
        version=2,
        statements=(
            "ALTER TABLE groups RENAME TO old_groups",
            "DROP INDEX groups_by_state",
            """CREATE TABLE groups (
              sequence {sequence},
              group_id TEXT NOT NULL UNIQUE,
              prompt_index {int} NOT NULL,
              state TEXT NOT NULL
                CHECK (state IN ('ready', 'leased', 'trained', 'acknowledged', 'dropped', 'dead')),
              priority {int} NOT NULL DEFAULT 0,
              oldest_version {int} NOT NULL,
              num_bytes {int} NOT NULL DEFAULT 0,
              blob TEXT,
              blob_offset {int},
              blob_hash TEXT,
              tries {int} NOT NULL DEFAULT 0,
              lease_token {int} NOT NULL DEFAULT 0,
              lease_expires_s {float},
              leased_by TEXT,
              reason TEXT,
              created_s {float} NOT NULL
            ){strict}""",
            "CREATE TABLE payloads (sequence {int} PRIMARY KEY, payload {bytes} NOT NULL){strict}",
            """INSERT INTO groups (sequence, group_id, prompt_index, state, oldest_version, num_bytes, tries,
                                   lease_token, lease_expires_s, reason, created_s)
               SELECT sequence, group_id, coalesce((SELECT value FROM progress WHERE key = 'next_prompt'), 0), state,
                      oldest_version, coalesce(length(payload), 0), tries, coalesce(lease_token, 0), lease_expires_s,
                      reason, created_s
               FROM old_groups ORDER BY sequence""",
            "INSERT INTO payloads SELECT sequence, payload FROM old_groups WHERE payload IS NOT NULL",
            "DROP TABLE old_groups",
            "CREATE INDEX groups_by_state ON groups (state, priority DESC, sequence, num_bytes, oldest_version)",
            "CREATE INDEX groups_by_blob ON groups (blob) WHERE blob IS NOT NULL",
            "CREATE INDEX claims_by_worker ON claims (worker)",
            """INSERT INTO progress VALUES
                 ('completed_steps', 0), ('trained_version', 0), ('finished', 0), ('next_prompt', 0),
                 ('consumer_epoch', 0), ('watermark', 0), ('blobs_id', 0),
                 ('removed_acknowledged', 0), ('removed_dropped', 0), ('removed_dead', 0)
               ON CONFLICT (key) DO NOTHING""",
            "DELETE FROM progress WHERE key = 'next_lease_token'",
        ),
        # Compressing random bytes takes long and gains nothing. What went through is to be reused soon: by default it
        # is cleared away once it is a share of the table, and too slowly for the rates at which payloads come.
        postgres_only=(
            "ALTER TABLE payloads ALTER COLUMN payload SET STORAGE EXTERNAL",
            "ALTER TABLE payloads SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, "
            "autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_scale_factor = 0, "
            "toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0)",
            "ALTER TABLE groups SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)",
        ),
    ),
    # What the policy made of problems, for a curriculum by measured pass rate: `key` is a hash of the problem.
    Migration(
        version=3,
        statements=(
            """CREATE TABLE problems (
              key {int} PRIMARY KEY,
              alike {int} NOT NULL,
              prompt_index {int} NOT NULL
            ){strict}""",
        ),
    ),
    # Rewards that come later than what they are for, and groups of answers that wait for theirs.
    Migration(
        version=4,
        statements=(
            *REWARD_TABLES,
            """CREATE TABLE waiting_groups (
              group_id TEXT PRIMARY KEY,
              prompt_index {int} NOT NULL,
              priority {int} NOT NULL,
              oldest_version {int} NOT NULL,
              put_s {float} NOT NULL,
              window_s {float} NOT NULL,
              timeout_score {float},
              payload {bytes} NOT NULL
            ){strict}""",
            "CREATE INDEX waiting_by_prompt ON waiting_groups (prompt_index)",
            "CREATE INDEX waiting_by_version ON waiting_groups (oldest_version)",
        ),
        postgres_only=("ALTER TABLE waiting_groups ALTER COLUMN payload SET STORAGE EXTERNAL",),
    ),
    # The prompt cursor of the newest checkpoint, whose claims are durable.
    Migration(
        version=5,
        statements=("INSERT INTO progress VALUES ('saved_cursor', 0) ON CONFLICT (key) DO NOTHING",),
    ),
)

SCHEMA_VERSION = MIGRATIONS[-1].version
#: The queue's tables. Its version stands where it always stood: in the file's header, or in `weir_schema`.
QUEUE = Schema("queue", MIGRATIONS)


def migrate(session: Session, name: str, schema: Schema = QUEUE) -> None:
    """Brings a schema of the database that the session has locked up to date, in the session's transaction.

    Args:
      name: of the database, for errors.

    Raises:
      WrongDatabaseError: a newer build wrote it, or another program.
    """
    version = _queue_version(session, name) if schema == QUEUE else _version(session, name, schema)
    if version > schema.version:
        raise WrongDatabaseError(
            f"{name} has {schema.name} schema version {version}, this build reads {schema.version}: "
            f"use the build that wrote it, or set store.database to a new place"
        )
    for migration in schema.migrations:
        if migration.version > version:
            only = migration.postgres_only if session.dialect.name == "postgres" else ()
            for statement in (*migration.statements, *only):
                session.execute(statement.format_map(session.dialect.names))
    if version < schema.version:
        _set_queue_version(session) if schema == QUEUE else _set_version(session, schema)


def _version(session: Session, name: str, schema: Schema) -> int:
    """The version of a schema other than the queue's; 0 where it was never made."""
    if session.dialect.name == "sqlite":
        _refuse_other_programs(session, name)
        if not session.execute("SELECT 1 FROM sqlite_master WHERE name = 'weir_schemas'"):
            return 0
    elif session.execute("SELECT to_regclass('weir_schemas')") == [(None,)]:
        session.execute("SELECT pg_advisory_xact_lock(?)", (APPLICATION_ID,))
        session.execute("CREATE TABLE IF NOT EXISTS weir_schemas (name TEXT PRIMARY KEY, version BIGINT NOT NULL)")
    find = "SELECT version FROM weir_schemas WHERE name = ?"
    found = session.execute(find, (schema.name,))
    if session.dialect.name == "postgres" and found != [(schema.version,)]:
        session.execute("SELECT pg_advisory_xact_lock(?)", (APPLICATION_ID,))  # others that open it wait
        found = session.execute(find, (schema.name,))
    return found[0][0] if found else 0


def _set_version(session: Session, schema: Schema) -> None:
    if session.dialect.name == "sqlite":
        session.execute("CREATE TABLE IF NOT EXISTS weir_schemas (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        session.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    session.execute(
        "INSERT INTO weir_schemas VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET version = excluded.version",
        (schema.name, schema.version),
    )


def _refuse_other_programs(session: Session, name: str) -> bool:
    """Whether an SQLite file has tables already. Raises `WrongDatabaseError` if they are another program's."""
    if not session.execute("SELECT 1 FROM sqlite_master LIMIT 1"):
        return False
    if session.execute("PRAGMA application_id") != [(APPLICATION_ID,)]:
        raise WrongDatabaseError(f"{name} is an SQLite database of another program; set store.database to another path")
    return True


def _queue_version(session: Session, name: str) -> int:
    """The queue's schema version; 0 where it was never made."""
    if session.dialect.name == "sqlite":
        if not _refuse_other_programs(session, name):
            return 0
        ((version,),) = session.execute("PRAGMA user_version")
        return version
    is_there = session.execute("SELECT to_regclass('weir_schema')") != [(None,)]
    if is_there and session.execute("SELECT version FROM weir_schema") == [(SCHEMA_VERSION,)]:
        return SCHEMA_VERSION  # the only case that is open to roles which own nothing
    session.execute("SELECT pg_advisory_xact_lock(?)", (APPLICATION_ID,))  # others that open it wait
    session.execute("CREATE TABLE IF NOT EXISTS weir_schema (version BIGINT NOT NULL)")
    found = session.execute("SELECT version FROM weir_schema")
    if not found and session.execute(
        "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'groups'"
    ):
        raise WrongDatabaseError(f"{name} has a table `groups` of another program; add ?schema=... to store.database")
    return found[0][0] if found else 0


def _set_queue_version(session: Session) -> None:
    if session.dialect.name == "sqlite":
        session.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        session.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        return
    session.execute("DELETE FROM weir_schema")
    session.execute("INSERT INTO weir_schema VALUES (?)", (SCHEMA_VERSION,))
