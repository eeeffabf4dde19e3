"""All that a gateway holds of limits and budgets, by scope: from a tenant's first request until it has gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from serving_bridge.tenants.allowances import Allowance, AllowanceGrant, AllowanceOffer, Budget
from serving_bridge.tenants.answers import Answers
from serving_bridge.tenants.meter_rows import BilledIds
from serving_bridge.tenants.records import Limits
from serving_bridge.tenants.slices import Slice, SliceGrant, SliceOffer, SlicePolicy

#: Between two exchanges that are asked for since the same scope has nothing left.
_AGAIN_S = 0.25


class Holdings:
    """See the module; used by the event loop's thread only.

    Attributes:
      answers: admitted, and not yet billed in the database.
    """

    def __init__(self, policy: SlicePolicy, answers: Answers, now: float) -> None:
        self.policy, self.answers = policy, answers
        self._slices: dict[str, Slice] = {}
        self._allowances: dict[tuple[str, str], Allowance] = {}
        self._lapses_s = now + policy.lease_s
        self._is_cut_off = False
        self._news = asyncio.Event()
        self._asked_s: dict[str, float] = {}  # scope -> when it was asked for, and nothing came yet
        #: Offers to leave that the database perhaps never heard; the units in them went with the first try.
        self._left: dict[str, SliceOffer] = {}

    @property
    def is_cut_off(self) -> bool:
        """Whether the lease ran out, as was noticed at the last request or exchange."""
        return self._is_cut_off

    def slice_of(self, scope: str, limits: Limits, now: float) -> Slice:
        """The slice of a scope, on credit if it is new, and cut down if the lease has run out."""
        if now > self._lapses_s and not self._is_cut_off:
            self._cut_off(now)
        found = self._slices.get(scope)
        if found is None:
            found = self._slices[scope] = Slice(scope, limits, self.policy, now)
            if self._is_cut_off:
                found.cut_off(now)
            self._news.set()
        else:
            found.update(limits, now)
        return found

    def allowance_of(self, scope: str, month: str, limits: Limits) -> Allowance | None:
        """What is held of a month's budget; None where there is no budget."""
        if limits.month_tokens is None and limits.month_nanos is None:
            return None
        found = self._allowances.get((scope, month))
        if found is None:
            found = Allowance(scope, month, Budget(limits.month_tokens, limits.month_nanos))
            self._allowances[scope, month] = found
            self._news.set()
        elif (found.budget.tokens, found.budget.nanos) != (limits.month_tokens, limits.month_nanos):
            found.budget = Budget(limits.month_tokens, limits.month_nanos)
        return found

    def ask_soon(self, scope: str, now: float) -> None:
        """Something of a scope ran out: the next exchange should not wait for its turn.

        While exchanges bring nothing, a scope is asked for at most every `_AGAIN_S`, however often it is refused.
        """
        if now >= self._asked_s.get(scope, -math.inf) + _AGAIN_S:
            self._asked_s[scope] = now
            self._news.set()

    async def wait_for_news(self, timeout_s: float) -> None:
        """Returns when a scope is new, or something ran out, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()

    def offers(
        self, now: float, elapsed_s: float, billed: BilledIds, *, leaving: bool = False
    ) -> tuple[list[SliceOffer], list[AllowanceOffer]]:
        """What the database is to be told of slices and budgets.

        Args:
          billed: answers that the same transaction bills, by scope and month.
          leaving: the process ends; everything is given back.
        """
        self._news.clear()
        if now > self._lapses_s and not self._is_cut_off:
            self._cut_off(now)
        slices = [found.offer(now, elapsed_s, leaving=leaving) for found in self._slices.values()]
        for offer in slices:
            self._left.pop(offer.scope, None)
            if offer.leaves:
                del self._slices[offer.scope]  # who comes now begins on credit
                self._asked_s.pop(offer.scope, None)
                self._left[offer.scope] = replace(offer, requests=0.0, tokens=0.0)
        again = [offer for offer in self._left.values() if all(offer.scope != told.scope for told in slices)]
        return [*slices, *again], [
            found.offer(billed.get(key, ())) for key, found in self._allowances.items() if found.is_due
        ]

    def granted(
        self,
        slices: Sequence[SliceGrant],
        amounts: Sequence[AllowanceGrant],
        billed: BilledIds,
        now: float,
    ) -> bool:
        """Takes over what was written; whether another exchange should follow at once, since others wait for room."""
        again = False
        for grant in slices:
            self._left.pop(grant.scope, None)
            if (found := self._slices.get(grant.scope)) is not None and found.was_offered:
                before = found.share
                again = found.granted(grant, now) or again
                if found.share > before:
                    self._asked_s.pop(grant.scope, None)
        grants = {(grant.scope, grant.month): grant for grant in amounts}
        newest = max((month for _, month in self._allowances), default="")
        for key, allowance in list(self._allowances.items()):
            allowance.written(billed.get(key, ()))
            if (amount := grants.get(key)) is not None and allowance.granted(amount):
                self._asked_s.pop(allowance.scope, None)
            if key[1] < newest and allowance.is_idle:
                del self._allowances[key]
        return again

    def renewed(self, began_s: float) -> None:
        """The database heard of this gateway in a transaction that began then."""
        self._lapses_s = began_s + self.policy.lease_s
        self._is_cut_off = False

    def lost(self, now: float) -> None:
        """The others have given this gateway up, and hold what was its own."""
        for found in self._slices.values():
            found.lost(now)

    def close_all(self, now: float) -> None:
        """Settles every open answer at its reservation."""
        self.answers.lapse(float("inf"))

    def _cut_off(self, now: float) -> None:
        self._is_cut_off = True
        for found in self._slices.values():
            found.cut_off(now)
