"""What judging answers costs: answers judged a second, with as many at a time as there are cores.

python -m tools.bench rewards [--kind code|math] [--answers 200] [--rounds 5] [--workers 2] [--sandbox runsc] [--json P]

code: short functions with three assertions each, half of them wrong, by the verifier `code` in a sandbox of its own
each, beside a plain Python process each, which nothing isolates. Both have to agree on every answer. Sides take
turns; ratios are throughputs, taken within a round.

math: boxed results after some lines of work, half of them wrong, by the verifier `math`, beside the package math-verify
where it is installed (PYTHONPATH will do). Both run in as many processes.

Not covered: answers that take long themselves, and imports of large modules: both sides pay the same for those.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.table import Table

from learner_jax.runtime import DoorError
from rewards.code.sandbox import TIERS
from tools.bench import BenchmarkError
from tools.bench.rewards.code import compare_code
from tools.bench.rewards.mathematics import PEER, compare_math
from tools.bench.timing import bench_parser, console, positive, progress, ratio, spread, this_hardware, write_json

#: kind -> answers that should be judged a second on two cores
AIMS = {"code": 30.0, "math": 500.0}


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table and the aim, and writes them as JSON where asked to."""
    parser = bench_parser("rewards", __doc__)
    parser.add_argument("--kind", choices=tuple(AIMS), default="code", help="which verifier (default code)")
    parser.add_argument("--answers", type=positive, default=200, help="answers of a round (default 200)")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each side (default 5)")
    parser.add_argument("--workers", type=positive, default=min(2, os.cpu_count() or 1), help="answers at a time")
    parser.add_argument("--sandbox", choices=TIERS, default=TIERS[0], help="code: what holds the answers")
    given = parser.parse_args(argv)
    out = console()
    with progress() as bar:
        task = bar.add_task("judging", total=2 * given.rounds)
        compare = partial(compare_code, sandbox=given.sandbox) if given.kind == "code" else compare_math
        try:
            seconds = compare(
                given.answers, rounds=given.rounds, num_workers=given.workers, done=lambda: bar.advance(task)
            )
        except DoorError as error:
            raise BenchmarkError(str(error)) from None
    per_s = {name: spread([given.answers / value for value in values]) for name, values in seconds.items()}
    ours, *others = seconds
    of_other = {name: ratio(seconds[name], seconds[ours]) for name in others}
    hardware = this_hardware()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    title = f"{given.kind}{f' in {given.sandbox}' if given.kind == 'code' else ''}, {given.workers} at a time"
    table = Table("side", "answers/s", f"{ours} over it", title=title)
    for name, value in per_s.items():
        table.add_row(name, value.show(), of_other[name].show() if name in of_other else "1")
    out.print(table)
    if not others:
        out.print(f"{PEER} is not installed: left out", highlight=False)
    aim = AIMS[given.kind]
    reached = "reached" if per_s[ours].median >= aim else "not reached"
    out.print(f"{aim:g} answers/s on two cores is the aim: {reached}", highlight=False)
    if given.json is not None:
        settings = {key: value for key, value in vars(given).items() if key != "json"}
        results = {name: asdict(value) for name, value in per_s.items()}
        results |= {f"over {name}": asdict(value) for name, value in of_other.items()}
        write_json(Path(given.json), "rewards", hardware, settings, results)
        out.print(f"wrote {given.json}", highlight=False)
