"""Who may do what in the schema on PostgreSQL: workers, learners, gateways, and the owner who made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import psycopg
from psycopg import sql

from serving_bridge.database.database import DatabaseError, open_database
from serving_bridge.database.postgres_url import split_url

Part = Literal["worker", "learner", "gateway"]

#: Rights by table. Nobody but the owner may change a table, or make one.
_GRANTS: Mapping[Part, Mapping[str, str]] = {
    "worker": {
        "groups": "SELECT, INSERT",
        "payloads": "INSERT",
        "claims": "SELECT, INSERT, UPDATE, DELETE",
        "progress": "SELECT, UPDATE",
        "problems": "SELECT, INSERT, UPDATE",
        "awaited_rewards": "SELECT, INSERT, UPDATE, DELETE",
        "kept_rewards": "SELECT, INSERT, UPDATE, DELETE",
        "reward_counts": "SELECT, UPDATE",
        "waiting_groups": "SELECT, INSERT, DELETE",
        "weir_writers": "SELECT, INSERT, UPDATE, DELETE",
        "weir_schema": "SELECT",
    },
    "learner": {
        "groups": "SELECT, INSERT, UPDATE, DELETE",
        "payloads": "SELECT, DELETE",
        "claims": "SELECT, INSERT, UPDATE, DELETE",
        "progress": "SELECT, UPDATE",
        "problems": "SELECT",
        "awaited_rewards": "SELECT, UPDATE",
        "waiting_groups": "SELECT, DELETE",
        "online_groups": "SELECT, UPDATE",
        "weir_writers": "SELECT, INSERT, UPDATE, DELETE",
        "weir_schema": "SELECT",
        "weir_schemas": "SELECT",
    },
    # Tenants, keys, limits and prices are the owner's to change (tools.tenants); what was billed stays as it is.
    "gateway": {
        "tenants": "SELECT",
        "api_keys": "SELECT",
        "limits": "SELECT",
        "prices": "SELECT",
        "tenants_state": "SELECT",
        "gateways": "SELECT, INSERT, UPDATE, DELETE",
        "limit_pools": "SELECT, INSERT, UPDATE, DELETE",
        "slices": "SELECT, INSERT, UPDATE, DELETE",
        "budgets": "SELECT, INSERT, UPDATE",
        "allowances": "SELECT, INSERT, UPDATE, DELETE",
        "open_answers": "SELECT, INSERT, DELETE",
        "meter": "SELECT, INSERT",
        "recorded_sessions": "SELECT, INSERT, UPDATE, DELETE",
        "recorded_texts": "SELECT, INSERT, DELETE",
        "recorded_turns": "SELECT, INSERT, DELETE",
        "recorded_answers": "SELECT, INSERT, DELETE",
        "consent_generations": "SELECT, INSERT, UPDATE",
        "feedback": "SELECT, INSERT, UPDATE, DELETE",
        "feedback_counts": "SELECT, UPDATE",
        "feedback_notices": "SELECT, INSERT, UPDATE, DELETE",
        "agent_sessions": "SELECT, INSERT, UPDATE",
        "online_groups": "SELECT, UPDATE",
        "feedback_datasets": "SELECT",
        "dataset_sessions": "SELECT, UPDATE",
        "weir_writers": "SELECT, INSERT, UPDATE, DELETE",
        "weir_schemas": "SELECT",
    },
}
#: Rows of `progress` that each may change: a worker moves the prompts on, and never the learner's own numbers.
_PROGRESS: Mapping[Part, str] = {"worker": "key IN ('next_prompt', 'blobs_id')", "learner": "true", "gateway": "false"}


def prepare(url: str, roles: Mapping[Part, str], *, timeout_s: float = 30.0) -> None:
    """Makes the schema or brings it up to date, as its owner, and gives roles of the server their rights in it.

    Tables of rooms whose schema was not made here are left out.

    Args:
      url: of the queue, as a user who may make the schema, or owns it.
      roles: names of roles that exist, by what they are to do; what they had before in this schema is taken back.

    Raises:
      DatabaseError: the server refuses; a role does not exist, or is the owner.
    """
    open_database(url, timeout_s=timeout_s).close()
    conninfo, schema, name = split_url(url)
    try:
        with psycopg.connect(conninfo, connect_timeout=max(2, int(timeout_s))) as connection:
            for part, role in roles.items():
                _grant(connection, schema, part, role)
    except psycopg.Error as error:
        raise DatabaseError(f"{name}: {' '.join(str(error).split())}") from error


def _grant(connection: psycopg.Connection, schema: str, part: Part, role: str) -> None:
    names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
    if connection.execute("SELECT current_user = %s", (role,)).fetchone() == (True,):
        raise DatabaseError(f"role {role} owns schema {schema}: give the {part} another one, with fewer rights")

    def run(statement: str, **more: sql.Composable) -> None:
        connection.execute(sql.SQL(statement).format(**names | more))

    run("REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}")
    run("GRANT USAGE ON SCHEMA {schema} TO {role}")
    for table, rights in _GRANTS[part].items():
        if connection.execute("SELECT to_regclass(%s)", (f'"{schema}"."{table}"',)).fetchone() == (None,):
            continue
        run(f"GRANT {rights} ON {{table}} TO {{role}}", table=sql.Identifier(schema, table))
    progress, policy = sql.Identifier(schema, "progress"), sql.Identifier(f"weir_{role}"[:63])
    run("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", table=progress)
    run("DROP POLICY IF EXISTS {policy} ON {table}", table=progress, policy=policy)
    run("DROP POLICY IF EXISTS weir_read ON {table}", table=progress)
    run("CREATE POLICY weir_read ON {table} FOR SELECT USING (true)", table=progress)
    run(
        f"CREATE POLICY {{policy}} ON {{table}} FOR UPDATE TO {{role}} USING ({_PROGRESS[part]})",
        table=progress,
        policy=policy,
    )
