"""Runs several gateways with their tenants in virtual time, with faults, one seed after the other.

    python -m tools.testing.tenants --seeds 200 [--first 0]
    python -m tools.testing.tenants --seed 17

Gateways are killed, moved, stopped and cut off from the database before and after commits; wall clocks jump by days;
answers are settled twice, cancelled, or never settled. Limits, budgets and bills must hold all the same. Exit status 1
if one did not.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from rich.table import Table

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.tenants.run import Outcome, simulate


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="replay this one")
    arguments = parser.parse_args()
    console = terminal.console()
    started = time.monotonic()
    chosen = range(arguments.first, arguments.first + arguments.seeds) if arguments.seed is None else [arguments.seed]
    outcomes = [simulate(seed) for seed in chosen]
    console.print(_table(outcomes))
    console.print(f"{time.monotonic() - started:.0f} s")
    failed = [outcome for outcome in outcomes if outcome.violations]
    for outcome in failed[:10]:
        console.print(f"seed {outcome.seed}: {outcome.violations[0]}", markup=False)
        console.print(f"  replay: python -m tools.testing.tenants --seed {outcome.seed}", markup=False)
    raise SystemExit(1 if failed else 0)


def _table(outcomes: list[Outcome]) -> Table:
    faults: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.faults)
        refused.update(outcome.refused)
    table = Table("what", "times", box=None)
    table.add_row("answers admitted and billed", f"{sum(outcome.admitted for outcome in outcomes):,}")
    for kind, number in sorted(refused.items()):
        table.add_row(f"refused: {kind}", f"{number:,}")
    for kind, number in sorted(faults.items()):
        table.add_row(f"fault: {kind}", f"{number:,}")
    table.add_row("gateway processes", f"{sum(outcome.processes for outcome in outcomes):,}")
    table.add_row("leases that ran out", f"{sum(outcome.cut_offs for outcome in outcomes):,}")
    table.add_row("seeds that failed", f"{sum(bool(outcome.violations) for outcome in outcomes):,}")
    return table


if __name__ == "__main__":
    main()
