"""Who may move a namespace's aliases: one holder at a time, told apart by a number that only goes up.

The number is a fencing token: it is checked in the transaction of each move, so a holder that was stopped for hours, or
whose clock jumped, can't move anything once another has taken over. Clocks decide only when somebody else may.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving_bridge.database import Session
from serving_bridge.registry.errors import NotHolderError, RegistryError

MAX_LEASE_S = 86_400.0


@dataclass(frozen=True)
class RegistryLease:
    """A lease as its holder knows it."""

    namespace: str
    holder: str
    token: int
    expires_s: float


def take(
    session: Session, namespace: str, holder: str, duration_s: float, now_s: float, *, by_force: bool = False
) -> RegistryLease:
    """Takes the lease, or renews it where `holder` has it.

    Args:
      by_force: also from a holder whose time is not over; it is fenced off.

    Raises:
      NotHolderError: another holds it.
      RegistryError: a duration that is not within a day.
    """
    if not 0 < duration_s <= MAX_LEASE_S:
        raise RegistryError(f"a lease of {duration_s} s, expected more than 0 and at most {MAX_LEASE_S}")
    session.execute(
        "INSERT INTO registry_leases VALUES (?, '', 0, 0) ON CONFLICT (name) DO NOTHING",
        (namespace,),
    )
    current, token, expires_s = _row(session, namespace)
    if current not in ("", holder) and expires_s > now_s and not by_force:
        raise NotHolderError(
            f"{current} holds the aliases of {namespace} for up to {expires_s - now_s:.0f} s more: wait for it, stop "
            f"it, or take over from it (--take-over)"
        )
    token = token if current == holder else token + 1
    session.execute(
        "UPDATE registry_leases SET holder = ?, token = ?, expires_s = ? WHERE name = ?",
        (holder, token, now_s + duration_s, namespace),
    )
    return RegistryLease(namespace, holder, token, now_s + duration_s)


def check(session: Session, lease: RegistryLease) -> None:
    """Holds the lease's row until the transaction ends. Raises `NotHolderError` unless the lease is the newest."""
    current, token, _ = _row(session, lease.namespace)
    if (current, token) != (lease.holder, lease.token):
        raise NotHolderError(
            f"{lease.holder} held the aliases of {lease.namespace} with token {lease.token}; now "
            f"{current or 'nobody'} does, with token {token}: nothing was moved"
        )


def release(session: Session, lease: RegistryLease) -> None:
    """Gives it back if it is still held; the token stays used."""
    session.execute(
        "UPDATE registry_leases SET holder = '', expires_s = 0, token = token + 1 "
        "WHERE name = ? AND holder = ? AND token = ?",
        (lease.namespace, lease.holder, lease.token),
    )


def holder_of(session: Session, namespace: str) -> RegistryLease | None:
    """The last holder who did not give it back; its time may be over."""
    rows = session.execute("SELECT holder, token, expires_s FROM registry_leases WHERE name = ?", (namespace,))
    if not rows or not rows[0][0]:
        return None
    holder, token, expires_s = rows[0]
    return RegistryLease(namespace, holder, token, expires_s)


def _row(session: Session, namespace: str) -> tuple[str, int, float]:
    rows = session.execute(
        f"SELECT holder, token, expires_s FROM registry_leases WHERE name = ?{session.dialect.for_update}",
        (namespace,),
    )
    if not rows:
        return "", 0, 0.0
    ((holder, token, expires_s),) = rows
    return holder, token, expires_s
