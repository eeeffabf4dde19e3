"""Runs a whole training job on one machine: fleet, rollout worker and learner as processes of their own.

    python -m tools.train --config configs/demo.toml [--set rollout.max_staleness=0] [--profile N] [--dry-run]

    python -m tools.train --resume runs/demo [--set learner.steps=400]

All that can be known before is checked first, within seconds; --dry-run prints that and starts nothing.

An unfinished run directory is taken up where it stopped; a finished one is left alone and a new one is begun, unless
--resume names it. Settings may change then, but those that a run keeps for its life; the change is recorded. A process
that ends with an error is started again, a bounded number of times, and the others go on; with learner.hosts.count
above 1 the learner is that many processes, which are started again together.

SIGTERM or Ctrl-C stops all of them in order, with the learner's state saved, and a second one at once; either way the
same command goes on from there.
"""

from __future__ import annotations

from pathlib import Path

from configs.load import load_config
from tools.assembly import clear_errors, config_arguments, profile_argument, run_directory
from tools.command_line import command_parser
from tools.launch import INTERRUPTED, train


def main() -> None:
    parser = command_parser("train", __doc__)
    config_arguments(parser, required=False)
    profile_argument(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="carry on this run directory, also a finished one")
    parser.add_argument("--dry-run", action="store_true", help="print settings, checks and all that would be started")
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.resume is None):
        parser.error("expected either --config FILE or --resume RUN")
    with clear_errors():
        if arguments.resume is not None:
            start = run_directory.resume(arguments.resume, arguments.overrides)
        else:
            start = run_directory.choose(load_config(arguments.config, arguments.overrides))
        try:
            status = train(start, profile_steps=arguments.profile, dry=arguments.dry_run)
        except KeyboardInterrupt:
            print("ended at once; the same command goes on from the last checkpoint")
            status = INTERRUPTED
    raise SystemExit(status)


if __name__ == "__main__":
    main()
