"""The tables of feedback, the same on SQLite and PostgreSQL; they stand in one database with those of recordings."""

from __future__ import annotations

from serving_bridge.database import Migration, Schema
from serving_bridge.notices import notice_tables

#: table of messages about feedback
FEEDBACK_NOTICES = "feedback_notices"

#: `answer_id` is that of a recorded answer, or `session:NAME` for the last answer of a named session.
FEEDBACK = Schema(
    "feedback",
    (
        Migration(
            1,
            (
                """CREATE TABLE feedback (
                  sequence {sequence},
                  tenant TEXT NOT NULL,
                  feedback_id TEXT NOT NULL,
                  digest TEXT NOT NULL,
                  answer_id TEXT NOT NULL,
                  session_id TEXT NOT NULL,
                  outcome TEXT NOT NULL CHECK (outcome IN ('joined', 'late', 'unknown')),
                  kind TEXT NOT NULL,
                  source TEXT NOT NULL CHECK (source IN ('explicit', 'implicit')),
                  rater TEXT NOT NULL,
                  value {float},
                  text TEXT,
                  other TEXT,
                  position {int},
                  judge TEXT NOT NULL,
                  at_s {float} NOT NULL,
                  received_s {float} NOT NULL,
                  UNIQUE (tenant, feedback_id)
                ){strict}""",
                "CREATE INDEX feedback_by_answer ON feedback (answer_id)",
                "CREATE INDEX feedback_by_session ON feedback (session_id)",
                "CREATE INDEX feedback_by_rater ON feedback (tenant, rater, received_s)",
                "CREATE INDEX feedback_by_outcome ON feedback (outcome, received_s)",
                "CREATE TABLE feedback_counts (outcome TEXT PRIMARY KEY, number {int} NOT NULL){strict}",
                """INSERT INTO feedback_counts VALUES
                  ('joined', 0), ('duplicate', 0), ('conflict', 0), ('late', 0), ('unknown', 0), ('capped', 0)""",
                """CREATE TABLE agent_sessions (
                  conversation TEXT PRIMARY KEY,
                  started_s {float} NOT NULL,
                  ended_s {float}
                ){strict}""",
                """CREATE TABLE quarantined_raters (
                  tenant TEXT NOT NULL,
                  rater TEXT NOT NULL,
                  reason TEXT NOT NULL,
                  at_s {float} NOT NULL,
                  PRIMARY KEY (tenant, rater)
                ){strict}""",
                """CREATE TABLE feedback_datasets (
                  name TEXT PRIMARY KEY,
                  kind TEXT NOT NULL,
                  folder TEXT NOT NULL,
                  made_s {float} NOT NULL
                ){strict}""",
                """CREATE TABLE dataset_sessions (
                  name TEXT NOT NULL,
                  session_id TEXT NOT NULL,
                  removed {int} NOT NULL,
                  PRIMARY KEY (name, session_id)
                ){strict}""",
                "CREATE INDEX dataset_sessions_by_session ON dataset_sessions (session_id)",
                """CREATE TABLE online_groups (
                  number {int} PRIMARY KEY,
                  turn_id TEXT NOT NULL UNIQUE,
                  session_id TEXT NOT NULL,
                  state TEXT NOT NULL CHECK (state IN ('put', 'withdrawn')),
                  trained_version {int},
                  made_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX online_groups_by_session ON online_groups (session_id)",
            ),
        ),
        # whether the queue of online groups holds nothing of a withdrawn one any more
        Migration(2, ("ALTER TABLE online_groups ADD COLUMN erased {int} NOT NULL DEFAULT 0",)),
        Migration(3, notice_tables(FEEDBACK_NOTICES)),
    ),
)
