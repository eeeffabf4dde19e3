"""What commands write for people: safe text, in the characters that the terminal has, cut by nobody."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from learner_jax.runtime import printable

#: Columns of tables that go into a file or pipe; COLUMNS overrides it.
_PIPED_WIDTH = 10_000
_COLOURS = {"healthy": "green", "suspect": "yellow", "silent": "red", "dead": "red", "unfit": "red"}
_ERRORS = "weir.terminal"
#: Characters that we draw with, for encodings that lack them; one for one, so that columns stay in line.
_PLAIN = str.maketrans("→━─│╭╮╰╯█░▁▂▃▄▅▆▇…", ">=-|++++#..__--=^~")


def prepare_streams() -> None:
    """Lets stdout and stderr take any text, whatever their encoding: what they lack is written plainly or escaped."""
    codecs.register_error(_ERRORS, _replacement)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors=_ERRORS)


def console(*, stderr: bool = False) -> Console:
    """A console for a command's output; where that is no terminal, tables are as wide as they need to be."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return SafeConsole(stderr=stderr, width=_PIPED_WIDTH if piped else None)


class SafeConsole(Console):
    """A console whose text can't steer the terminal: control characters in what it renders are escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep_lines=True), segment.style)


def coloured(state: str) -> Text:
    """The state of a replica, in its colour."""
    return Text(printable(state), style=_COLOURS.get(state, ""))


def print_json(value: Any) -> None:
    """Prints a value, msgspec's records included, as JSON in ASCII."""
    print(json.dumps(msgspec.to_builtins(value), indent=1))


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_plainly(char) for char in text), error.end


def _plainly(char: str) -> str:
    plain = char.translate(_PLAIN)
    return plain if plain.isascii() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
