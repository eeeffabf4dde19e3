"""How every command begins to read its command line: its name and its help, as it was called."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import sys
from pathlib import Path
from typing import NoReturn

from learner_jax.runtime import printable
from tools.commands import COMMANDS

#: Environment variable of the file of public keys that commands demand signatures by.
TRUSTED_KEY_VARIABLE = "WEIR_TRUSTED_KEY"


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, whose errors show control characters of an argument as escapes."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for the command of this name, whose help is the module's docstring.

    Called as `weir NAME` it says so, also in the docstring's examples; else they are `python -m tools.NAME`. A command
    line that is no UTF-8 text ends the command here: databases and settings could not hold it.
    """
    program, text = f"python -m tools.{name}", doc or ""
    if sys.argv[:1] == [f"weir {name}"]:
        program = f"weir {name}"
        text = re.sub(rf"\bpython -m tools\.({'|'.join(COMMANDS)})\b", r"weir \1", text)
    parser = CommandParser(prog=program, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for place, argument in enumerate(sys.argv[1:], start=1):
        if not _is_text(argument):
            got = os.fsencode(argument[:60])
            parser.exit(2, f"{program}: error: argument {place}: expected UTF-8 text, got {got!r}; rename that file\n")
    return parser


def _is_text(argument: str) -> bool:
    """False for bytes that Python could not decode, which it keeps as lone surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def registry_arguments(parser: argparse.ArgumentParser, *, acts: bool = False, prints: bool = False) -> None:
    """Adds what every command on a registry takes: its folder, a namespace, its database.

    Args:
      acts: the command changes something, and says who does.
      prints: what it prints may be JSON.
    """
    parser.add_argument("registry", type=Path, help="the registry's folder")
    index_arguments(parser)
    if acts:
        parser.add_argument("--actor", default=who_am_i(), help="who does this (default: user@host)")
    if prints:
        parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def index_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds what says where a registry's index is, whose part of it is meant, and whose signatures are demanded."""
    parser.add_argument("--namespace", default="default", help="whose entries (default: default)")
    parser.add_argument("--database", help="URL of the index, e.g. postgresql://...?schema=registry")
    parser.add_argument(
        "--trusted-key",
        type=Path,
        default=os.environ.get(TRUSTED_KEY_VARIABLE) or None,
        metavar="PEM",
        help=f"public keys, one of which must have signed what is moved or shown (default: ${TRUSTED_KEY_VARIABLE})",
    )


def positive(text: str) -> int:
    """A number above 0, as a type of arguments."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text[:50]!a}")
    return int(text)


def who_am_i() -> str:
    """The user and the host, as `user@host`."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"uid {os.getuid()}@{socket.gethostname()}"


def print_page(text: str) -> None:
    """Prints a long text; a reader who has seen enough, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
