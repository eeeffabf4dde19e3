"""Rollouts and their decisions as rows, within transactions that the caller holds or of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import msgspec

from learner_jax.contracts import quoted
from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.looks import Decision, Look, State
from serving_bridge.canary.policy import CanaryPolicy
from serving_bridge.database import Database, Row, Session

Phase = Literal["running", "paused", "promoted", "rolled_back", "inconclusive", "aborted"]
Asked = Literal["", "pause", "resume", "abort", "released", "anew"]
OPEN: tuple[Phase, Phase] = ("running", "paused")
_COLUMNS = (
    "rollout, namespace, number, stable, policy, state, first, phase, looks, asked, reason, actor, created_s, looked_s"
)
_MAX_REASON = 1000


@dataclass(frozen=True)
class Rollout:
    """A candidate on its way to all users, or back to none.

    Attributes:
      rollout: its number.
      number: of the candidate's entry.
      stable: entry that it is compared with.
      state: before the next look.
      first: observation that it began after.
      looks: that were decided.
      asked: what somebody wants of the controller, until it was done; `released` where training was let go on,
        `anew` where it was to begin anew with the stable entry's weights.
      reason: why it is in its phase.
      looked_s: when the last look was, or when it began.
    """

    rollout: int
    namespace: str
    number: int
    stable: int
    policy: CanaryPolicy
    state: State
    first: int
    phase: Phase
    looks: int
    asked: Asked
    reason: str
    actor: str
    created_s: float
    looked_s: float

    @property
    def is_open(self) -> bool:
        return self.phase in OPEN

    @property
    def holds_training(self) -> bool:
        """Whether training waits for somebody: it was rolled back, and nobody has let training go on."""
        return self.phase == "rolled_back" and not self.asked and self.policy.after_rollback == "hold"

    @property
    def begins_anew(self) -> bool:
        """Whether the candidate's run goes on with the stable entry's weights: somebody, or its policy, says so."""
        is_automatic = not self.asked and self.policy.after_rollback == "anew"
        return self.phase == "rolled_back" and (self.asked == "anew" or is_automatic)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A decision with all that it rests on, beside the policy and the looks before it."""

    look: Look
    decision: Decision


@dataclass(frozen=True)
class Decided:
    """A stored decision: of which look and step, when, and its record."""

    look: int
    step: int
    created_s: float
    record: Record


class Rollouts:
    """Reads rollouts and asks something of them; only a controller changes where they stand."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def open_one(self, namespace: str) -> Rollout | None:
        """The rollout that is under way; None if there is none."""
        return self._db.read(lambda session: open_one(session, namespace))

    def latest(self, namespace: str, *, limit: int = 1) -> list[Rollout]:
        """The newest ones, newest first."""
        find = f"SELECT {_COLUMNS} FROM rollouts WHERE namespace = ? ORDER BY rollout DESC LIMIT ?"
        return [_read(row) for row in self._db.read(lambda session: session.execute(find, (namespace, limit)))]

    def one(self, namespace: str, rollout: int) -> Rollout:
        """Raises `CanaryError` if there is no such rollout."""
        find = f"SELECT {_COLUMNS} FROM rollouts WHERE namespace = ? AND rollout = ?"
        rows = self._db.read(lambda session: session.execute(find, (namespace, rollout)))
        if not rows:
            raise CanaryError(f"{namespace} has no rollout {rollout}; `history` shows those that it has")
        return _read(rows[0])

    def decisions(self, rollout: int, *, limit: int | None = None) -> list[Decided]:
        """Decisions of a rollout, oldest first; with `limit` the newest so many.

        Raises:
          CanaryError: one is not what was stored.
        """
        find = "SELECT look, step, created_s, document FROM decisions WHERE rollout = ? ORDER BY look DESC"
        rows = self._db.read(
            lambda session: session.execute(f"{find} LIMIT ?", (rollout, 2**31 - 1 if limit is None else limit))
        )
        return [
            Decided(look, step, at_s, _record(document, rollout, look)) for look, step, at_s, document in reversed(rows)
        ]

    def ask(self, namespace: str, what: Asked) -> Rollout:
        """Asks the controller of the open rollout to do something; returns the rollout.

        Raises:
          CanaryError: no rollout is open, or it can't be done to it.
        """

        def work(session: Session) -> Rollout:
            found = open_one(session, namespace)
            if found is None:
                raise CanaryError(f"{namespace} has no rollout under way; `start` begins one")
            if (what, found.phase) in (("pause", "paused"), ("resume", "running")):
                raise CanaryError(f"rollout {found.rollout} of {namespace} is {found.phase} already")
            if not session.execute(
                "UPDATE rollouts SET asked = ? WHERE rollout = ? AND phase = ? AND (asked <> 'abort' OR ? = 'abort') "
                "RETURNING rollout",
                (what, found.rollout, found.phase, what),
            ):
                raise CanaryError(f"rollout {found.rollout} of {namespace} is being ended: look at its status")
            return found

        return self._db.write(work)

    def release(self, namespace: str, *, anew: bool = False) -> Rollout:
        """Lets training go on after a rollback, where it stands or `anew` with the stable entry's weights.

        Raises:
          CanaryError: it is not held.
        """

        def work(session: Session) -> Rollout:
            find = f"SELECT {_COLUMNS} FROM rollouts WHERE namespace = ? ORDER BY rollout DESC LIMIT 1"
            rows = session.execute(find, (namespace,))
            if not rows or _read(rows[0]).phase != "rolled_back" or _read(rows[0]).asked in ("released", "anew"):
                raise CanaryError(f"training of {namespace} is not held: its newest rollout was not rolled back")
            asked: Asked = "anew" if anew else "released"
            session.execute("UPDATE rollouts SET asked = ? WHERE rollout = ?", (asked, rows[0][0]))
            return _read(rows[0])

        return self._db.write(work)


def open_one(session: Session, namespace: str, *, locked: bool = False) -> Rollout | None:
    """The rollout that is under way; `locked`: nobody else changes it until the transaction ends."""
    lock = session.dialect.for_update if locked else ""
    rows = session.execute(
        f"SELECT {_COLUMNS} FROM rollouts WHERE namespace = ? AND phase IN ('running', 'paused'){lock}", (namespace,)
    )
    return _read(rows[0]) if rows else None


def insert(
    session: Session,
    namespace: str,
    *,
    number: int,
    stable: int,
    policy: CanaryPolicy,
    first: int,
    actor: str,
    reason: str,
    now_s: float,
) -> Rollout:
    """Begins a rollout."""
    state = msgspec.json.encode(State(until=first)).decode()
    session.execute(
        "INSERT INTO rollouts (namespace, number, stable, policy, state, first, phase, looks, reason, actor, "
        "created_s, looked_s) VALUES (?, ?, ?, ?, ?, ?, 'running', 0, ?, ?, ?, ?)",
        (
            namespace,
            number,
            stable,
            policy.model_dump_json(),
            state,
            first,
            quoted(reason, _MAX_REASON),
            quoted(actor, 200),
            now_s,
            now_s,
        ),
    )
    made = open_one(session, namespace)
    assert made is not None
    return made


def decided(session: Session, rollout: Rollout, look: Look, state: State, decision: Decision) -> None:
    """Keeps a decision and the state after it."""
    session.execute(
        "INSERT INTO decisions (rollout, look, step, verdict, document, created_s) VALUES (?, ?, ?, ?, ?, ?)",
        (
            rollout.rollout,
            rollout.looks + 1,
            rollout.state.step,
            decision.verdict,
            msgspec.json.encode(Record(look, decision)).decode(),
            look.at_s,
        ),
    )
    session.execute(
        "UPDATE rollouts SET state = ?, looks = ?, looked_s = ? WHERE rollout = ?",
        (msgspec.json.encode(state).decode(), rollout.looks + 1, look.at_s, rollout.rollout),
    )


def in_phase(session: Session, rollout: Rollout, phase: Phase, reason: str) -> None:
    """Sets the phase of a rollout; what was asked of it is done by that."""
    session.execute(
        "UPDATE rollouts SET phase = ?, reason = ?, asked = '' WHERE rollout = ?",
        (phase, quoted(reason, _MAX_REASON), rollout.rollout),
    )


def notify(session: Session, policy: CanaryPolicy, body: Mapping[str, Any], now_s: float) -> None:
    """Puts a message to each of the policy's addresses among those to be sent."""
    text = msgspec.json.encode(dict(body)).decode()
    for address in policy.webhooks:
        session.execute(
            "INSERT INTO notices (address, body, tries, due_s, state) VALUES (?, ?, 0, ?, 'waiting')",
            (address, text, now_s),
        )


def _record(document: str, rollout: int, look: int) -> Record:
    try:
        return msgspec.json.decode(document, type=Record)
    except msgspec.MsgspecError as error:
        raise CanaryError(
            f"decision {look} of rollout {rollout} is none: its row was changed ({quoted(str(error), 200)})"
        ) from None


@lru_cache(maxsize=16)
def _policy(text: str) -> CanaryPolicy:
    """Of a row; the same few are read again and again, and can't change."""
    return CanaryPolicy.model_validate_json(text)


def _state(text: str, policy: CanaryPolicy) -> State:
    state = msgspec.json.decode(text, type=State)
    if not 0 <= state.step < len(policy.steps):
        raise ValueError(f"it is at step {state.step}, and its policy has {len(policy.steps)}")
    if unknown := {one.metric for one in state.kept} - {one.name for one in policy.metrics}:
        raise ValueError(f"it has sums of {quoted(min(unknown), 60)}, which is no metric of its policy")
    return state


def _read(row: Row) -> Rollout:
    """Raises `CanaryError` for a row that nobody of ours wrote."""
    rollout, namespace, number, stable, text, given, first, phase, looks, asked, *rest = row
    try:
        policy = _policy(text)
        state = _state(given, policy)
        if asked not in get_args(Asked):
            raise ValueError(f"asked is {quoted(asked, 40)}, expected one of {', '.join(get_args(Asked)[1:])}, or none")
    except ValueError as error:  # of pydantic and msgspec, too
        raise CanaryError(
            f"rollout {rollout} of {namespace} is none: its row was changed ({quoted(str(error), 300)}); correct it, "
            f"or take the traffic back by hand (tools.registry move canary=)"
        ) from None
    return Rollout(rollout, namespace, number, stable, policy, state, first, phase, looks, asked, *rest)
