"""Feedback in the database: each piece is stored once, and joins the answer that it is about, within a window.

| outcome | what came | stored |
|---|---|---|
| joined | feedback of a recorded answer, within its window | yes |
| duplicate | the same again | no |
| conflict | another one under a name that was used | no |
| late | feedback after the window | yes, and never used |
| unknown | of an answer that is not recorded; it joins if that comes within the window | yes, but no edits |
| capped | more than a rater may give in an hour | no |
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from serving_bridge.database import Database, Row, Session
from serving_bridge.feedback.arrival import Feedback
from serving_bridge.feedback.schema import FEEDBACK_NOTICES
from serving_bridge.notices import forget_notices, put_notices
from serving_bridge.recordings import cleaned, name_of, user_of
from serving_bridge.safety import Checker
from serving_bridge.settings import FeedbackSettings

Outcome = Literal["joined", "duplicate", "conflict", "late", "unknown", "capped"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_HOUR_S = 3600.0
#: Pieces that one transaction looks at.
_AT_ONCE = 1000
_SESSION = "session:"
_COLUMNS = "answer_id, session_id, outcome, kind, source, rater, value, text, other, position, judge, at_s, received_s"


@dataclass(frozen=True)
class Stored:
    """One stored piece of feedback; `rater` is a hash, times are wall clock."""

    answer_id: str
    session_id: str
    outcome: str
    kind: str
    source: str
    rater: str
    value: float | None
    text: str | None
    other: str | None
    position: int | None
    judge: str
    at_s: float
    received_s: float


class FeedbackStore:
    """Feedback about the answers of one database.

    Args:
      database: whose `RECORDINGS` and `FEEDBACK` tables are there.
      checker: takes personal data and secrets out of texts before they are stored; None stores them as they come.
      clock: wall clock, seconds.
    """

    def __init__(
        self,
        database: Database,
        settings: FeedbackSettings,
        *,
        checker: Checker | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._settings, self._checker, self._clock = database, settings, checker, clock

    def add(self, tenant: str, arrivals: Sequence[Feedback]) -> list[Outcome]:
        """Stores feedback of a tenant, durably when this returns; says what became of each, in order."""
        now = self._clock()
        ready = [self._ready(tenant, arrival) for arrival in arrivals]

        def work(session: Session) -> list[Outcome]:
            outcomes = [self._added(session, tenant, arrival, now) for arrival in ready]
            _count(session, Counter(outcomes))
            names = [r.feedback_id for r, outcome in zip(ready, outcomes, strict=True) if outcome == "joined"]
            self._tell(session, tenant, names, now)
            return outcomes

        return self._db.write(work)

    def has(self, tenant: str, feedback_id: str) -> bool:
        """Whether a tenant's feedback of this name is stored."""
        return bool(
            self._db.read(
                lambda session: session.execute(
                    "SELECT 1 FROM feedback WHERE tenant = ? AND feedback_id = ?", (tenant, feedback_id)
                )
            )
        )

    @property
    def settings(self) -> FeedbackSettings:
        return self._settings

    def start(self, tenant: str, user: str, name: str) -> bool:
        """Begins a named session of an agent; False if there is one of this name."""
        key, now = name_of(tenant, user_of(tenant, user), "session", name), self._clock()
        return bool(
            self._db.write(
                lambda session: session.execute(
                    "INSERT INTO agent_sessions VALUES (?, ?, NULL) ON CONFLICT DO NOTHING RETURNING conversation",
                    (key, now),
                )
            )
        )

    def end(self, tenant: str, user: str, name: str) -> bool:
        """Ends a named session, so that trajectories are made of it; False if none of this name began."""
        key, now = name_of(tenant, user_of(tenant, user), "session", name), self._clock()
        return bool(
            self._db.write(
                lambda session: session.execute(
                    "UPDATE agent_sessions SET ended_s = coalesce(ended_s, ?) WHERE conversation = ? "
                    "RETURNING conversation",
                    (now, key),
                )
            )
        )

    def settle(self) -> int:
        """Joins feedback that came before its answer, and forgets what no answer came for; returns how many joined."""
        now, window_s = self._clock(), self._settings.window_s
        joined, after = 0, 0
        while True:
            found, last = self._db.write(partial(self._settled, after=after))
            joined += found
            if last is None:
                break
            after = last
        self._db.write(
            lambda session: session.execute(
                "DELETE FROM feedback WHERE outcome = 'unknown' AND received_s < ?", (now - window_s,)
            )
        )
        return joined

    def notices(self) -> dict[str, int]:
        """Messages to `feedback.webhooks` that wait, and those that nobody took."""
        rows: dict[str, int] = dict(
            self._db.read(
                lambda session: session.execute(f"SELECT state, count(*) FROM {FEEDBACK_NOTICES} GROUP BY state")
            )
        )
        return {state: rows.get(state, 0) for state in ("waiting", "given_up")}

    def _tell(self, session: Session, tenant: str, feedback_ids: Sequence[str], now: float) -> None:
        """Puts messages about feedback that joined among those to be sent: what was said of which answer, no texts."""
        if not self._settings.webhooks:
            return
        told = []
        for name in feedback_ids:
            ((answer_id, session_id, kind, source, value, at_s),) = session.execute(
                "SELECT answer_id, session_id, kind, source, value, at_s FROM feedback "
                "WHERE tenant = ? AND feedback_id = ?",
                (tenant, name),
            )
            response_id, _, choice = answer_id.rpartition("/")
            body = {
                "event": "feedback.joined", "tenant": tenant, "id": name, "response_id": response_id,
                "choice": int(choice), "session": session_id, "kind": kind, "source": source, "value": value,
                "at": at_s,
            }  # fmt: skip
            told.append((session_id, body))
        put_notices(session, FEEDBACK_NOTICES, self._settings.webhooks, told, now)

    def _settled(self, session: Session, after: int) -> tuple[int, int | None]:
        """How many of the next pieces joined, and the sequence to go on from; None at the end."""
        waiting = session.execute(
            "SELECT sequence, tenant, answer_id, received_s, feedback_id FROM feedback "
            "WHERE outcome = 'unknown' AND sequence > ? "
            "ORDER BY sequence LIMIT ?",
            (after, _AT_ONCE),
        )
        joined = 0
        now = self._clock()
        for sequence, tenant, answer_id, received_s, feedback_id in waiting:
            found = _answer(session, tenant, answer_id)
            if found is None:
                continue
            name, session_id, created_s = found
            outcome: Outcome = "joined" if received_s - created_s <= self._settings.window_s else "late"
            session.execute(
                "UPDATE feedback SET outcome = ?, answer_id = ?, session_id = ? WHERE sequence = ?",
                (outcome, name, session_id, sequence),
            )
            _count(session, {"unknown": -1, outcome: 1})
            if outcome == "joined":
                joined += 1
                self._tell(session, tenant, [feedback_id], now)
        return joined, waiting[-1][0] if len(waiting) == _AT_ONCE else None

    def of_answers(self) -> dict[str, list[Stored]]:
        """Joined feedback by answer, of raters that are not set aside."""
        rows = self._db.read(
            lambda session: session.execute(
                f"SELECT {_COLUMNS} FROM feedback WHERE outcome = 'joined' AND NOT EXISTS "
                "(SELECT 1 FROM quarantined_raters q WHERE q.tenant = feedback.tenant AND q.rater = feedback.rater) "
                "ORDER BY sequence"
            )
        )
        found: dict[str, list[Stored]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(Stored(*row))
        return found

    def listed(self, limit: int = 50) -> list[Stored]:
        """The newest feedback, whatever became of it."""
        rows = self._db.read(
            lambda session: session.execute(f"SELECT {_COLUMNS} FROM feedback ORDER BY sequence DESC LIMIT ?", (limit,))
        )
        return [Stored(*row) for row in rows]

    def counts(self) -> dict[Outcome, int]:
        """How many pieces had each outcome, from the first on."""
        rows: dict[Outcome, int] = dict(
            self._db.read(lambda session: session.execute("SELECT outcome, number FROM feedback_counts"))
        )
        return {outcome: rows.get(outcome, 0) for outcome in OUTCOMES}

    def _ready(self, tenant: str, arrival: Feedback) -> Feedback:
        """Feedback as it may be stored: the rater as a hash, a text without personal data."""
        text = arrival.text
        if text is not None and self._checker is not None:
            text = cleaned(self._checker, text)
        answer_id = arrival.answer_id
        if answer_id.startswith(_SESSION):
            answer_id = _SESSION + name_of(
                tenant, user_of(tenant, arrival.user), "session", answer_id.removeprefix(_SESSION)
            )
        return replace(arrival, rater=user_of(tenant, arrival.rater), text=text, answer_id=answer_id, user="")

    def _added(self, session: Session, tenant: str, arrival: Feedback, now: float) -> Outcome:
        digest = arrival.digest
        known = session.execute(
            "SELECT digest FROM feedback WHERE tenant = ? AND feedback_id = ?", (tenant, arrival.feedback_id)
        )
        if known:
            return "duplicate" if known == [(digest,)] else "conflict"
        found = _answer(session, tenant, arrival.answer_id)
        if self._is_capped(session, tenant, arrival, found, now):
            return "capped"
        outcome: Outcome = "unknown"
        if found is not None and (arrival.other is None or _answer(session, tenant, arrival.other) is not None):
            outcome = "joined" if now - found[2] <= self._settings.window_s else "late"
        name, session_id = (found[0], found[1]) if outcome != "unknown" and found else (arrival.answer_id, "")
        if outcome == "unknown" and arrival.kind == "edit":
            return "unknown"  # whether its user consents is not known: nothing of the text is kept
        added = session.execute(
            f"INSERT INTO feedback (tenant, feedback_id, digest, {_COLUMNS}) "
            f"VALUES ({','.join('?' * 16)}) ON CONFLICT DO NOTHING RETURNING sequence",
            (
                tenant,
                arrival.feedback_id,
                digest,
                name,
                session_id,
                outcome,
                arrival.kind,
                arrival.source,
                arrival.rater,
                arrival.value,
                arrival.text,
                arrival.other,
                arrival.position,
                arrival.judge,
                now if arrival.at_s is None else arrival.at_s,
                now,
            ),
        )
        return outcome if added else "duplicate"  # another process stored it at this moment

    def _is_capped(
        self, session: Session, tenant: str, arrival: Feedback, found: tuple[str, str, float] | None, now: float
    ) -> bool:
        """Whether its rater gave enough for this hour; of those without a name, all together of one session.

        What waits for its answer is nobody's session, so that a tenant can't fill the table with guesses. What a clock
        that was set back left in the future is not of this hour.
        """
        if arrival.judge:
            return False
        where, value = ("", ()) if arrival.rater else (" AND session_id = ?", ("" if found is None else found[1],))
        ((number,),) = session.execute(
            "SELECT count(*) FROM feedback WHERE tenant = ? AND rater = ? AND received_s > ? AND received_s < ?"
            + where,
            (tenant, arrival.rater, now - _HOUR_S, now + _HOUR_S, *value),
        )
        return number >= self._settings.per_rater_hour


def _answer(session: Session, tenant: str, answer_id: str) -> tuple[str, str, float] | None:
    """(id, session, time) of a kept answer of a tenant; of a named session, of its last one."""
    if answer_id.startswith(_SESSION):
        where, value = "s.conversation = ?", answer_id.removeprefix(_SESSION)
    else:
        where, value = "a.answer_id = ?", answer_id
    rows: list[Row] = session.execute(
        "SELECT a.answer_id, a.session_id, a.created_s FROM recorded_answers a "
        "JOIN recorded_sessions s ON s.session_id = a.session_id "
        f"WHERE {where} AND s.tenant = ? AND s.state = 'kept' ORDER BY a.sequence DESC LIMIT 1",
        (value, tenant),
    )
    return rows[0] if rows else None


def forget_sessions(session: Session, session_ids: Sequence[str]) -> None:
    """Removes what was said of sessions, in the transaction that empties them; see `RecordingStore`."""
    for session_id in session_ids:
        session.execute("DELETE FROM feedback WHERE session_id = ?", (session_id,))
        session.execute("UPDATE online_groups SET state = 'withdrawn' WHERE session_id = ?", (session_id,))
    forget_notices(session, FEEDBACK_NOTICES, session_ids)


def _count(session: Session, numbers: Counter[Outcome] | dict[Outcome, int]) -> None:
    session.executemany(
        "UPDATE feedback_counts SET number = number + ? WHERE outcome = ?",
        [(number, outcome) for outcome, number in sorted(numbers.items())],
    )
