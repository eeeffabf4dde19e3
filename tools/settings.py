"""Lists the settings of a run: name, type, range, default and meaning, from the schema.

    python -m tools.settings                      (all of them)
    python -m tools.settings learner.optimizer    (those whose names begin so)
    python -m tools.settings rollout --json       (for programs)

Each is set in the configuration file, or by --set NAME=VALUE.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from configs.described import Setting, lists, settings, tables
from configs.errors import ConfigError
from configs.names import did_you_mean
from tools.assembly import clear_errors
from tools.command_line import command_parser, print_page

_WIDTH = (60, 120)
_INTRODUCTION = """\
# Settings

Every setting of a run. A TOML file holds them in tables; `--set NAME=VALUE` changes one on the command line.
`weir settings PREFIX` prints this list in a terminal.

This file is written from the schema: `python -m tools.settings --markdown > docs/settings.md`.
"""


def chosen(prefix: str) -> list[Setting]:
    """The settings whose names begin with the prefix.

    Raises:
      ConfigError: there are none; the nearest names are told.
    """
    everything = settings()
    found = [setting for setting in everything if setting.name.startswith(prefix)]
    if not found:
        raise ConfigError(
            f"no setting's name begins with {prefix!a}; {did_you_mean(prefix) or 'all are listed without it'}"
        )
    return found


def plain(found: Sequence[Setting], *, width: int) -> str:
    """Two lines or more for each setting: what it takes, and what it means."""
    return "\n".join(line for setting in found for line in _lines(setting, width))


def _lines(setting: Setting, width: int) -> Iterator[str]:
    default = setting.default if setting.default in ("required", "not set") else f"default {setting.default}"
    yield f"{setting.name}   {', '.join(filter(None, (setting.type, setting.range, default)))}"
    yield from textwrap.wrap(setting.meaning, width, initial_indent="    ", subsequent_indent="    ")


def markdown() -> str:
    """The page docs/settings.md: a heading for each table of the schema, a row for each setting."""
    lines, several = [_INTRODUCTION], lists()
    for table, meaning in tables().items():
        rows = [setting for setting in settings() if setting.table == table]
        heading = f"[[{table}]]" if table in several else f"[{table}]"
        lines += [f"## {heading}", "", *([meaning, ""] if meaning else [])]
        lines += ["| setting | type | range | default | meaning |", "|---|---|---|---|---|", *map(_row, rows), ""]
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    cells = (_code(setting.name), setting.type, setting.range, setting.default, setting.meaning)
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that a cell shows as it stands."""
    return re.sub(r"[|<]", r"\\\g<0>", text)


def _code(text: str) -> str:
    return f"`{text}`"


def _shown(arguments: argparse.Namespace) -> str:
    if arguments.markdown:
        return markdown()
    found = chosen(arguments.prefix)
    if arguments.names:
        return "\n".join(setting.name for setting in found)
    if arguments.json:
        return json.dumps([asdict(setting) for setting in found], indent=1)
    low, high = _WIDTH
    return plain(found, width=min(max(shutil.get_terminal_size().columns, low), high))


def main() -> None:
    parser = command_parser("settings", __doc__)
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="beginning of the names, e.g. rollout")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of objects")
    form.add_argument("--names", action="store_true", help="print names alone")
    form.add_argument("--markdown", action="store_true", help="print the page docs/settings.md, always whole")
    arguments = parser.parse_args()
    with clear_errors():
        text = _shown(arguments)
    print_page(text)


if __name__ == "__main__":
    main()
