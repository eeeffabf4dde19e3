"""What must hold of cells, whatever was lost: residency, the bound on limits, and that failures end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serving_bridge.tenants import SlicePolicy
from tools.testing.regions.cell import Cell, Charge
from tools.testing.regions.edge import Answered
from tools.testing.regions.shape import ANSWERS, MAX_TOKENS, PROMPT_TOKENS, Shape, TenantPlan

_LARGEST = PROMPT_TOKENS + ANSWERS * MAX_TOKENS
#: windows that are looked at, of a tenant and a cell, begin at so many charges
_WINDOWS = 30
#: seconds after an event has ended until nothing may fail any more
SETTLED_S = 20.0


@dataclass(frozen=True)
class Overshoot:
    """The worst window of a tenant, as parts of what one database would have allowed in it.

    Attributes:
      used: was charged in all cells together.
      bound: might have been.
    """

    tenant: str
    used: float
    bound: float


@dataclass(frozen=True)
class _Limit:
    """A limit in one cell, with what its bound depends on (`serving_bridge.tenants.slices`)."""

    burst: float
    per_s: float
    cut_offs: int
    processes: int

    def bound(self, elapsed_s: float, policy: SlicePolicy) -> float:
        beyond = 1 + self.cut_offs * policy.cut_off_share
        return (self.burst + self.per_s * elapsed_s) * beyond + self.processes * max(
            policy.credit * self.burst, _LARGEST
        )


def residency(answered: Iterable[Answered], plans: Sequence[TenantPlan]) -> list[str]:
    """No request of a tenant is sent outside of what the tenant is bound to."""
    bounds = {plan.name: plan.bound_to for plan in plans}
    return [
        f"a request of {one.tenant}, bound to {', '.join(sorted(bound))}, was sent to {cell}"
        for one in answered
        if (bound := bounds[one.tenant]) is not None
        for cell in one.tried
        if cell not in bound
    ]


def limits(
    cells: Sequence[Cell], plans: Sequence[TenantPlan], policy: SlicePolicy | None = None
) -> tuple[list[str], list[Overshoot]]:
    """In every window charges are within the bound: in each cell, and of a tenant in all cells together."""
    policy = SlicePolicy() if policy is None else policy
    found: list[str] = []
    worst: list[Overshoot] = []
    by_tenant: dict[str, list[Charge]] = {plan.name: [] for plan in plans}
    for cell in cells:
        for charge in cell.charges:
            by_tenant[charge.tenant].append(charge)
    for plan in plans:
        of_cells = {
            cell.name: _Limit(
                plan.token_burst(cell.name), plan.tokens_per_minute(cell.name) / 60, cell.cut_offs, cell.processes
            )
            for cell in cells
            if cell.name in plan.order
        }
        charges = sorted(by_tenant[plan.name], key=lambda charge: charge.began_s)
        for name, limit in of_cells.items():
            found += _windows(f"{plan.name} in {name}", [c for c in charges if c.cell == name], [limit], policy)[0]
        broken, over = _windows(plan.name, charges, list(of_cells.values()), policy, of_cells[plan.home])
        found += broken
        worst += over
    return found, worst


def _windows(
    what: str, charges: Sequence[Charge], limits: Sequence[_Limit], policy: SlicePolicy, home: _Limit | None = None
) -> tuple[list[str], list[Overshoot]]:
    worst = Overshoot(what, 0.0, 0.0)
    for first in range(0, len(charges), max(1, len(charges) // _WINDOWS)):
        start_s = charges[first].began_s
        refunds = sum(
            before.reserved - before.charged
            for before in charges[:first]
            if before.ended_s is None or before.ended_s >= start_s
        )
        total = 0
        for charge in charges[first:]:
            total += charge.charged
            elapsed_s = charge.began_s - start_s
            bound = sum(limit.bound(elapsed_s, policy) for limit in limits) + refunds
            if total > bound + 1e-6:
                return [f"{what}: {total} tokens in {elapsed_s:.1f} s from {start_s:.1f} s on, bound {bound:.0f}"], []
            if home is not None and elapsed_s >= 20.0:
                one = home.burst + home.per_s * elapsed_s
                if total / one > worst.used:
                    worst = Overshoot(what, total / one, bound / one)
    return [], [worst] if home is not None else []


def failures(answered: Iterable[Answered], shape: Shape) -> list[str]:
    """Between events nothing fails, once a cell has had its time to recover."""
    quiet = [(event.ends_s + SETTLED_S, event.ends_s + shape.rest_s) for event in shape.events]
    return [
        f"a request of {one.tenant} {one.result} ({one.code}) at {one.told_s:.1f} s, when nothing went wrong any more"
        for one in answered
        if one.result == "failed" and any(begins <= one.came_s and one.told_s < ends for begins, ends in quiet)
    ]
