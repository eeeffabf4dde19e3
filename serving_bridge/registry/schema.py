"""The registry's tables, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from serving_bridge.database import Migration, Schema

#: `entries` and `events` only grow. `stage` and `weights` of an entry are the sum of its events, kept for queries.
#: `registry_storage` has a row where weights and files are in object storage.
REGISTRY = Schema(
    "registry",
    (
        Migration(
            1,
            (
                """CREATE TABLE entries (
                  namespace TEXT NOT NULL,
                  number {int} NOT NULL,
                  parent {int},
                  document TEXT NOT NULL,
                  sha256 TEXT NOT NULL,
                  content TEXT NOT NULL,
                  weight_version {int} NOT NULL,
                  stage TEXT NOT NULL,
                  has_weights {int} NOT NULL,
                  created_s {float} NOT NULL,
                  PRIMARY KEY (namespace, number)
                ){strict}""",
                "CREATE INDEX entries_by_parent ON entries (namespace, parent, number)",
                "CREATE INDEX entries_by_content ON entries (namespace, content)",
                "CREATE INDEX entries_by_weights ON entries (namespace, has_weights, number)",
                "CREATE INDEX entries_by_stage ON entries (namespace, stage, number)",
                """CREATE TABLE events (
                  sequence {sequence},
                  namespace TEXT NOT NULL,
                  number {int} NOT NULL,
                  kind TEXT NOT NULL,
                  body TEXT NOT NULL,
                  actor TEXT NOT NULL,
                  reason TEXT NOT NULL,
                  created_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX events_by_entry ON events (namespace, number, sequence)",
                """CREATE TABLE aliases (
                  namespace TEXT NOT NULL,
                  alias TEXT NOT NULL,
                  number {int} NOT NULL,
                  PRIMARY KEY (namespace, alias)
                ){strict}""",
                """CREATE TABLE moves (
                  sequence {sequence},
                  namespace TEXT NOT NULL,
                  move {int} NOT NULL,
                  alias TEXT NOT NULL,
                  old {int},
                  new {int},
                  token {int} NOT NULL,
                  actor TEXT NOT NULL,
                  reason TEXT NOT NULL,
                  created_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX moves_by_namespace ON moves (namespace, sequence)",
                """CREATE TABLE registry_leases (
                  name TEXT PRIMARY KEY,
                  holder TEXT NOT NULL,
                  token {int} NOT NULL,
                  expires_s {float} NOT NULL
                ){strict}""",
            ),
        ),
        Migration(
            2,
            (
                """CREATE TABLE traffic (
                  namespace TEXT PRIMARY KEY,
                  canary_share {float} NOT NULL,
                  shadow_share {float} NOT NULL,
                  tenants TEXT NOT NULL,
                  revision {int} NOT NULL
                ){strict}""",
                """CREATE TABLE traffic_changes (
                  sequence {sequence},
                  namespace TEXT NOT NULL,
                  canary_share {float} NOT NULL,
                  shadow_share {float} NOT NULL,
                  tenants TEXT NOT NULL,
                  revision {int} NOT NULL,
                  move {int},
                  token {int} NOT NULL,
                  actor TEXT NOT NULL,
                  reason TEXT NOT NULL,
                  created_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX traffic_changes_by_namespace ON traffic_changes (namespace, sequence)",
            ),
        ),
        Migration(
            3,
            tuple(
                f"ALTER TABLE {table} ADD COLUMN {column} {{float}} NOT NULL DEFAULT {default}"
                for table in ("traffic", "traffic_changes")
                for column, default in (("tenant_share", 0), ("within", 1))
            ),
        ),
        Migration(
            4,
            (
                """CREATE TABLE registry_storage (
                  one {int} PRIMARY KEY,
                  url TEXT NOT NULL
                ){strict}""",
            ),
        ),
    ),
)
