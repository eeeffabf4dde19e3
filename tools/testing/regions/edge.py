"""Clients, and the edge before the cells: each request goes to the cell that `choose_cell` names, or to the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass

from serving_bridge.routing import CellState, choose_cell, may_try_another
from tools.testing.regions.cell import Cell, Request
from tools.testing.regions.shape import CROWD, MEAN_TOKENS, ROUND_TRIP_S, SPREAD, Event, Shape, TenantPlan
from tools.testing.simulate import SimulatedLoop

#: how often the edge asks cells how they are
_PROBE_S = 1.0
#: conversations of a tenant at a time
_CONVERSATIONS = 400


@dataclass(frozen=True)
class Answered:
    """What became of a client's request.

    Attributes:
      came_s, told_s: when it came, and when its outcome was known.
      result: "answered", "limited" by its tenant's limits, "shed" for want of room, or "failed".
      cell: that had the last word; "" where no cell took it.
      tried: cells that the request was sent to.
      added_s: from its coming to its first token; None without one.
    """

    tenant: str
    came_s: float
    told_s: float
    result: str
    code: str | None
    cell: str
    tried: tuple[str, ...]
    added_s: float | None


class Edge:
    """See the module.

    Attributes:
      answered: one for every request that has ended.
    """

    def __init__(self, shape: Shape, loop: SimulatedLoop, cells: Mapping[str, Cell], draws: random.Random) -> None:
        self._shape, self._loop, self._cells, self._draws = shape, loop, cells, draws
        self._states: dict[str, CellState] = {}
        self._numbers = self._open = 0
        self.answered: list[Answered] = []

    @property
    def num_open(self) -> int:
        """Requests without an outcome yet."""
        return self._open

    async def probe(self) -> None:
        """Keeps up with what cells say of themselves."""
        while True:
            for name, cell in self._cells.items():
                if (state := cell.state()) is not None:
                    self._states[name] = state
            await asyncio.sleep(_PROBE_S)

    async def demand(self, plan: TenantPlan, events: list[Event]) -> None:
        """A tenant's requests, a Poisson process, until the simulation is over."""
        crowds = [event for event in events if event.kind == "crowd" and event.cell == plan.home]
        while (now_s := self._loop.time()) < self._shape.ends_s:
            is_crowd = any(event.begins_s <= now_s < event.ends_s for event in crowds)
            await asyncio.sleep(self._draws.expovariate(plan.per_s * (CROWD if is_crowd else 1.0)))
            conversation = f"{plan.name}\0{self._draws.randrange(_CONVERSATIONS)}"
            length = round(MEAN_TOKENS * self._draws.uniform(1 - SPREAD, 1 + SPREAD))
            self._loop.create_task(self._one(plan, conversation, length))

    async def _one(self, plan: TenantPlan, conversation: str, length_tokens: int) -> None:
        self._open += 1
        came_s = self._loop.time()
        tried: list[str] = []
        status: int | None = 503
        code, first_s = None, None
        order = self._draws.sample(plan.order, len(plan.order)) if plan.roams else plan.order
        while True:
            now_s = self._loop.time()
            name = choose_cell(order, conversation, self._states, now_s, avoid=frozenset(tried))
            if name is None:
                break
            tried.append(name)
            away_s = 0.0 if name == plan.home else ROUND_TRIP_S
            await asyncio.sleep(away_s / 2)
            self._numbers += 1
            request = Request(self._numbers, plan.name, conversation, length_tokens, self._loop.create_future())
            self._cells[name].send(request)
            status, code, first_s = await request.outcome
            if first_s is not None:
                first_s += away_s / 2
            if status == 200 or first_s is not None or not may_try_another(status, code):
                break
        self._open -= 1
        cell = tried[-1] if tried else ""
        added_s = None if first_s is None else first_s - came_s
        told = self._loop.time()
        self.answered.append(
            Answered(plan.name, came_s, told, _result(status, code), code, cell, tuple(tried), added_s)
        )


def _result(status: int | None, code: str | None) -> str:
    if status == 200:
        return "answered"
    if status == 429:
        return "limited" if code == "rate_limit_exceeded" else "shed"
    return "failed"
