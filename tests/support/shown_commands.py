"""The shell commands that the documents show, as a reader would type them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

_SHELLS = ("bash", "sh", "shell", "console")
_OURS = re.compile(r"python -m tools\.|weir |make ")
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """One command.

    Attributes:
      text: without prompt, comment and line breaks.
      is_whole: it stands in a block of its own, to be copied; a command in a sentence may leave out what it needs.
    """

    document: str
    text: str
    is_whole: bool

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def shown_in(path: Path, root: Path) -> list[Shown]:
    """What a Markdown file shows: blocks in a shell's language, lines after a `$ `, indented lines, code in text."""
    name, text = str(path.relative_to(root)), path.read_text()
    found = []
    for language, block in _FENCE.findall(text):
        lines = _lines(block) if language in _SHELLS else _prompted(block)
        found += [Shown(name, line, is_whole=True) for line in lines]
    rest = _FENCE.sub("", text)
    indented = [line.strip() for line in rest.splitlines() if re.match(r"    \S", line)]
    found += [Shown(name, _plain(line), is_whole=True) for line in indented if _OURS.match(line)]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", "\n".join(re.sub(r"^    .*", "", line) for line in rest.splitlines()))
    for span in spans:
        if _OURS.match(span):
            found += [Shown(name, form, is_whole=False) for form in _forms(span)]
    return list(dict.fromkeys(found))


def _lines(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        yield from filter(None, _plain(line.removeprefix("$ ")).split(" && "))


def _prompted(block: str) -> Iterator[str]:
    return _lines("\n".join(line for line in block.splitlines() if line.startswith("$ ")))


def _plain(line: str) -> str:
    """The line without a comment, with what is optional, each gap one space wide."""
    text = re.sub(r"(?:^|\s)#.*", "", line)
    return re.sub(r"\s+", " ", re.sub(r"\[(--[^\]]*)\]", r"\1", text)).strip()


def _forms(span: str) -> Iterator[str]:
    """The forms of `command A | B x | C`, of which each takes the place of the last word before the first bar."""
    first, *others = span.split(" | ")
    yield first
    for other in others:
        yield f"{first.rpartition(' ')[0]} {other}"


class _ParsedError(BaseException):
    """Ends a command once its command line is read; no `except Exception` on the way catches it."""

    def __init__(self, found: argparse.Namespace | None) -> None:
        self.found = found


def parsed(module: str, program: str, arguments: Sequence[str], *, is_whole: bool) -> argparse.Namespace | None:
    """What the command's own parser makes of the arguments; the command itself does not run.

    Args:
      is_whole: else arguments that it requires may be missing, and None is returned.

    Raises:
      SystemExit: it refuses them.
    """
    parse, refuse = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.error

    def parse_args(parser: argparse.ArgumentParser, *given: Any, **named: Any) -> argparse.Namespace:
        found = parse(parser, *given, **named)
        if "benchmark" in found:  # the benchmark's own parser comes next
            return found
        raise _ParsedError(found)

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        if not is_whole and "the following arguments are required" in message:
            raise _ParsedError(None)
        refuse(parser, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(argparse.ArgumentParser, "error", error)
        patch.setattr(sys, "argv", [program, *arguments])
        try:
            importlib.import_module(module).main()
        except _ParsedError as end:
            return end.found
    raise AssertionError(f"{module} reads no command line")
