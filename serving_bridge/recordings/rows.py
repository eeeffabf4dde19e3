"""Recorded sessions as rows, inside a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serving_bridge.database import Session, marks, pieces
from serving_bridge.recordings.records import Answer, Kept, SessionHead, Turn

_DAY_S = 86_400.0
#: of a user: all users of a tenant
EVERYBODY = "*"
_HEAD = "session_id, tenant, user_name, conversation, generation, state, created_s, last_s, expires_s"


@dataclass(frozen=True)
class SessionRow:
    """A session as the list shows it; times are wall clock."""

    session_id: str
    tenant: str
    user: str
    conversation: str
    generation: str
    state: str
    created_s: float
    last_s: float
    expires_s: float


@dataclass(frozen=True)
class Recorded:
    """A session whole.

    Attributes:
      texts: by digest.
      turns, answers: in the order in which they came.
    """

    row: SessionRow
    texts: dict[str, str]
    turns: list[Turn]
    answers: list[Answer]


def generation(session: Session, tenant: str, user: str, lock: str = "") -> str:
    """The generation of consent of a user: how often the tenant and the user withdrew."""
    rows: dict[str, int] = dict(
        session.execute(
            f"SELECT user_name, generation FROM consent_generations WHERE tenant = ? AND user_name IN (?, ?){lock}",
            (tenant, EVERYBODY, user),
        )
    )
    return f"{rows.get(EVERYBODY, 0)}.{rows.get(user, 0)}"


def write(session: Session, lines: Iterable[Kept]) -> list[str]:
    """Stores lines; those that are there already stay as they are.

    Returns:
      sessions of which nothing was stored: consent was withdrawn, or their time is over.
    """
    refused: list[str] = []
    for line in lines:
        head = line.head
        # A withdrawal locks the same row, so that it either sees this session or is seen here.
        session.execute(
            "INSERT INTO consent_generations VALUES (?, ?, 0) ON CONFLICT DO NOTHING", (head.tenant, head.user)
        )
        current = generation(session, head.tenant, head.user, session.dialect.for_share)
        if current != head.generation or not _opened(session, line):
            refused.append(head.session_id)
            continue
        session.executemany(
            "INSERT INTO recorded_texts VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [(head.session_id, digest, content) for digest, content in line.texts],
        )
        _write_turn(session, head, line.turn)
        session.executemany(
            "INSERT INTO recorded_answers (answer_id, session_id, turn_id, created_s, tokens, logprobs, fields) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                (a.answer_id, head.session_id, a.turn_id, a.created_s, a.tokens, a.logprobs, _fields(a))
                for a in line.answers
            ],
        )
    return refused


def _opened(session: Session, line: Kept) -> bool:
    """Makes the session's row, or moves its end on; False if it is withdrawn or expired."""
    head = line.head
    last_s = max((answer.created_s for answer in line.answers), default=head.created_s)
    expires_s = last_s + head.retention_days * _DAY_S
    session.execute(
        f"INSERT INTO recorded_sessions ({_HEAD}) VALUES (?, ?, ?, ?, ?, 'kept', ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            head.session_id,
            head.tenant,
            head.user,
            head.conversation,
            head.generation,
            head.created_s,
            last_s,
            expires_s,
        ),
    )
    changed = session.execute(
        "UPDATE recorded_sessions SET last_s = CASE WHEN last_s < ? THEN ? ELSE last_s END, "
        "expires_s = CASE WHEN expires_s < ? THEN ? ELSE expires_s END "
        "WHERE session_id = ? AND state = 'kept' RETURNING session_id",
        (last_s, last_s, expires_s, expires_s, head.session_id),
    )
    return bool(changed)


def _write_turn(session: Session, head: SessionHead, turn: Turn) -> None:
    session.execute(
        "INSERT INTO recorded_turns (turn_id, session_id, parent, tokens, fields) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        (turn.turn_id, head.session_id, turn.parent, turn.tokens, _fields(turn)),
    )


#: stand in columns of their own
_COLUMNS = ("tokens", "logprobs")


def _fields(record: Turn | Answer) -> str:
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return msgspec.json.encode({name: value for name, value in fields.items() if name not in _COLUMNS}).decode()


def newest(session: Session, conversation: str, generation_: str) -> str | None:
    """The session of a conversation that was last gone on with; None if there is none under this consent."""
    rows = session.execute(
        "SELECT session_id FROM recorded_sessions WHERE conversation = ? AND state = 'kept' AND generation = ? "
        "ORDER BY last_s DESC, session_id LIMIT 1",
        (conversation, generation_),
    )
    return rows[0][0] if rows else None


def read(session: Session, session_id: str) -> Recorded | None:
    """A session whole; None if there is none."""
    rows = session.execute(f"SELECT {_HEAD} FROM recorded_sessions WHERE session_id = ?", (session_id,))
    if not rows:
        return None
    texts: dict[str, str] = dict(
        session.execute("SELECT digest, content FROM recorded_texts WHERE session_id = ?", (session_id,))
    )
    turns = [
        msgspec.convert({**msgspec.json.decode(fields), "tokens": tokens}, Turn)
        for tokens, fields in session.execute(
            "SELECT tokens, fields FROM recorded_turns WHERE session_id = ? ORDER BY sequence", (session_id,)
        )
    ]
    answers = [
        msgspec.convert({**msgspec.json.decode(fields), "tokens": tokens, "logprobs": logprobs}, Answer)
        for tokens, logprobs, fields in session.execute(
            "SELECT tokens, logprobs, fields FROM recorded_answers WHERE session_id = ? ORDER BY sequence",
            (session_id,),
        )
    ]
    return Recorded(SessionRow(*rows[0]), texts, turns, answers)


def listed(session: Session, where: str, parameters: Sequence[object], limit: int) -> list[SessionRow]:
    """Sessions, those that were gone on with last first."""
    return [
        SessionRow(*row)
        for row in session.execute(
            f"SELECT {_HEAD} FROM recorded_sessions WHERE {where} ORDER BY last_s DESC, session_id LIMIT ?",
            (*parameters, limit),
        )
    ]


def kept(session: Session, where: str, parameters: Sequence[object]) -> list[str]:
    """Ids of all kept sessions, those that were gone on with last first."""
    found = session.execute(
        f"SELECT session_id FROM recorded_sessions WHERE {where} AND state = 'kept' ORDER BY last_s DESC, session_id",
        tuple(parameters),
    )
    return [session_id for (session_id,) in found]


def counts(session: Session) -> dict[str, int]:
    """Sessions by state, and answers."""
    found: dict[str, int] = dict(session.execute("SELECT state, count(*) FROM recorded_sessions GROUP BY state"))
    ((answers,),) = session.execute("SELECT count(*) FROM recorded_answers")
    return {"kept": 0, "withdrawn": 0, "expired": 0, **found, "answers": answers}


def emptied(session: Session, session_ids: Sequence[str], state: str) -> None:
    """Takes everything out of sessions but their rows."""
    for piece in pieces(session_ids):
        names = marks(piece)
        for table in ("recorded_texts", "recorded_turns", "recorded_answers"):
            session.execute(f"DELETE FROM {table} WHERE session_id IN ({names})", piece)
        session.execute(
            f"UPDATE recorded_sessions SET state = ?, conversation = '' WHERE session_id IN ({names})", (state, *piece)
        )


def raise_generation(session: Session, tenant: str, user: str) -> None:
    session.execute(
        "INSERT INTO consent_generations VALUES (?, ?, 1) "
        "ON CONFLICT (tenant, user_name) DO UPDATE SET generation = consent_generations.generation + 1",
        (tenant, user),
    )
