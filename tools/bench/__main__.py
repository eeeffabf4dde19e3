"""Runs one benchmark.

python -m tools.bench losses [--batch 64] [--lengths 256 4096 32768] [--repeats 10] [--json PATH]
python -m tools.bench learner [--cases uniform lognormal prefix head] [--sides weir tunix trl] [--json PATH]
python -m tools.bench convert [--gib 4] [--dir FOLDER] [--rounds 3] [--json PATH]
python -m tools.bench end_to_end [--workload demo|stories|chat] [--sides weir trl tunix] [--model DIR] [--json PATH]
python -m tools.bench gateway [--streams 1 64] [--requests 128] [--litellm PROGRAM] [--json PATH]
python -m tools.bench gateway_memory [--minutes 60] [--per-second 4] [--json PATH]
python -m tools.bench isolation [--seconds 8] [--rounds 7] [--rollouts 32] [--model DIR] [--json PATH]
python -m tools.bench refusals [--requests 3000] [--rounds 5] [--json PATH]
python -m tools.bench save | sync | queue | rollout | evaluate | dispatch | overlap | rewards | slow_rewards
python -m tools.bench scrape | admission
python -m tools.bench registry [--entries 100000] [--json PATH]

Exit status 1 if the results disagree with the peer's or the peer cannot be had, 2 for arguments that make no sense.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tools.assembly import clear_errors
from tools.bench import BenchmarkError
from tools.command_line import CommandParser

#: name -> module with `main(arguments)`, imported only when chosen: the benchmarks need different packages.
BENCHMARKS = {
    "losses": "tools.bench.learner.losses",
    "learner": "tools.bench.learner.command",
    "end_to_end": "tools.bench.end_to_end.command",
    "convert": "tools.bench.weights.convert",
    "save": "tools.bench.weights.save",
    "sync": "tools.bench.weights.sync",
    "queue": "tools.bench.queue.command",
    "overlap": "tools.bench.rollout.overlap",
    "dispatch": "tools.bench.rollout.dispatch",
    "rollout": "tools.bench.rollout.rollout",
    "evaluate": "tools.bench.rollout.evaluation",
    "rewards": "tools.bench.rewards.command",
    "slow_rewards": "tools.bench.rollout.slow_rewards",
    "gateway": "tools.bench.gateway.command",
    "gateway_memory": "tools.bench.gateway.memory",
    "isolation": "tools.bench.gateway.isolation",
    "refusals": "tools.bench.gateway.refusals",
    "admission": "tools.bench.admission.command",
    "registry": "tools.bench.registry.command",
    "scrape": "tools.bench.end_to_end.scraping",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark that the arguments name; returns the exit status."""
    parser = CommandParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=tuple(BENCHMARKS), help="what to measure; NAME --help shows its settings")
    parser.add_argument("settings", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    with clear_errors():
        try:
            importlib.import_module(BENCHMARKS[chosen.benchmark]).main(chosen.settings)
        except BenchmarkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
