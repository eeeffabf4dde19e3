"""The report of a run: `report.html`, one self-contained page, and `summary.json`, its figures for machines.

    python -m tools.report runs/demo

writes both anew from `metrics.jsonl` and `config.toml` of a run directory.
"""

from __future__ import annotations

from pathlib import Path

from learner_jax.runtime import printable
from tools.assembly import clear_errors
from tools.command_line import command_parser
from tools.reporting import page


def main() -> None:
    parser = command_parser("report", __doc__)
    parser.add_argument("run_directory", type=Path)
    with clear_errors():
        run_dir = parser.parse_args().run_directory
        page.write_summary(run_dir)
        print(printable(page.write_report(run_dir)))


if __name__ == "__main__":
    main()
