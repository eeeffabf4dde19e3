"""Writes the page of what the tests cost and see.

    python -m tools.testing.suite JUNIT [--mutations FILE ...] [--out docs/suite.md]

JUNIT is what pytest wrote with --junitxml, of the whole suite; FILE is what tools.testing.mutate wrote with --json.
Nothing is run or measured here. The hardware on the page is this machine's: make the page where the tests ran.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from learner_jax.runtime import SHARED_MODE, printable, write_whole
from tools.bench.timing import this_hardware
from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.suite.page import page
from tools.testing.suite.results import ResultsError, read_run, read_tried


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("junit", type=Path, help="JUnit XML of a run of the suite")
    parser.add_argument(
        "--mutations", type=Path, nargs="+", default=[], metavar="FILE", help="mutations that were tried"
    )
    parser.add_argument("--slowest", type=int, default=20, help="tests that are named, default 20")
    parser.add_argument("--out", type=Path, default=Path("docs/suite.md"), help="the page, default docs/suite.md")
    given = parser.parse_args()
    terminal.prepare_streams()
    try:
        run, tried = read_run(given.junit), read_tried(given.mutations)
    except ResultsError as error:
        parser.error(str(error))
    told = "python -m tools.testing.suite JUNIT" + (" --mutations FILE" if tried else "")
    text = page(run, tried, hardware=_hardware(), command=told, slowest=given.slowest)
    try:
        write_whole(given.out, text, mode=SHARED_MODE)
    except OSError as error:
        parser.error(f"{printable(given.out)} can't be written: {printable(error.strerror)}")
    noticed = sum(one.noticed_by is not None for one in tried)
    terminal.console().print(
        f"{len(run.tests)} tests and {noticed} of {len(tried)} mutations noticed: {printable(given.out)}", markup=False
    )
    return 0


def _hardware() -> str:
    found = this_hardware()
    return f"{found.cpu}, {found.cores} cores; Python {found.python}, jax {found.jax}."


if __name__ == "__main__":
    sys.exit(main())
