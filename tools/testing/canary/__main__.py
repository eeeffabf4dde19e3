"""Runs simulated candidates through the real controller, one seed after the other.

    python -m tools.testing.canary --seeds 20
    python -m tools.testing.canary --kind slow --seed 3

Bad candidates must not be promoted; alias, split and rollout must agree after every look, and the decisions of
every fifth seed must replay. Exit status 1 if something did not hold. `python -m tools.study canary` runs many, and
writes a page.
"""

from __future__ import annotations

import argparse
from collections import Counter

from rich.table import Table

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.canary import BAD, GOOD, roll_out


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {kind.name: kind for kind in (*GOOD, *BAD)}
    parser.add_argument("--seeds", type=int, default=5, help="of each kind (default: 5)")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--kind", choices=tuple(kinds), help="this kind alone")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    chosen = kinds.values() if arguments.kind is None else [kinds[arguments.kind]]
    outcomes = [roll_out(kind, seed) for kind in chosen for seed in seeds]
    console = terminal.console()
    table = Table("kind", "phase", "times", "hours", "reason of the first", box=None)
    counts = Counter((one.kind, one.phase) for one in outcomes)
    for (name, phase), times in counts.items():
        first = next(one for one in outcomes if (one.kind, one.phase) == (name, phase))
        table.add_row(name, phase, str(times), f"{first.hours:.1f}", first.reason[:80])
    console.print(table)
    bad = {kind.name for kind in BAD}
    failed = [one for one in outcomes if one.violations or (one.kind in bad and one.phase == "promoted")]
    for one in failed[:10]:
        said = one.violations[0] if one.violations else "it was promoted"
        console.print(f"python -m tools.testing.canary --kind {one.kind} --seed {one.seed}: {said}", markup=False)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
