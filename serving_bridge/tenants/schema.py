"""The tenants' tables, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from serving_bridge.database import Migration, Schema

#: Who the tenants are, their keys, limits and bills, and what the gateways that share their limits hold of them.
#: `meter` only grows; money is in billionths of the currency's unit.
TENANTS = Schema(
    "tenants",
    (
        Migration(
            1,
            (
                """CREATE TABLE tenants (
                  tenant TEXT PRIMARY KEY,
                  priority TEXT NOT NULL CHECK (priority IN ('paid', 'free', 'evaluation', 'training')),
                  weight {int} NOT NULL CHECK (weight > 0),
                  consent {int} NOT NULL DEFAULT 0,
                  retention_days {int} NOT NULL DEFAULT 0,
                  salt_generation {int} NOT NULL DEFAULT 0,
                  suspended {int} NOT NULL DEFAULT 0,
                  created_s {float} NOT NULL
                ){strict}""",
                """CREATE TABLE api_keys (
                  key_id TEXT PRIMARY KEY,
                  tenant TEXT NOT NULL REFERENCES tenants (tenant),
                  digest {bytes} NOT NULL UNIQUE,
                  label TEXT NOT NULL,
                  scopes TEXT NOT NULL,
                  created_s {float} NOT NULL,
                  expires_s {float},
                  revoked_s {float},
                  replaced_by TEXT
                ){strict}""",
                "CREATE INDEX api_keys_by_tenant ON api_keys (tenant)",
                """CREATE TABLE limits (
                  scope TEXT PRIMARY KEY,
                  requests_per_minute {int},
                  tokens_per_minute {int},
                  request_burst {int},
                  token_burst {int},
                  concurrency {int},
                  month_tokens {int},
                  month_nanos {int}
                ){strict}""",
                "CREATE TABLE prices (model TEXT PRIMARY KEY, prompt TEXT NOT NULL, completion TEXT NOT NULL){strict}",
                "CREATE TABLE tenants_state (key TEXT PRIMARY KEY, value {int} NOT NULL){strict}",
                "INSERT INTO tenants_state VALUES ('revision', 0)",
                "CREATE TABLE gateways (gateway TEXT PRIMARY KEY, beat {int} NOT NULL){strict}",
                """CREATE TABLE limit_pools (
                  scope TEXT PRIMARY KEY,
                  requests {float} NOT NULL,
                  tokens {float} NOT NULL
                ){strict}""",
                """CREATE TABLE slices (
                  scope TEXT NOT NULL,
                  gateway TEXT NOT NULL,
                  share {float} NOT NULL,
                  demand {float} NOT NULL,
                  PRIMARY KEY (scope, gateway)
                ){strict}""",
                """CREATE TABLE budgets (
                  scope TEXT NOT NULL,
                  month TEXT NOT NULL,
                  tokens {int} NOT NULL,
                  nanos {int} NOT NULL,
                  PRIMARY KEY (scope, month)
                ){strict}""",
                """CREATE TABLE allowances (
                  scope TEXT NOT NULL,
                  month TEXT NOT NULL,
                  gateway TEXT NOT NULL,
                  tokens {int} NOT NULL,
                  nanos {int} NOT NULL,
                  PRIMARY KEY (scope, month, gateway)
                ){strict}""",
                """CREATE TABLE open_answers (
                  response_id TEXT PRIMARY KEY,
                  gateway TEXT NOT NULL,
                  tenant TEXT NOT NULL,
                  key_id TEXT NOT NULL,
                  model TEXT NOT NULL,
                  month TEXT NOT NULL,
                  prompt_tokens {int} NOT NULL,
                  completion_tokens {int} NOT NULL,
                  nanos {int} NOT NULL,
                  began_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX open_answers_by_gateway ON open_answers (gateway)",
                """CREATE TABLE meter (
                  sequence {sequence},
                  response_id TEXT NOT NULL UNIQUE,
                  tenant TEXT NOT NULL,
                  key_id TEXT NOT NULL,
                  model TEXT NOT NULL,
                  month TEXT NOT NULL,
                  prompt_tokens {int} NOT NULL,
                  completion_tokens {int} NOT NULL,
                  nanos {int} NOT NULL,
                  settled TEXT NOT NULL CHECK (settled IN ('usage', 'reservation')),
                  began_s {float} NOT NULL
                ){strict}""",
                "CREATE INDEX meter_by_month ON meter (month, tenant)",
            ),
        ),
    ),
)
