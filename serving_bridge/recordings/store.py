"""Recorded sessions in the database: what gateways write and go on from, and what people may see and withdraw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from serving_bridge.database import Database, Session
from serving_bridge.recordings import rows
from serving_bridge.recordings.records import Kept, RecordingError, user_of
from serving_bridge.recordings.rows import Recorded, SessionRow

_SHOWN = 10_000
#: Seconds for which the row of an emptied session stays: nothing of it that comes later is stored again.
_REMEMBERED_S = 30 * 86_400.0
#: Sessions that one transaction empties.
_AT_ONCE = 200

#: What goes with sessions that are emptied, in the same transaction: (session, ids).
Also = Callable[[Session, Sequence[str]], None]


@dataclass(frozen=True)
class Found:
    """What a gateway needs to go on with a conversation, or to begin it."""

    generation: str
    recorded: Recorded | None


class RecordingStore:
    """Recorded sessions.

    Args:
      database: whose `RECORDINGS` tables are there.
      clock: wall clock, seconds.
      also: what else goes with a session that is withdrawn or whose time is over.
      after: called when that is durable, and with each purge, for what is in no database.

    Attributes:
      after: as given; more may be added.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        also: Sequence[Also] = (),
        after: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._db, self._clock = database, clock
        self._also, self.after = tuple(also), tuple(after)

    def find(self, tenant: str, user: str, conversation: str, *, resume_s: float) -> Found:
        """The session of a conversation, and the generation of its user's consent.

        Args:
          user, conversation: as `SessionHead` has them.
        """
        since_s = self._clock() - resume_s

        def work(session: Session) -> Found:
            generation = rows.generation(session, tenant, user)
            name = rows.newest(session, conversation, generation)
            found = rows.read(session, name) if name is not None else None
            return Found(generation, found if found is not None and found.row.last_s >= since_s else None)

        return self._db.read(work)

    def write(self, lines: Sequence[Kept]) -> list[str]:
        """Stores lines, durably when this returns; returns sessions of which nothing may be stored any more."""
        return self._db.write(lambda session: rows.write(session, lines))

    def read(self, session_id: str) -> Recorded:
        """A session whole. Raises `RecordingError` if there is none."""
        found = self._db.read(lambda session: rows.read(session, session_id))
        if found is None:
            raise RecordingError(f"there is no session {session_id[:80]!a}: `list` names those that are kept")
        return found

    def listed(self, *, tenant: str = "", user: str = "", limit: int = _SHOWN) -> list[SessionRow]:
        """Sessions, those that were gone on with last first.

        Args:
          user: as the tenant names it; needs `tenant`.
        """
        where, parameters = _whose(tenant, user)
        return self._db.read(lambda session: rows.listed(session, where, parameters, limit))

    def counts(self) -> dict[str, int]:
        """Sessions by state, and answers."""
        return self._db.read(rows.counts)

    def each(self, *, tenant: str = "", user: str = "") -> Iterator[Recorded]:
        """Kept sessions whole, all of them, those that were gone on with last first."""
        where, parameters = _whose(tenant, user)
        yield from self.whole(self._db.read(lambda session: rows.kept(session, where, parameters)))

    def whole(self, session_ids: Iterable[str]) -> Iterator[Recorded]:
        """Those of these sessions that are kept, one transaction for each."""
        for session_id in session_ids:
            found = self._db.read(partial(rows.read, session_id=session_id))
            if found is not None and found.row.state == "kept":
                yield found

    def withdraw(self, *, tenant: str = "", user: str = "", session_id: str = "") -> list[str]:
        """Takes back consent of a tenant, of one of its users, or of one session; returns the sessions that it reached.

        What is on its way to the database under the old consent is not stored either.

        Raises:
          RecordingError: nothing is named, or there is no such session.
        """
        if not tenant and not session_id:
            raise RecordingError("whose consent? name a session, or a tenant, or a tenant and its user")
        now = self._clock()

        def work(session: Session) -> list[str]:
            if session_id:
                if not session.execute("SELECT 1 FROM recorded_sessions WHERE session_id = ?", (session_id,)):
                    raise RecordingError(f"there is no session {session_id[:80]!a}: `list` names those that are kept")
                reached, whose = [session_id], ("", "")
            else:
                name = user_of(tenant, user)
                rows.raise_generation(session, tenant, name or rows.EVERYBODY)
                where, parameters = _whose(tenant, user)
                found = session.execute(
                    f"SELECT session_id FROM recorded_sessions WHERE {where} AND state <> 'withdrawn' "
                    "ORDER BY session_id",
                    parameters,
                )
                reached, whose = [row[0] for row in found], (tenant, name)
            self._empty(session, reached, "withdrawn")
            session.execute(
                "INSERT INTO withdrawals (tenant, user_name, session_id, at_s, sessions) VALUES (?, ?, ?, ?, ?)",
                (*whose, session_id, now, len(reached)),
            )
            return reached

        reached = self._db.write(work)
        for after in self.after:
            after()
        return reached

    def withdrawals(self) -> list[tuple[str, str, str, float]]:
        """(tenant, hash of the user, session, time) of every withdrawal, in order; "" where one is not named."""
        return [
            (tenant, user, session_id, at_s)
            for tenant, user, session_id, at_s in self._db.read(
                lambda session: session.execute(
                    "SELECT tenant, user_name, session_id, at_s FROM withdrawals ORDER BY sequence"
                )
            )
        ]

    def purge(self) -> int:
        """Empties sessions whose time is over, and forgets those that were emptied long ago; returns how many ended."""
        now = self._clock()

        def work(session: Session) -> list[str]:
            over = session.execute(
                "SELECT session_id FROM recorded_sessions WHERE state = 'kept' AND expires_s < ? "
                "ORDER BY expires_s LIMIT ?",
                (now, _AT_ONCE),
            )
            ended = [row[0] for row in over]
            self._empty(session, ended, "expired")
            session.execute(
                "DELETE FROM recorded_sessions WHERE state <> 'kept' AND expires_s < ?", (now - _REMEMBERED_S,)
            )
            return ended

        total = 0
        while ended := self._db.write(work):
            total += len(ended)
            if len(ended) < _AT_ONCE:
                break
        for after in self.after:  # also where nothing ended: what it could not reach before is tried again
            after()
        return total

    def _empty(self, session: Session, session_ids: Sequence[str], state: str) -> None:
        for also in self._also:
            also(session, session_ids)
        rows.emptied(session, session_ids, state)


def _whose(tenant: str, user: str) -> tuple[str, tuple[str, ...]]:
    if user and not tenant:
        raise RecordingError("a user is a tenant's: name the tenant, too")
    if not tenant:
        return "1 = 1", ()
    return ("tenant = ? AND user_name = ?", (tenant, user_of(tenant, user))) if user else ("tenant = ?", (tenant,))
