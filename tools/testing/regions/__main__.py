"""Runs cells of several regions in virtual time: one is lost, one slow, one crowded, one without its database.

    python -m tools.testing.regions --cells 10 --replicas 10000
    python -m tools.testing.regions --cells 4 --replicas 200 --load 0.5 --seeds 5

Admission, limits, fair queue, shedding, choice of replicas and of cells are Weir's own code; replicas are simple
queues. Exit status 1 if a tenant's data left its cells, a limit was passed beyond its bound, or failures did not end.
"""

from __future__ import annotations

import argparse
import time

from rich.table import Table

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.regions.run import Outcome, simulate
from tools.testing.regions.shape import KINDS, Shape


def main() -> None:
    shape, arguments = _asked()
    console = terminal.console()
    outcomes = []
    with console.status("simulating") as status:
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            began_s = time.process_time()

            def told(now_s: float, seed: int = seed) -> None:
                status.update(f"seed {seed}: {now_s:.0f} of {shape.ends_s:.0f} s")

            outcome = simulate(seed, shape, told=told)
            outcomes.append(outcome)
            console.print(_table(outcome))
            console.print(_limits(outcome))
            console.print(f"{outcome.requests:,} requests, {time.process_time() - began_s:.0f} s of CPU")
    failed = [outcome for outcome in outcomes if outcome.violations]
    for outcome in failed[:10]:
        console.print(f"seed {outcome.seed}: {outcome.violations[0]}", markup=False)
    raise SystemExit(1 if failed else 0)


def _asked() -> tuple[Shape, argparse.Namespace]:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10)
    parser.add_argument("--replicas", type=int, default=10_000, help="of all cells together")
    parser.add_argument("--gateways", type=int, default=2, help="processes of each cell")
    parser.add_argument("--tenants", type=int, default=10, help="at home in each cell")
    parser.add_argument("--load", type=float, default=0.65, help="part of what all replicas can do")
    parser.add_argument("--alternates", type=int, default=2, help="cells of a tenant beside its home")
    parser.add_argument("--events", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    try:
        shape = Shape(
            num_cells=arguments.cells,
            num_replicas=arguments.replicas,
            num_gateways=arguments.gateways,
            num_tenants=arguments.tenants,
            load=arguments.load,
            alternates=arguments.alternates,
            kinds=tuple(arguments.events),
        )
    except ValueError as error:
        parser.error(str(error))
    return shape, arguments


def _table(outcome: Outcome) -> Table:
    table = Table(
        "event", "requests", "failed", "of these bound", "broken off", "shed", "spilled", "p95 home, s",
        "p95 spilled, s", "steady after, s", box=None, title=f"seed {outcome.seed}",
    )  # fmt: skip
    for phase in outcome.phases:
        table.add_row(
            phase.kind,
            f"{phase.requests:,}",
            *(f"{100 * part:.2f}%" for part in (phase.failed, phase.bound, phase.broken, phase.shed, phase.spilled)),
            *("-" if value is None else f"{value:.2f}" for value in (phase.home_p95_s, phase.spilled_p95_s)),
            f"{phase.steady_s:.0f}",
        )
    return table


def _limits(outcome: Outcome) -> str:
    worst = max(outcome.overshoots, key=lambda one: one.used)
    nearest = max(outcome.overshoots, key=lambda one: one.used / max(one.bound, 1e-9))
    return (
        f"most of a limit, in windows of 20 s and more: {worst.used:.2f} of what one database allows ({worst.tenant}, "
        f"bound {worst.bound:.2f}); nearest to its bound: {nearest.used:.2f} of {nearest.bound:.2f}; "
        f"refused by limits: {outcome.limited:,}"
    )


if __name__ == "__main__":
    main()
