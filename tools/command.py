"""The console script `weir`: `weir train ...` is `python -m tools.train ...`, from any folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools.commands import COMMANDS, GROUPS
from tools.interrupts import tell_interrupts_in_a_line
from tools.own_packages import own_packages_first

_USAGE_STATUS = 2


def main() -> None:
    """Runs the command that `sys.argv` names; exit status 2 if there is no such command."""
    first, rest = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if first in ("-h", "--help", "help"):
        print(help_text())
    elif first in ("-V", "--version"):
        print(version_text())
    elif first in COMMANDS:
        run(first, rest)
    elif first:
        raise SystemExit(_refused(unknown_text(first)))
    else:
        raise SystemExit(_refused(help_text()))


def run(name: str, arguments: Sequence[str]) -> None:
    """Runs a command in this process with these arguments; its help and errors call it `weir NAME`."""
    import importlib

    own_packages_first()
    tell_interrupts_in_a_line()
    sys.argv[:] = [f"weir {name}", *arguments]
    importlib.import_module(COMMANDS[name].module).main()


def help_text() -> str:
    """All commands in groups, one a line."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: weir COMMAND ...", "       weir COMMAND --help"]
    lines += ["", "Post-trains chat LLMs by reinforcement learning."]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:"]
        lines += [f"  {name:<{width}}{command.help}" for name, command in commands.items()]
    options = {"--help": "show this", "--version": "show the version, and the commit of a checkout"}
    lines += ["", "options:", *(f"  {name:<{width}}{text}" for name, text in options.items())]
    return "\n".join(lines)


def version_text() -> str:
    from learner_jax.runtime import this_code

    code = this_code()
    return f"weir {code.version}" + (f" (commit {code.commit})" if code.commit else "")


def unknown_text(name: str) -> str:
    """What is said of a command that does not exist, with the nearest names."""
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"weir: error: unknown command {name[:60]!a}; {meant}`weir --help` lists all"


def _refused(text: str) -> int:
    print(text, file=sys.stderr)
    return _USAGE_STATUS


if __name__ == "__main__":
    main()
