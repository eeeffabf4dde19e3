"""Launches a run from its one description: on this machine or on a cluster.

    python -m tools.launch --on local --config configs/demo.toml [--set ...] [--dry-run]
    python -m tools.launch --on kubernetes --config C --dry-run --out DIR
    python -m tools.launch status runs/demo
    python -m tools.launch logs runs/demo [--lines N] [PROCESS]
    python -m tools.launch stop runs/demo
    python -m tools.launch resume runs/demo [--set learner.steps=400] [--dry-run]

[launch] in the configuration says which roles there are and what each gets. --dry-run prints, for each role, command,
environment and resources, secrets as references, and starts nothing. `stop` lets the learner save; `resume` goes on
from there, where the run was launched before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.load import load_config
from tools.assembly import clear_errors, config_arguments, run_directory, run_paths
from tools.command_line import command_parser
from tools.launch import INTERRUPTED
from tools.launch.backends import BACKENDS, backend_of
from tools.launch.logs import show_logs

_ORDERS = ("status", "logs", "stop", "resume")


def main() -> None:
    parser = command_parser("launch", __doc__)
    config_arguments(parser, required=False)
    parser.add_argument("--on", choices=tuple(BACKENDS), help="where")
    parser.add_argument("--dry-run", action="store_true", help="print all that would be run, and start nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the manifests for Kubernetes there")
    orders = parser.add_subparsers(dest="order", metavar=f"{{{','.join(_ORDERS)}}}")
    for name, help_text in (
        ("status", "say what a run does"),
        ("logs", "show the ends of its processes' logs"),
        ("stop", "have the learner save, and end the run"),
    ):
        order = orders.add_parser(name, help=help_text)
        order.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
        if name == "logs":
            order.add_argument("process", nargs="?", default="", help="of this process alone, e.g. learner-1")
            order.add_argument("--lines", type=int, default=20, help="of each log")
    resume = orders.add_parser("resume", help="go on with a run that was stopped, or has finished")
    resume.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    resume.add_argument("--set", action="append", default=[], dest="changes", metavar="SECTION.KEY=VALUE")
    resume.add_argument("--dry-run", action="store_true", dest="dry", help="print what would be run, and start nothing")
    arguments = parser.parse_args()
    if arguments.order is None and (arguments.on is None or arguments.config is None):
        parser.error("expected --on WHERE --config FILE, or one of status, logs, stop and resume with a run directory")
    if arguments.out is not None and (arguments.on != "kubernetes" or not arguments.dry_run):
        parser.error("--out goes with --on kubernetes --dry-run")
    with clear_errors():
        try:
            status = _carried_out(arguments)
        except KeyboardInterrupt:
            print("ended at once; `resume` goes on from the last checkpoint")
            status = INTERRUPTED
    raise SystemExit(status)


def _carried_out(arguments: argparse.Namespace) -> int:
    """Does what the command line asks for; returns the exit status."""
    if arguments.order is None:
        start = run_directory.choose(load_config(arguments.config, arguments.overrides))
        return BACKENDS[arguments.on].start(start, dry=arguments.dry_run, out=arguments.out)
    if arguments.order == "resume":
        start = run_directory.resume(arguments.run, arguments.changes)
        return backend_of(run_paths(start.config)).start(start, dry=arguments.dry)
    paths = run_directory.known(arguments.run)
    if arguments.order == "logs":
        show_logs(paths, arguments.process, lines=arguments.lines)
        return 0
    backend = backend_of(paths)
    print(backend.stop(paths) if arguments.order == "stop" else backend.status(paths))
    return 0


if __name__ == "__main__":
    main()
