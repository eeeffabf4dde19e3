"""Where the queue's rows live: SQLite on one machine, PostgreSQL on many."""

from serving_bridge.database.database import (
    APPLICATION_ID,
    MEMORY,
    DamagedRowError,
    Database,
    DatabaseError,
    DiskFullError,
    Row,
    Session,
    absolute_url,
    empty_log,
    is_postgres,
    open_database,
    secret_in_url,
    sqlite_path,
)
from serving_bridge.database.lists import marks, pieces
from serving_bridge.database.migrations import QUEUE, REWARD_TABLES, SCHEMA_VERSION, Migration, Schema, migrate
from serving_bridge.database.postgres_url import split_url
from serving_bridge.database.read_only import look

__all__ = [
    "APPLICATION_ID",
    "MEMORY",
    "QUEUE",
    "REWARD_TABLES",
    "SCHEMA_VERSION",
    "DamagedRowError",
    "Database",
    "DatabaseError",
    "DiskFullError",
    "Migration",
    "Row",
    "Schema",
    "Session",
    "absolute_url",
    "empty_log",
    "is_postgres",
    "look",
    "marks",
    "migrate",
    "open_database",
    "pieces",
    "secret_in_url",
    "split_url",
    "sqlite_path",
]
