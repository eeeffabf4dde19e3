"""A gateway's part of a month's budget: an amount that it may spend without asking, and asks for again in time.

The bound: all gateways together spend at most the budget and, for each gateway process that lived in the month, the
credit on which it begins, a 32nd of the budget. The database adds up what was billed and what gateways hold; it hands
out only what is left. No clock is needed but the one that names the month.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from serving_bridge.database import Session

#: A gateway asks for so much of the budget beyond what its open answers need.
PART = 32


class Amount(msgspec.Struct, frozen=True):
    """Tokens, and money in billionths of the currency's unit."""

    tokens: int = 0
    nanos: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.nanos + other.nanos)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.nanos - other.nanos)


NOTHING = Amount()


@dataclass(frozen=True)
class Budget:
    """A month's limits; None is no limit."""

    tokens: int | None
    nanos: int | None


@dataclass(frozen=True)
class AllowanceOffer:
    """What a gateway holds of a budget, and what it would like to hold. Consumer: the exchange in the database.

    Attributes:
      written: part of both that is billed in the same transaction, and held no longer.
    """

    scope: str
    month: str
    budget: Budget
    held: Amount
    wanted: Amount
    written: Amount


@dataclass(frozen=True)
class AllowanceGrant:
    """What is written for the gateway from now on, and what is left of the budget for anybody."""

    scope: str
    month: str
    held: Amount
    left: Amount


class Allowance:
    """A gateway's part of one scope's budget of one month; used by one thread.

    Attributes:
      used: reservations of open answers, and usage that is not yet written.
    """

    def __init__(self, scope: str, month: str, budget: Budget) -> None:
        self.scope, self.month, self.budget = scope, month, budget
        self.used = NOTHING
        self._held = NOTHING
        self._left: Amount | None = None
        self._largest = NOTHING
        self._by_answer: dict[str, Amount] = {}
        self._offered: Amount | None = None

    @property
    def is_due(self) -> bool:
        """Whether something changed that the database should hear."""
        return self._left is None or self._offered != self.used

    def reserve(self, response_id: str, cost: Amount) -> None:
        """Holds so much for an answer."""
        self._by_answer[response_id] = cost
        self.used += cost

    def settle(self, response_id: str, usage: Amount) -> None:
        """What the answer used in the place of what was reserved; held until it is written."""
        if (reserved := self._by_answer.get(response_id)) is not None:
            self._by_answer[response_id] = usage
            self.used += usage - reserved

    def written(self, response_ids: Iterable[str]) -> None:
        """These answers are in the sum in the database: what they used is gone from what is held here."""
        for response_id in response_ids:
            self._held -= self.release(response_id)

    def release(self, response_id: str) -> Amount:
        """Holds nothing for an answer any more; returns what it was."""
        usage = self._by_answer.pop(response_id, NOTHING)
        self.used -= usage
        if usage != NOTHING:
            self._offered = None
        return usage

    @property
    def is_idle(self) -> bool:
        return not self._by_answer

    def has_room(self, cost: Amount) -> bool:
        """Whether a cost may be reserved: from what is held, or on credit before the first grant."""
        self._largest = Amount(max(self._largest.tokens, cost.tokens), max(self._largest.nanos, cost.nanos))
        held = self._held if self._left is not None else _part(self.budget)
        found = _fits(self.used.tokens + cost.tokens, held.tokens, self.budget.tokens) and _fits(
            self.used.nanos + cost.nanos, held.nanos, self.budget.nanos
        )
        if not found:
            self._offered = None  # more is to be asked for
        return found

    def is_spent(self, cost: Amount) -> bool:
        """Whether a cost has no room in the whole budget either, as far as this gateway has heard."""
        if self._left is None:
            return not (
                _fits(cost.tokens, self.budget.tokens or 0, self.budget.tokens)
                and _fits(cost.nanos, self.budget.nanos or 0, self.budget.nanos)
            )
        room = self._left + self._held - self.used
        return not (
            _fits(cost.tokens, room.tokens, self.budget.tokens) and _fits(cost.nanos, room.nanos, self.budget.nanos)
        )

    def offer(self, billed: Iterable[str]) -> AllowanceOffer:
        """What the database is to be told; what is no longer wanted is given up from now on.

        Args:
          billed: answers that the same transaction bills.
        """
        part = _part(self.budget)
        spare = Amount(max(part.tokens, 2 * self._largest.tokens), max(part.nanos, 2 * self._largest.nanos))
        wanted = self.used + spare
        self._offered = self.used
        self._held = Amount(min(self._held.tokens, wanted.tokens), min(self._held.nanos, wanted.nanos))
        written = sum((self._by_answer.get(response_id, NOTHING) for response_id in billed), NOTHING)
        return AllowanceOffer(self.scope, self.month, self.budget, self._held, wanted, written)

    def granted(self, grant: AllowanceGrant) -> bool:
        """Takes over what was written; whether more is held now."""
        before, self._held, self._left = self._held, grant.held, grant.left
        return self._held.tokens > before.tokens or self._held.nanos > before.nanos


def _part(budget: Budget) -> Amount:
    return Amount(max(1, (budget.tokens or 0) // PART), max(1, (budget.nanos or 0) // PART))


def _fits(amount: int, room: int, limit: int | None) -> bool:
    return limit is None or amount <= room


# In the database.


def add_spent(session: Session, scope: str, month: str, amount: Amount) -> None:
    """Adds what was billed to the sum of a month."""
    session.execute(
        "INSERT INTO budgets VALUES (?, ?, ?, ?) ON CONFLICT (scope, month) "
        "DO UPDATE SET tokens = budgets.tokens + excluded.tokens, nanos = budgets.nanos + excluded.nanos",
        (scope, month, amount.tokens, amount.nanos),
    )


def exchange(session: Session, gateway: str, offers: Iterable[AllowanceOffer]) -> list[AllowanceGrant]:
    """Writes what a gateway holds of each budget, and hands out what is left; after the bills are written."""
    grants = []
    for offer in sorted(offers, key=lambda offer: (offer.scope, offer.month)):
        key = (offer.scope, offer.month)
        add_spent(session, *key, NOTHING)
        lock = session.dialect.for_update
        ((tokens, nanos),) = session.execute(
            f"SELECT tokens, nanos FROM budgets WHERE scope = ? AND month = ?{lock}", key
        )
        others = NOTHING
        for row in session.execute(
            "SELECT tokens, nanos FROM allowances WHERE scope = ? AND month = ? AND gateway <> ?", (*key, gateway)
        ):
            others += Amount(*row)
        held, wanted = offer.held - offer.written, offer.wanted - offer.written
        left = Amount(offer.budget.tokens or 0, offer.budget.nanos or 0) - Amount(tokens, nanos) - others - held
        grown = Amount(_grown(held.tokens, wanted.tokens, left.tokens), _grown(held.nanos, wanted.nanos, left.nanos))
        grant = AllowanceGrant(*key, held + grown, left - grown)
        session.execute(
            "INSERT INTO allowances VALUES (?, ?, ?, ?, ?) ON CONFLICT (scope, month, gateway) "
            "DO UPDATE SET tokens = excluded.tokens, nanos = excluded.nanos",
            (*key, gateway, grant.held.tokens, grant.held.nanos),
        )
        grants.append(grant)
    return grants


def _grown(held: int, wanted: int, left: int) -> int:
    return max(0, min(wanted - held, left))


def forget(session: Session, gateway: str) -> None:
    """Frees what a gateway holds that is gone, once its open answers are billed."""
    session.execute("DELETE FROM allowances WHERE gateway = ?", (gateway,))
