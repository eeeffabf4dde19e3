"""Sends what waits in the database to addresses of others: signed, tried again, and never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import threading
import time
from collections.abc import Callable

import aiohttp

from learner_jax.contracts import quoted
from serving_bridge.database import Database, DatabaseError, Session
from serving_bridge.notices.tables import checked

#: Headers of a message: when it was sent (seconds since the epoch), its number, and HMAC-SHA-256 of "TIME.BODY".
TIME_HEADER, DELIVERY_HEADER, SIGNATURE_HEADER = "X-Weir-Timestamp", "X-Weir-Delivery", "X-Weir-Signature"
DEADLINE_S = 10.0
_MAX_TRIES, _FIRST_PAUSE_S, _MAX_PAUSE_S = 10, 2.0, 600.0
_AT_ONCE, _POLL_S = 8, 1.0
#: Deadlines after which a message that was claimed and not noted is due again.
_CLAIM = 3.0
_FIND = "SELECT sequence FROM {table} WHERE state = 'waiting' AND due_s <= ? ORDER BY due_s LIMIT ?"


def signature(secret: bytes, sent_s: int, body: str) -> str:
    """What a receiver computes anew and compares in constant time: `sha256=` and hexadecimal digits."""
    return "sha256=" + hmac.digest(secret, f"{sent_s}.{body}".encode(), hashlib.sha256).hex()


class Messenger:
    """Sends the messages that wait in the database, from a thread of its own with a connection of its own.

    Of several at work, as beside a controller that stands by, one sends a message. It may come twice, when that one is
    killed after it was sent: its number in `X-Weir-Delivery` is then the same.

    Args:
      database: whose table is there.
      table: that holds the messages (`tables`).
      keeps: whether those that were taken stay in it.
      clock: seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        secret: bytes,
        *,
        table: str = "notices",
        keeps: bool = True,
        deadline_s: float = DEADLINE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._secret, self._deadline_s, self._clock = database, secret, deadline_s, clock
        self._table, self._keeps, self._find = checked(table), keeps, _FIND.format(table=checked(table))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends it, once what is due was tried: a last round, after one that is under way, each within the deadline."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2 * self._deadline_s + 1)
        self._db.close()

    def send_due(self) -> int:
        """Sends what is due, several at once, each within the deadline; returns how many were due."""
        now_s = self._clock()
        if not self._db.read(lambda session: session.execute(self._find, (now_s, 1))):
            return 0  # most looks find nothing, and write nothing
        due = self._db.write(lambda session: self._claimed(session, now_s))
        if due:
            errors = asyncio.run(self._all(due))
            self._db.write(lambda session: self._noted(session, due, errors))
        return len(due)

    def _claimed(self, session: Session, now_s: float) -> list:
        """What is due, kept from others until it was tried, or until whoever claimed it must have been killed."""
        return session.execute(
            f"UPDATE {self._table} SET due_s = ? WHERE sequence IN ({self._find}) AND state = 'waiting' AND due_s <= ? "
            f"RETURNING sequence, address, body, tries",
            (now_s + _CLAIM * self._deadline_s, now_s, _AT_ONCE, now_s),
        )

    async def _all(self, due: list) -> list[str]:
        timeout = aiohttp.ClientTimeout(total=self._deadline_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            posts = [self._post(session, number, address, body) for number, address, body, _ in due]
            return await asyncio.gather(*posts)  # each has the session's timeout

    async def _post(self, session: aiohttp.ClientSession, number: int, address: str, body: str) -> str:
        """Why it was not taken; "" if it was."""
        sent_s = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            TIME_HEADER: str(sent_s),
            DELIVERY_HEADER: str(number),
            SIGNATURE_HEADER: signature(self._secret, sent_s, body),
        }
        try:
            async with session.post(address, data=body.encode(), headers=headers, allow_redirects=False) as answer:
                return "" if 200 <= answer.status < 300 else f"status {answer.status}"
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            return quoted(str(error) or type(error).__name__, 200)

    def _noted(self, session: Session, due: list, errors: list[str]) -> None:
        now_s = self._clock()
        for (number, _, _, tries), error in zip(due, errors, strict=True):
            state = "sent" if not error else "given_up" if tries + 1 >= _MAX_TRIES else "waiting"
            pause_s = min(_FIRST_PAUSE_S * 2**tries, _MAX_PAUSE_S)
            if state == "sent" and not self._keeps:
                session.execute(f"DELETE FROM {self._table} WHERE sequence = ?", (number,))
                continue
            session.execute(
                f"UPDATE {self._table} SET state = ?, tries = ?, due_s = ?, error = ? WHERE sequence = ?",
                (state, tries + 1, now_s + pause_s, error, number),
            )

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            self._try_due()
        self._try_due()  # a rollout's end is told also by a controller that ends with it

    def _try_due(self) -> None:
        with contextlib.suppress(DatabaseError):  # what waits goes on waiting
            self.send_due()
