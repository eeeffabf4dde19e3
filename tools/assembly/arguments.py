"""What the command line of every command takes: a configuration, changes to it, a name."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from configs.carry_on import changes
from configs.load import load_config
from configs.schema import Config
from configs.shipped import shipped_configs
from tools.assembly.paths import RunPaths, make_private_directory, run_paths, save_for_all


def config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config and --set."""
    shipped = ", ".join(shipped_configs())
    parser.add_argument(
        "--config", required=required, type=Path, help=f"TOML file, or a name that Weir knows: {shipped}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="override one setting, e.g. rollout.max_staleness=0; `none` takes out a table, or a value that need not "
        "be set, e.g. warm_start=none; may be given several times; `weir settings` lists all",
    )


def name_argument(parser: argparse.ArgumentParser, *, default: str, help: str) -> None:  # noqa: A002 - argparse's own
    """Adds --name, which becomes the name of files."""

    def plain(text: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text):
            raise argparse.ArgumentTypeError(f"{text!r}: expected letters, digits, '.', '_' and '-', at most 100")
        return text

    parser.add_argument("--name", default=default, type=plain, help=help)


def profile_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --profile."""
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="trace N of the learner's steps into <run>/profile, for Perfetto or XProf",
    )


def read_arguments(
    parser: argparse.ArgumentParser, *, joins: bool = False
) -> tuple[argparse.Namespace, Config, RunPaths]:
    """Parses the command line; makes the run directory and saves the resolved configuration in it.

    Args:
      joins: the process works on the run, and must have the settings that the run keeps for its life.

    Raises:
      ConfigError: the settings can't be used, or are not those of the run that is there.
    """
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    paths = run_paths(config)
    make_private_directory(paths)
    if not paths.config.exists():
        save_for_all(config, paths)
    if joins:
        changes(load_config(paths.config), config)
    return arguments, config, paths
