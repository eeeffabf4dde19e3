"""The tables of recorded sessions, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from serving_bridge.database import Migration, Schema

#: A withdrawn or expired session loses its texts, turns and answers; its row stays without them, so that nothing that
#: comes late brings it back, until it is purged.
RECORDINGS = Schema(
    "recordings",
    (
        Migration(
            1,
            (
                """CREATE TABLE recorded_sessions (
                  session_id TEXT PRIMARY KEY,
                  tenant TEXT NOT NULL,
                  user_name TEXT NOT NULL,
                  conversation TEXT NOT NULL,
                  generation TEXT NOT NULL,
                  state TEXT NOT NULL CHECK (state IN ('kept', 'withdrawn', 'expired')),
                  created_s {float} NOT NULL,
                  last_s {float} NOT NULL,
                  expires_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX recorded_by_conversation ON recorded_sessions (conversation, last_s)",
                "CREATE INDEX recorded_by_user ON recorded_sessions (tenant, user_name)",
                "CREATE INDEX recorded_by_end ON recorded_sessions (expires_s)",
                """CREATE TABLE recorded_texts (
                  session_id TEXT NOT NULL,
                  digest TEXT NOT NULL,
                  content TEXT NOT NULL,
                  PRIMARY KEY (session_id, digest)
                ){strict}""",
                """CREATE TABLE recorded_turns (
                  sequence {sequence},
                  turn_id TEXT NOT NULL UNIQUE,
                  session_id TEXT NOT NULL,
                  parent TEXT NOT NULL,
                  tokens {bytes},
                  fields TEXT NOT NULL
                ){strict}""",
                "CREATE INDEX recorded_turns_by_session ON recorded_turns (session_id)",
                """CREATE TABLE recorded_answers (
                  sequence {sequence},
                  answer_id TEXT NOT NULL UNIQUE,
                  session_id TEXT NOT NULL,
                  turn_id TEXT NOT NULL,
                  created_s {float} NOT NULL,
                  tokens {bytes},
                  logprobs {bytes},
                  fields TEXT NOT NULL
                ){strict}""",
                "CREATE INDEX recorded_answers_by_session ON recorded_answers (session_id)",
                """CREATE TABLE consent_generations (
                  tenant TEXT NOT NULL,
                  user_name TEXT NOT NULL,
                  generation {int} NOT NULL,
                  PRIMARY KEY (tenant, user_name)
                ){strict}""",
                """CREATE TABLE withdrawals (
                  sequence {sequence},
                  tenant TEXT NOT NULL,
                  user_name TEXT NOT NULL,
                  session_id TEXT NOT NULL,
                  at_s {float} NOT NULL,
                  sessions {int} NOT NULL
                ){strict}""",
            ),
        ),
    ),
)
