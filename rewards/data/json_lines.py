"""Lines of a JSON-lines dataset, read strictly: what can't be meant is refused by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError
from rewards.data.encodings import BOM, MAX_LINE_BYTES, decoded, require_plain_text

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
    require_plain_text(payload[:16], origin)
    for number, line in enumerate(payload.removeprefix(BOM).split(b"\n"), start=1):
        if line.strip():
            where = f"{origin}, line {number}"
            yield where, number, record_of(line, where)


def record_of(line: bytes, where: str) -> dict[str, Any]:
    """The object of one line.

    Raises:
      TaskError: it is too long, no JSON object in UTF-8, or names a key twice.
    """
    if len(line) > MAX_LINE_BYTES:
        raise TaskError(f"{where} has {len(line)} bytes, at most {MAX_LINE_BYTES} are read")
    text = decoded(line, where)
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is not JSON: {error}") from None
    if not isinstance(record, dict):
        hint = "; one object a line is read: jq -c '.[]' makes lines of an array" if isinstance(record, list) else ""
        raise TaskError(f"{where} is a {type(record).__name__}, expected an object{hint}")
    return record


def text_of(record: dict[str, Any], key: str, where: str) -> str:
    """The text under a key of a line.

    Raises:
      TaskError: it is missing, not text, blank, too long, or holds characters that no tokenizer or terminal should get.
    """
    if key not in record:
        raise TaskError(f"{where} has no key {key!r}, only {', '.join(map(repr, record))[:500]}; see task.options")
    return sound_text(record[key], f"{where}: {key!r}")


def sound_text(value: Any, what: str) -> str:
    """The text itself, with line ends as Unix writes them.

    Args:
      what: names it in errors.

    Raises:
      TaskError: it is not text, blank, too long, or holds characters that no tokenizer or terminal should get.
    """
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{what} is {value!r:.200}, expected text")
    if len(value) > _MAX_TEXT_CHARACTERS:
        raise TaskError(f"{what} has {len(value)} characters, at most {_MAX_TEXT_CHARACTERS} are read")
    if not value.isprintable():  # the common case needs no look at each character
        _check_characters(value, what)
    return value.replace("\r\n", "\n")


def _check_characters(value: str, what: str) -> None:
    for position, character in enumerate(value):
        if character < " " or "\x7f" <= character <= "\x9f":
            if character in _ALLOWED_CONTROLS:
                continue
            wrong = "a control character"
        elif "\ud800" <= character <= "\udfff":
            wrong = "half of a surrogate pair, which is no character"
        else:
            continue
        raise TaskError(f"{what} holds {wrong}, U+{ord(character):04X}, at position {position}; remove it")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
