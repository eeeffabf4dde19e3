"""Lines of a JSON-lines dataset, read strictly: what can't be meant is refused by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError

_MAX_LINE_BYTES = 4 << 20
_MAX_TEXT_CHARACTERS = 200_000
_ALLOWED_CONTROLS = "\n\t\r"


def read_file(path: str, *, setting: str, wanted: str) -> bytes:
    """The file's bytes; TaskError if there are none to be had.

    Args:
      setting: that gives the path.
      wanted: what is said where it is empty.
    """
    if not path:
        raise TaskError(f"{setting} is empty; {wanted}")
    file = Path(path)
    try:
        if not file.is_file():
            raise TaskError(f"{setting} {path!r} can't be read: {'not a file' if file.exists() else 'No such file'}")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise TaskError(f"{setting} {path!r} can't be read: {getattr(error, 'strerror', None) or error}") from error


def records(payload: bytes, *, origin: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """For every line that is not blank: where it is, in words, its number from 1 on, and its object.

    Raises:
      TaskError: a line is no JSON object in UTF-8, or names a key twice.
    """
    if payload.startswith(b"\xef\xbb\xbf"):
        payload = payload[3:]
    for number, line in enumerate(payload.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin}, line {number}"
        if len(line) > _MAX_LINE_BYTES:
            raise TaskError(f"{where} has {len(line)} bytes, at most {_MAX_LINE_BYTES} are read")
        try:
            record = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise TaskError(f"{where} is not UTF-8: byte {error.start} is {line[error.start]:#04x}") from None
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise TaskError(f"{where} is a {type(record).__name__}, expected an object")
        yield where, number, record


def text_of(record: dict[str, Any], key: str, where: str) -> str:
    """The text under a key of a line.

    Raises:
      TaskError: it is missing, not text, blank, too long, or holds characters that no tokenizer or terminal should get.
    """
    if key not in record:
        raise TaskError(f"{where} has no key {key!r}, only {', '.join(map(repr, record))[:500]}; see task.options")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: {key!r} is {value!r:.200}, expected text")
    if len(value) > _MAX_TEXT_CHARACTERS:
        raise TaskError(f"{where}: {key!r} has {len(value)} characters, at most {_MAX_TEXT_CHARACTERS} are read")
    for position, character in enumerate(value):
        if character < " " or "\x7f" <= character <= "\x9f":
            if character in _ALLOWED_CONTROLS:
                continue
            wrong = "a control character"
        elif "\ud800" <= character <= "\udfff":
            wrong = "half of a surrogate pair, which is no character"
        else:
            continue
        raise TaskError(f"{where}: {key!r} holds {wrong}, U+{ord(character):04X}, at position {position}; remove it")
    return value.replace("\r\n", "\n")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
