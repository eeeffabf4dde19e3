"""Whether and when a request may pass: limits, budgets, pressure and turn, then a ticket that is settled once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from learner_jax.contracts import quoted
from serving_bridge.settings import PRIORITIES, VLLM_PRIORITY, Priority
from serving_bridge.tenants.allowances import Allowance, Amount
from serving_bridge.tenants.directory import Directory
from serving_bridge.tenants.errors import BudgetSpent, NotAllowed, RateLimited, Shed, TooLarge, Unavailable
from serving_bridge.tenants.fair_queue import FairQueue, QueueBounds
from serving_bridge.tenants.holdings import Holdings
from serving_bridge.tenants.journal import Began, Ended
from serving_bridge.tenants.money import price_of
from serving_bridge.tenants.records import (
    DEPLOYMENT,
    MAX_TEXT,
    Caller,
    Limits,
    tenant_scope,
)
from serving_bridge.tenants.shedding import Pressure
from serving_bridge.tenants.slices import Slice

#: Of one request: at the highest price its cost is still a number that a row takes.
_MAX_TOKENS = 2**31
#: When something comes that is asked for at the database: by then it answered.
_SOON_S = 1.0


@dataclass(frozen=True)
class Ask:
    """What a request may take at most.

    Attributes:
      n: answers of `max_tokens` each.
      model: as the request names it, for its price.
      priority: a class that is served later than the tenant's own, if the request asks for one.
    """

    prompt_tokens: int
    max_tokens: int
    n: int = 1
    model: str = ""
    priority: Priority | None = None

    @property
    def completion_tokens(self) -> int:
        return self.n * self.max_tokens


class Ticket:
    """Leave for one request. It is settled once: by its usage, by `cancel`, or at its reservation after the lease.

    Attributes:
      priority: for vLLM's scheduler.
    """

    def __init__(self, admission: Admission, began: Began, priority: int, held: _Held) -> None:
        self._admission, self._began, self._held = admission, began, held
        self.priority = priority

    @property
    def response_id(self) -> str:
        return self._began.response_id

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Bills what the answer took, also where it was broken off; a second time changes nothing."""
        self._admission.settle(self._began, self._held, prompt_tokens, completion_tokens)

    def cancel(self) -> None:
        """The request was never sent to a model: nothing is billed, and what was reserved is given back."""
        self._admission.cancel(self._began, self._held)


@dataclass(frozen=True)
class _Held:
    """What a request holds, to be given back."""

    slices: tuple[Slice, Slice]
    allowances: tuple[Allowance, ...]
    reserved: int


class Admission:
    """Admits requests of one gateway, from memory alone; used by the event loop.

    Args:
      clock: monotonic, in seconds.
      wall: wall clock, for months only.
    """

    def __init__(
        self,
        directory: Directory,
        holdings: Holdings,
        *,
        pressure: Pressure | None = None,
        bounds: QueueBounds | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._directory, self._holdings = directory, holdings
        self._clock, self._wall = clock, wall
        self.pressure = Pressure(clock=clock) if pressure is None else pressure
        self.queue = FairQueue(self._everybody, bounds=bounds, is_open=self.pressure.is_open, clock=clock)
        self._month, self._month_ends_s, self._month_began_s = "", -math.inf, math.inf

    def check_now(self, caller: Caller) -> None:
        """Refuses a request of which nothing but the caller is known, where none of the caller's could pass now.

        So a tenant that is beyond its limits costs the others next to nothing. `admit` decides on all other requests.

        Raises:
          RateLimited: not even one of a single token is within the rates; that has room again after `retry_after_s`.
          Shed: of status 429, too.
        """
        self._check_pressure(caller.priority)
        now = self._clock()
        for _, _, slice_ in self._limited(caller, now):
            self._check_wait(slice_, slice_.least_wait_s(now), now)

    async def admit(self, caller: Caller, ask: Ask, response_id: str, timeout_s: float) -> Ticket:
        """Leave for a request; waits where others go first.

        Args:
          response_id: of the answer; it is billed once by it.
          timeout_s: bound on the wait.

        Raises:
          RateLimited, TooLarge, BudgetSpent, QueueFull, Shed, DeadlinePassed: of status 429.
          NotAllowed: it asks for a better class than the tenant's.
          Unavailable: what it takes can't be written down, so that it could not be billed.
          ValueError: counts that are negative, or an id that is in use.
        """
        priority = _class(caller, ask)
        self._check(ask, response_id)
        self._check_pressure(priority)
        began, held = self._reserve(caller, ask, response_id)
        try:
            await self.queue.enter(
                caller.tenant,
                held.slices[0],
                priority,
                weight=caller.weight,
                cost=held.reserved,
                timeout_s=timeout_s,
            )
        except BaseException:
            self._give_back(began, held)
            raise
        try:
            self._holdings.answers.begin(began, self._clock(), lambda ended: self._lapsed(began, held))
        except OSError as error:
            self.queue.leave(held.slices[0])
            self._give_back(began, held)
            raise Unavailable("The gateway's disk is full or fails; nothing was billed.", retry_after_s=5.0) from error
        return Ticket(self, began, VLLM_PRIORITY[priority], held)

    def settle(self, began: Began, held: _Held, prompt_tokens: int, completion_tokens: int) -> None:
        """See `Ticket.settle`."""
        prompt_tokens, completion_tokens = _count(prompt_tokens), _count(completion_tokens)
        price = price_of(self._directory.prices, began.model)
        nanos = price.nanos(prompt_tokens, completion_tokens)
        ended = Ended(began.response_id, prompt_tokens, completion_tokens, nanos, "usage")
        if not self._holdings.answers.end(ended):
            return
        usage = Amount(prompt_tokens + completion_tokens, nanos)
        for allowance in held.allowances:
            allowance.settle(began.response_id, usage)
        for slice_ in held.slices:
            slice_.give_back(held.reserved - usage.tokens)
        self.queue.leave(held.slices[0])

    def cancel(self, began: Began, held: _Held) -> None:
        """See `Ticket.cancel`."""
        if self._holdings.answers.cancel(began.response_id):
            self.queue.leave(held.slices[0])
            self._give_back(began, held)

    def _lapsed(self, began: Began, held: _Held) -> None:
        """The answer was billed as reserved, since nobody settled it."""
        for slice_ in held.slices:
            slice_.give_back(0.0)
        self.queue.leave(held.slices[0])

    def _check(self, ask: Ask, response_id: str) -> None:
        if min(ask.prompt_tokens, ask.max_tokens, ask.n) < 0 or ask.prompt_tokens + ask.completion_tokens > _MAX_TOKENS:
            raise ValueError(f"{ask}: expected counts of 0 or more, and at most {_MAX_TOKENS} tokens together")
        if self._holdings.answers.knows(response_id):
            raise ValueError(f"response id {response_id} is in use: expected one that is used once")

    def _reserve(self, caller: Caller, ask: Ask, response_id: str) -> tuple[Began, _Held]:
        now = self._clock()
        tokens = ask.prompt_tokens + ask.completion_tokens
        price = price_of(self._directory.prices, ask.model)
        cost = Amount(tokens, price.nanos(ask.prompt_tokens, ask.completion_tokens))
        month = self._this_month()
        limited = self._limited(caller, now)
        for _, limits, slice_ in limited:
            self._check_rates(limits, slice_, tokens, now)
        allowances = []
        for scope, limits, _ in limited:
            allowance = self._holdings.allowance_of(scope, month, limits)
            if allowance is not None:
                self._check_budget(allowance, cost, now)
                allowances.append(allowance)
        slices = tuple(slice_ for _, _, slice_ in limited)
        for slice_ in slices:
            slice_.take(tokens)
        for allowance in allowances:
            allowance.reserve(response_id, cost)
        began = Began(
            response_id,
            caller.tenant,
            caller.key_id,
            quoted(ask.model, MAX_TEXT),  # a client wrote it: what no database takes would stop all bills
            month,
            ask.prompt_tokens,
            ask.completion_tokens,
            cost.nanos,
            self._wall(),
        )
        return began, _Held((slices[0], slices[1]), tuple(allowances), tokens)

    def _give_back(self, began: Began, held: _Held) -> None:
        for slice_ in held.slices:
            slice_.give_back(held.reserved, request=True)
        for allowance in held.allowances:
            allowance.release(began.response_id)

    def _limited(self, caller: Caller, now: float) -> list[tuple[str, Limits, Slice]]:
        """Scope, limits and slice of the tenant and of the deployment."""
        scopes = ((tenant_scope(caller.tenant), caller.limits), (DEPLOYMENT, self._directory.deployment))
        return [(scope, limits, self._holdings.slice_of(scope, limits, now)) for scope, limits in scopes]

    def _check_pressure(self, priority: Priority) -> None:
        if not self.pressure.is_open(priority):
            raise Shed("The deployment is under pressure; try again later.", retry_after_s=self.pressure.retry_after_s)

    def _check_rates(self, limits: Limits, slice_: Slice, tokens: int, now: float) -> None:
        burst = limits.token_burst or limits.tokens_per_minute
        if burst is not None and tokens > burst:
            raise TooLarge(
                f"The request may take {tokens} tokens (prompt and n * max_tokens), more than the limit of {burst}; "
                f"lower max_tokens."
            )
        self._check_wait(slice_, slice_.wait_s(tokens, now), now)

    def _check_wait(self, slice_: Slice, wait_s: float, now: float) -> None:
        if wait_s <= 0:
            return
        if not slice_.is_whole:
            self._holdings.ask_soon(slice_.scope, now)
        raise RateLimited(
            "Too many requests or tokens a minute.", retry_after_s=_SOON_S if math.isinf(wait_s) else wait_s
        )

    def _check_budget(self, allowance: Allowance, cost: Amount, now: float) -> None:
        if allowance.has_room(cost):
            return
        self._holdings.ask_soon(allowance.scope, now)
        if allowance.is_spent(cost):
            raise BudgetSpent("The month's budget is used up.", retry_after_s=self._month_ends_s - self._wall())
        raise RateLimited("The month's budget is being looked up.", retry_after_s=_SOON_S)

    def _everybody(self) -> Slice:
        return self._holdings.slice_of(DEPLOYMENT, self._directory.deployment, self._clock())

    def _this_month(self) -> str:
        wall = self._wall()
        if not self._month_began_s <= wall < self._month_ends_s:
            found = datetime.fromtimestamp(wall, UTC)
            first = found.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
            self._month = first.strftime("%Y-%m")
            self._month_began_s, self._month_ends_s = first.timestamp(), following.timestamp()
        return self._month


def _class(caller: Caller, ask: Ask) -> Priority:
    if ask.priority is None:
        return caller.priority
    if PRIORITIES.index(ask.priority) < PRIORITIES.index(caller.priority):
        raise NotAllowed("The request asks for a better priority class than its account has.")
    return ask.priority


def _count(tokens: int) -> int:
    """A count of tokens as an engine told it: none can be negative."""
    return min(max(tokens, 0), _MAX_TOKENS)
