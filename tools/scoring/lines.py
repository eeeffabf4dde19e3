"""Lines of a file of answers: read one at a time, however long the file is."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from learner_jax.runtime import WeirError, printable

#: longer lines are not read, and count as errors
MAX_LINE_BYTES = 32 << 20
_BLOCK_BYTES = 1 << 20
_WRONG_BEGIN = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "gzip",
    b"PAR1": "parquet",
}


class ScoreError(WeirError, ValueError):
    """Answers can't be scored: says the file or argument, and what was expected."""

    can_heal = False


@dataclass(frozen=True)
class Line:
    """One line of the file that is not blank.

    Attributes:
      number: from 1 on, blank lines included.
      content: without its end; None if it is longer than `MAX_LINE_BYTES`.
    """

    number: int
    content: bytes | None


@contextmanager
def opened_input(path: str, *, option: str = "--answers") -> Iterator[BinaryIO]:
    """The file that the option names; "-" is standard input.

    Raises:
      ScoreError: there is no such file.
    """
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115  (closed below; the error of opening is told apart)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ScoreError(f"{option} {printable(path)[:300]} can't be read: {said}") from None
    with file:
        yield file


def read_lines(file: BinaryIO, *, name: str, option: str = "--answers") -> Iterator[Line]:
    """The lines that are not blank, without ends and without a BOM.

    Raises:
      ScoreError: the file is in another encoding or format, by its first bytes.
    """
    number = 0
    while True:
        content, is_whole = _next_line(file)
        if content == b"":
            return
        number += 1
        if number == 1:
            content = _checked_begin(content, name, option)
        if not is_whole:
            yield Line(number, None)
        elif bare := content.strip(b" \t\r\n\x0b\x0c"):
            yield Line(number, bare)


def _next_line(file: BinaryIO) -> tuple[bytes, bool]:
    """The next line with its end, and whether all of it is there; empty at the end of the file."""
    content = file.readline(MAX_LINE_BYTES + 2)
    if len(content) < MAX_LINE_BYTES + 2 or content.endswith(b"\n"):
        return content, True
    while (more := file.readline(_BLOCK_BYTES)) and not more.endswith(b"\n"):
        pass
    return content, False


def _checked_begin(content: bytes, name: str, option: str) -> bytes:
    for begin, kind in _WRONG_BEGIN.items():
        if content.startswith(begin):
            raise ScoreError(f"{option} {printable(name)[:300]} is {kind}, expected lines of JSON in UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)
