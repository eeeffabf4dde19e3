"""How every command begins to read its command line: its name and its help, as it was called."""

from __future__ import annotations

import argparse
import os
import re
import sys

from tools.commands import COMMANDS


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for the command of this name, whose help is the module's docstring.

    Called as `weir NAME` it says so, also in the docstring's examples; else they are `python -m tools.NAME`.
    """
    program, text = f"python -m tools.{name}", doc or ""
    if sys.argv[:1] == [f"weir {name}"]:
        program = f"weir {name}"
        text = re.sub(rf"\bpython -m tools\.({'|'.join(COMMANDS)})\b", r"weir \1", text)
    return argparse.ArgumentParser(prog=program, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def print_page(text: str) -> None:
    """Prints a long text; a reader who has seen enough, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
