"""How gateways exchange slices of limits in the database, inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving_bridge.database import Session
from serving_bridge.tenants.slices import SliceGrant, SliceOffer

#: Part of the mean demand that counts for each gateway beside its own, so that none is left without a share.
_FLOOR = 0.1


def exchange(session: Session, gateway: str, offers: Iterable[SliceOffer]) -> list[SliceGrant]:
    """Writes a gateway's shares, takes back what it gives up, and gives it what is free and due.

    Deadlocks are avoided by the order of the scopes.
    """
    return [_one(session, gateway, offer) for offer in sorted(offers, key=lambda offer: offer.scope)]


def _one(session: Session, gateway: str, offer: SliceOffer) -> SliceGrant:
    scope = offer.scope
    session.execute(
        "INSERT INTO limit_pools VALUES (?, ?, ?) ON CONFLICT (scope) DO NOTHING",
        (scope, offer.request_burst, offer.token_burst),
    )
    lock = session.dialect.for_update
    ((requests, tokens),) = session.execute(f"SELECT requests, tokens FROM limit_pools WHERE scope = ?{lock}", (scope,))
    others = session.execute("SELECT share, demand FROM slices WHERE scope = ? AND gateway <> ?", (scope, gateway))
    taken = sum(share for share, _ in others)
    free = max(0.0, 1.0 - taken - offer.share)
    requests = min(requests + offer.requests, free * offer.request_burst)
    tokens = min(tokens + offer.tokens, free * offer.token_burst)
    due = 0.0 if offer.leaves else due_share(offer.demand, [demand for _, demand in others])
    grown = min(max(0.0, due - offer.share), free)
    part = grown / free if free > 0 else 0.0
    grant = SliceGrant(scope, offer.share + grown, requests * part, tokens * part, due)
    session.execute(
        "UPDATE limit_pools SET requests = ?, tokens = ? WHERE scope = ?",
        (requests - grant.requests, tokens - grant.tokens, scope),
    )
    if offer.leaves:
        session.execute("DELETE FROM slices WHERE scope = ? AND gateway = ?", (scope, gateway))
    else:
        session.execute(
            "INSERT INTO slices VALUES (?, ?, ?, ?) "
            "ON CONFLICT (scope, gateway) DO UPDATE SET share = excluded.share, demand = excluded.demand",
            (scope, gateway, grant.share, offer.demand),
        )
    return grant


def due_share(own: float, others: Sequence[float]) -> float:
    """The share that a gateway should have, by its demand beside the others'; all gateways' add up to 1."""
    everyone = len(others) + 1
    total = own + sum(others)
    if total <= 0:
        return 1.0 / everyone
    floor = _FLOOR * total / everyone
    return (own + floor) / (total + everyone * floor)


# Who is there.


def beat(session: Session, gateway: str) -> bool:
    """Tells that a gateway lives; False if it is new, or was given up by the others since it last did."""
    if session.execute("UPDATE gateways SET beat = beat + 1 WHERE gateway = ? RETURNING beat", (gateway,)):
        return True
    session.execute("INSERT INTO gateways VALUES (?, 1)", (gateway,))
    session.execute("DELETE FROM slices WHERE gateway = ?", (gateway,))
    return False


def beats(session: Session) -> dict[str, int]:
    """How often each gateway has told that it lives."""
    return dict(session.execute("SELECT gateway, beat FROM gateways"))


def give_up(session: Session, gateway: str, at_beat: int | None = None) -> bool:
    """Frees the shares of a gateway that is gone, without the units that it held.

    Args:
      at_beat: only if it has not told that it lives since then.
    """
    where, parameters = ("", (gateway,)) if at_beat is None else (" AND beat = ?", (gateway, at_beat))
    gone = session.execute(f"DELETE FROM gateways WHERE gateway = ?{where} RETURNING gateway", parameters)
    if gone or at_beat is None:
        session.execute("DELETE FROM slices WHERE gateway = ?", (gateway,))
    return bool(gone)
