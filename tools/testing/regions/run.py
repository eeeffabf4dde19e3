"""One simulation: cells, demand and events in virtual time, then its figures by event."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.testing.regions import checks
from tools.testing.regions.cell import Cell
from tools.testing.regions.checks import Overshoot
from tools.testing.regions.edge import Answered, Edge
from tools.testing.regions.shape import MEAN_S, SLOW, SPREAD, Event, Shape, TenantPlan
from tools.testing.simulate import SimulatedLoop

#: a longest answer at a slow cell, and the time that it waited
_DRAIN_S = 2 * MEAN_S * (1 + SPREAD) / SLOW
_STEP_S = 5.0


@dataclass(frozen=True)
class Phase:
    """What clients saw of one event, from its begin to the end of the rest after it.

    Attributes:
      kind: of the event; "usual" before the first one.
      requests: that came, without those that their tenant's limits refused.
      failed, shed: parts of them; `bound` of the failed ones is of tenants that may be answered in the lost cell only.
      broken: part of the requests whose answers had begun when their cell was lost.
      spilled: part of the answered ones that another cell than home answered.
      home_p95_s, spilled_p95_s: of the time from coming to the first token; None for no answer.
      steady_s: from the event's begin until nothing failed or was shed any more.
    """

    kind: str
    requests: int
    failed: float
    bound: float
    broken: float
    shed: float
    spilled: float
    home_p95_s: float | None
    spilled_p95_s: float | None
    steady_s: float


@dataclass(frozen=True)
class Outcome:
    """How one seed ended.

    Attributes:
      limited: requests that their tenant's limits refused.
      overshoots: of every tenant.
    """

    seed: int
    violations: tuple[str, ...]
    requests: int
    limited: int
    phases: tuple[Phase, ...]
    overshoots: tuple[Overshoot, ...]


def simulate(seed: int, shape: Shape, *, told: Callable[[float], None] = lambda now_s: None) -> Outcome:
    """Runs one seed; the same seed and shape give the same outcome.

    Args:
      told: hears of the virtual time as it passes.
    """
    draws = random.Random(seed)
    loop = SimulatedLoop()
    plans = shape.tenants()
    with tempfile.TemporaryDirectory(prefix="weir-regions-", dir=_fast_folder()) as folder:
        cells = {name: Cell(name, shape, loop, Path(folder), plans) for name in shape.cells}
        edge = Edge(shape, loop, cells, draws)
        loop.run_until_complete(loop.create_task(_drive(loop, shape, cells, edge, plans, told)))
        broken, overshoots = checks.limits(list(cells.values()), plans)
        for cell in cells.values():
            cell.close()
        loop.abandon()
    violations = [*checks.residency(edge.answered, plans), *broken, *checks.failures(edge.answered, shape)]
    if edge.num_open:
        violations.append(f"{edge.num_open} requests never ended")
    limited = sum(one.result == "limited" for one in edge.answered)
    return Outcome(
        seed, tuple(violations), len(edge.answered), limited, _phases(edge.answered, shape, plans), tuple(overshoots)
    )


async def _drive(
    loop: SimulatedLoop,
    shape: Shape,
    cells: dict[str, Cell],
    edge: Edge,
    plans: Sequence[TenantPlan],
    told: Callable[[float], None],
) -> None:
    await asyncio.sleep(3.0)  # gateways share out their limits
    tasks = [loop.create_task(edge.probe())]
    tasks += [loop.create_task(edge.demand(plan, shape.events)) for plan in plans]
    for event in shape.events:
        loop.call_at(event.begins_s, _begin, cells[event.cell], event)
        loop.call_at(event.ends_s, _end, cells[event.cell], event)
    drained_s = shape.ends_s + _DRAIN_S
    while loop.time() < shape.ends_s or (edge.num_open and loop.time() < drained_s):
        await asyncio.sleep(_STEP_S)
        told(loop.time())
    for task in tasks:
        task.cancel()


def _begin(cell: Cell, event: Event) -> None:
    match event.kind:
        case "lost":
            cell.lose()
        case "slow":
            cell.speed = SLOW
        case "database":
            cell.fault.before = True
        case "crowd":
            pass  # its tenants see to it


def _end(cell: Cell, event: Event) -> None:
    match event.kind:
        case "lost":
            cell.start()
        case "slow":
            cell.speed = 1.0
        case "database":
            cell.fault.before = False
        case "crowd":
            pass


def _phases(answered: Sequence[Answered], shape: Shape, plans: Sequence[TenantPlan]) -> tuple[Phase, ...]:
    by_name = {plan.name: plan for plan in plans}
    events = shape.events
    first_s = events[0].begins_s if events else shape.ends_s
    found = [_phase("usual", answered, by_name, MEAN_S / 2, first_s)]
    found += [_phase(event.kind, answered, by_name, event.begins_s, event.ends_s + shape.rest_s) for event in events]
    return tuple(found)


def _phase(
    kind: str, answered: Sequence[Answered], plans: dict[str, TenantPlan], begins_s: float, ends_s: float
) -> Phase:
    seen = [one for one in answered if one.result != "limited" and begins_s <= _counts_s(one) < ends_s]
    number = max(1, len(seen))
    failed = [one for one in seen if one.result == "failed"]
    good = [one for one in seen if one.result == "answered"]
    good = [one for one in good if not plans[one.tenant].roams]
    home = [one.added_s for one in good if one.cell == plans[one.tenant].home and one.added_s is not None]
    away = [one.added_s for one in good if one.cell != plans[one.tenant].home and one.added_s is not None]
    bad = [one.told_s for one in seen if one.result in ("failed", "shed") and one.told_s < ends_s]
    return Phase(
        kind,
        len(seen),
        len(failed) / number,
        sum(len(plans[one.tenant].order) == 1 and one.added_s is None for one in failed) / number,
        sum(one.added_s is not None for one in failed) / number,
        sum(one.result == "shed" for one in seen) / number,
        len(away) / max(1, len(good)),
        _p95(home),
        _p95(away),
        max(bad, default=begins_s) - begins_s,
    )


def _counts_s(one: Answered) -> float:
    """When a request counts: as it came, or as it failed."""
    return one.told_s if one.result == "failed" else one.came_s


def _p95(values: Sequence[float]) -> float | None:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else None


def _fast_folder() -> str | None:
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None
