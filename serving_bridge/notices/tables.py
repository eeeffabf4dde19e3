"""The tables in which messages wait, and how one gets into them: in the transaction that it tells of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from serving_bridge.database import Session

#: Messages that wait at most in a table; further ones are left out until some were taken or given up.
MAX_WAITING = 10_000


def checked(table: str) -> str:
    """The name, which stands in statements. Raises `ValueError` if it is none."""
    if not re.fullmatch("[a-z_]{1,40}", table):
        raise ValueError(f"table {table!r}: expected lower-case letters and underscores")
    return table


def notice_tables(table: str) -> tuple[str, ...]:
    """Statements for the schema of a room that sends messages; `subject` is what a message is about."""
    return (
        f"""CREATE TABLE {checked(table)} (
          sequence {{sequence}},
          subject TEXT NOT NULL,
          address TEXT NOT NULL,
          body TEXT NOT NULL,
          tries {{int}} NOT NULL,
          due_s {{float}} NOT NULL,
          state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'given_up')),
          error TEXT NOT NULL DEFAULT ''
        ){{strict}}""",
        f"CREATE INDEX {table}_by_due ON {table} (due_s) WHERE state = 'waiting'",
        f"CREATE INDEX {table}_by_subject ON {table} (subject)",
    )


def put_notices(
    session: Session, table: str, addresses: Sequence[str], told: Sequence[tuple[str, Mapping[str, Any]]], now_s: float
) -> int:
    """Puts messages to each address among those to be sent; returns how many were left out, since too many wait.

    Args:
      told: (subject, body) of each.
    """
    wanted = [(subject, address, body) for subject, body in told for address in addresses]
    if not wanted:
        return 0
    ((waiting,),) = session.execute(f"SELECT count(*) FROM {checked(table)} WHERE state = 'waiting'")
    room = max(0, MAX_WAITING - waiting)
    session.executemany(
        f"INSERT INTO {table} (subject, address, body, tries, due_s, state) VALUES (?, ?, ?, 0, ?, 'waiting')",
        [
            (subject, address, msgspec.json.encode(dict(body)).decode(), now_s)
            for subject, address, body in wanted[:room]
        ],
    )
    return max(0, len(wanted) - room)


def forget_notices(session: Session, table: str, subjects: Sequence[str]) -> None:
    """Removes messages about these subjects, sent or not."""
    session.executemany(f"DELETE FROM {checked(table)} WHERE subject = ?", [(subject,) for subject in subjects])
