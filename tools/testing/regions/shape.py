"""What is simulated: cells, replicas, tenants and their demand, and which cell meets what when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving_bridge.routing import cells_of, limit_shares
from serving_bridge.tenants import Priority

Kind = Literal["lost", "slow", "crowd", "database"]
KINDS: tuple[Kind, ...] = ("lost", "slow", "crowd", "database")
#: answers of one simulated request, which come and end together
ANSWERS = 16
PROMPT_TOKENS = 1_000
TOKENS_PER_S = 40.0
#: of each answer; its mean and what it may differ, as a part
MEAN_TOKENS, SPREAD = 2_400, 0.1
MEAN_S = MEAN_TOKENS / TOKENS_PER_S
MAX_TOKENS = int(MEAN_TOKENS * (1 + SPREAD))
MEAN_REQUEST_TOKENS = PROMPT_TOKENS + ANSWERS * MEAN_TOKENS
#: that a replica's KV cache holds, of any size; it has room for a tenth more
REQUESTS_AT_ONCE = 3
KV_TOKENS = int(1.1 * REQUESTS_AT_ONCE * MEAN_REQUEST_TOKENS)
#: of a request that is answered in another cell than its tenant's home
ROUND_TRIP_S = 0.08
#: of what a tenant's limits allow, how much an ordinary one asks for; a flood asks for three times its limits
USUAL = 0.5
FLOOD = 3.0
CROWD = 4.0
SLOW = 0.35
#: numbers of the tenants of a cell that ask for more than their limits
_FLOODS, _ROAMS = 2, 3
#: seconds' worth of a limit that may come at once
BURST_S = 20


@dataclass(frozen=True)
class Event:
    """What happens to a cell, from when to when, in seconds of virtual time."""

    kind: Kind
    cell: str
    begins_s: float
    ends_s: float


@dataclass(frozen=True)
class TenantPlan:
    """A tenant and what it asks for.

    Attributes:
      order: its cells, home first.
      bound_to: cells that its data may be in; None for all.
      per_s: requests a second at usual times.
      limit_per_s: requests of mean size a second that its limits allow at home.
      roams: its clients ask its cells in any order, to get more than its limits.
    """

    name: str
    order: tuple[str, ...]
    bound_to: frozenset[str] | None
    priority: Priority
    per_s: float
    limit_per_s: float
    roams: bool = False

    @property
    def home(self) -> str:
        return self.order[0]

    @property
    def shares(self) -> dict[str, float]:
        return limit_shares(self.order)

    def tokens_per_minute(self, cell: str) -> int:
        """Its limit in a cell."""
        return round(60 * self.limit_per_s * MEAN_REQUEST_TOKENS * self.shares[cell])

    def token_burst(self, cell: str) -> int:
        """What may come at once in a cell; at least one request of the largest size."""
        largest = PROMPT_TOKENS + ANSWERS * MAX_TOKENS
        return max(largest, round(self.tokens_per_minute(cell) * BURST_S / 60))


@dataclass(frozen=True)
class Shape:
    """One simulation.

    Attributes:
      load: what is asked for at usual times, as a part of what all replicas can do.
      alternates: cells of a tenant beside its home.
      warm_s, event_s, rest_s: before the first event, of each event, and after each.
    """

    num_cells: int = 10
    num_replicas: int = 10_000
    num_gateways: int = 2
    num_tenants: int = 10
    load: float = 0.65
    alternates: int = 2
    kinds: tuple[Kind, ...] = KINDS
    warm_s: float = 90.0
    event_s: float = 60.0
    rest_s: float = 90.0
    look_every_s: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.num_cells <= self.num_replicas or self.num_gateways < 1 or self.num_tenants < 4:
            raise ValueError(
                f"{self.num_cells} cells, {self.num_replicas} replicas, {self.num_gateways} gateways and "
                f"{self.num_tenants} tenants a cell: expected at least 2 cells, as many replicas, 1 gateway, 4 tenants"
            )
        if not 0 < self.load < 2:
            raise ValueError(f"load {self.load}: expected a part of what all replicas can do, above 0 and below 2")

    @property
    def cells(self) -> list[str]:
        return [f"cell-{number}" for number in range(self.num_cells)]

    @property
    def replicas_per_cell(self) -> int:
        return self.num_replicas // self.num_cells

    @property
    def capacity_per_s(self) -> float:
        """Requests a second that one cell's replicas can answer."""
        return self.replicas_per_cell * REQUESTS_AT_ONCE / MEAN_S

    @property
    def places(self) -> int:
        """Requests at once that a cell's gateways let through."""
        return round(self.replicas_per_cell * REQUESTS_AT_ONCE)

    @property
    def events(self) -> list[Event]:
        """One after the other, each in another cell."""
        found, now_s = [], self.warm_s
        for number, kind in enumerate(self.kinds):
            long_s = self.event_s if kind != "database" else self.event_s + 30  # keys live for 60 s without it
            found.append(Event(kind, self.cells[number % self.num_cells], now_s, now_s + long_s))
            now_s += long_s + self.rest_s
        return found

    @property
    def ends_s(self) -> float:
        events = self.events
        return (events[-1].ends_s if events else self.warm_s) + self.rest_s

    def tenants(self) -> list[TenantPlan]:
        """Of every cell: one bound to it, one to it and its neighbour, a flood, and a flood of all its cells."""
        cells, found = self.cells, []
        fair = self.load * self.capacity_per_s / self.num_tenants
        for place, home in enumerate(cells):
            neighbour = cells[(place + 1) % len(cells)]
            bounds = {0: frozenset({home}), 1: frozenset({home, neighbour})}
            for number in range(self.num_tenants):
                name, bound = f"tenant-{place}-{number}", bounds.get(number)
                order = cells_of(name, home, cells, alternates=self.alternates, bound_to=bound)
                limit, asked = fair / USUAL, fair
                if number == _FLOODS:
                    limit, asked = fair, FLOOD * fair
                elif number == _ROAMS:  # its cells together allow twice its limits
                    limit, asked = fair / 2, FLOOD * fair
                priority: Priority = "paid" if (place + number) % 2 else "free"
                found.append(TenantPlan(name, order, bound, priority, asked, limit, roams=number == _ROAMS))
        return found
