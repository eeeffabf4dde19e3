"""What judging answers costs: answers judged a second, with as many at a time as there are cores.

python -m tools.bench rewards [--kind code] [--answers 200] [--rounds 5] [--workers 2] [--json PATH]

code: short functions with three assertions each, half of them wrong, by the verifier `code` in a sandbox of its own
each, beside a plain Python process each, which nothing isolates. Both have to agree on every answer. Sides take
turns; ratios are throughputs, taken within a round.

Not covered: answers that take long themselves, and imports of large modules: both sides pay the same for those.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from learner_jax.runtime import DoorError
from tools.bench import BenchmarkError
from tools.bench.rewards.code import PLAIN, SANDBOX, compare_code
from tools.bench.timing import console, json_path, positive, progress, ratio, spread, this_hardware, write_json

KINDS = ("code",)
#: answers that should be judged a second on two cores
CODE_AIM = 30.0


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table and the aim, and writes them as JSON where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench rewards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="which verifier (default code)")
    parser.add_argument("--answers", type=positive, default=200, help="answers of a round (default 200)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each side (default 5)")
    parser.add_argument("--workers", type=positive, default=min(2, os.cpu_count() or 1), help="answers at a time")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="write the figures to this file too")
    given = parser.parse_args(argv)
    out = console()
    with progress() as bar:
        task = bar.add_task("judging", total=2 * given.rounds)
        try:
            seconds = compare_code(
                given.answers, rounds=given.rounds, num_workers=given.workers, done=lambda: bar.advance(task)
            )
        except DoorError as error:
            raise BenchmarkError(str(error)) from None
    per_s = {name: spread([given.answers / value for value in values]) for name, values in seconds.items()}
    of_plain = ratio(seconds[PLAIN], seconds[SANDBOX])
    hardware = this_hardware()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    table = Table("side", "answers/s", "of plain", title=f"code, {given.workers} at a time")
    table.add_row(SANDBOX, per_s[SANDBOX].show(), of_plain.show())
    table.add_row(PLAIN, per_s[PLAIN].show(), "1")
    out.print(table)
    reached = "reached" if per_s[SANDBOX].median >= CODE_AIM else "not reached"
    out.print(f"{CODE_AIM:g} answers/s on two cores is the aim: {reached}", highlight=False)
    if given.json is not None:
        settings = {key: value for key, value in vars(given).items() if key != "json"}
        results = {name: asdict(value) for name, value in per_s.items()} | {"of_plain": asdict(of_plain)}
        write_json(Path(given.json), "rewards", hardware, settings, results)
        out.print(f"wrote {given.json}", highlight=False)
