"""The canary's tables, the same on SQLite and PostgreSQL: rollouts beside the registry's, observations anywhere."""

from __future__ import annotations

from serving_bridge.database import Migration, Schema

#: In the database of the registry, so that a decision and the aliases that it moves are one transaction.
#: `decisions` only grows. One rollout of a namespace is open at a time.
CANARY = Schema(
    "canary",
    (
        Migration(
            1,
            (
                """CREATE TABLE rollouts (
                  rollout {sequence},
                  namespace TEXT NOT NULL,
                  number {int} NOT NULL,
                  stable {int} NOT NULL,
                  policy TEXT NOT NULL,
                  state TEXT NOT NULL,
                  first {int} NOT NULL,
                  phase TEXT NOT NULL
                    CHECK (phase IN ('running', 'paused', 'promoted', 'rolled_back', 'inconclusive', 'aborted')),
                  looks {int} NOT NULL,
                  asked TEXT NOT NULL DEFAULT '',
                  reason TEXT NOT NULL,
                  actor TEXT NOT NULL,
                  created_s {float} NOT NULL,
                  looked_s {float} NOT NULL
                ){strict}""",
                "CREATE UNIQUE INDEX rollouts_open ON rollouts (namespace) WHERE phase IN ('running', 'paused')",
                "CREATE INDEX rollouts_by_namespace ON rollouts (namespace, rollout)",
                """CREATE TABLE decisions (
                  sequence {sequence},
                  rollout {int} NOT NULL,
                  look {int} NOT NULL,
                  step {int} NOT NULL,
                  verdict TEXT NOT NULL,
                  document TEXT NOT NULL,
                  created_s {float} NOT NULL,
                  UNIQUE (rollout, look)
                ){strict}""",
                """CREATE TABLE notices (
                  sequence {sequence},
                  address TEXT NOT NULL,
                  body TEXT NOT NULL,
                  tries {int} NOT NULL,
                  due_s {float} NOT NULL,
                  state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'given_up')),
                  error TEXT NOT NULL DEFAULT ''
                ){strict}""",
                "CREATE INDEX notices_by_due ON notices (due_s) WHERE state = 'waiting'",
            ),
        ),
    ),
)

#: What gateways and scorers say of answers. No text of anybody is in it.
OBSERVATIONS = Schema(
    "observations",
    (
        Migration(
            1,
            (
                """CREATE TABLE observations (
                  sequence {sequence},
                  at_s {float} NOT NULL,
                  namespace TEXT NOT NULL,
                  kind TEXT NOT NULL CHECK (kind IN ('answer', 'score', 'feedback', 'dropped')),
                  arm TEXT NOT NULL,
                  version {int} NOT NULL,
                  tenant TEXT NOT NULL,
                  conversation TEXT NOT NULL,
                  shadow {int} NOT NULL,
                  measures TEXT NOT NULL
                ){strict}""",
                "CREATE INDEX observations_by_namespace ON observations (namespace, sequence)",
                "CREATE INDEX observations_by_time ON observations (at_s)",
            ),
        ),
        Migration(2, ("CREATE TABLE observation_marks (source TEXT PRIMARY KEY, sequence {int} NOT NULL){strict}",)),
    ),
)
