"""Which values a configuration may hold, whatever the setting: text of printable characters, numbers, no dates."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

#: What models read may have lines and tabs; names and paths may not.
_OF_LINES = ("task.prompt_template", "task.feedback", "task.system", "task.options")
_SOURCE = re.compile(r"^task\.sources\.[0-9]+\.")
_LINES = "\n\t"
_MAX_SHOWN = 120


def unusable(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """One line for each value, or key, that no setting can be: named, with what is wrong with it."""
    for key, value in tree.items():
        yield from _text_problems(f"the key {shown(prefix + key)}", key, lines=False)
        yield from _value_problems(f"{prefix}{key}", value)


def _value_problems(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _text_problems(shown(name), value, lines=_SOURCE.sub("task.", name).startswith(_OF_LINES))
    elif isinstance(value, Mapping):
        yield from unusable(value, f"{name}.")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value_problems(f"{name}.{index}", item)
    elif isinstance(value, float) and math.isnan(value):
        yield f"{shown(name)}: expected a number, got nan"
    elif not isinstance(value, bool | int | float):
        yield f"{shown(name)}: dates and times are no settings, got {value}; put it in quotes"


def _text_problems(name: str, text: str, *, lines: bool) -> Iterator[str]:
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            yield f"{name}: {quoted(text)} is not valid UTF-8; expected text"
            return
        if kind == "Cc" and not (lines and character in _LINES):
            yield (
                f"{name}: {quoted(text)} holds the control character U+{ord(character):04X}; remove it"
                + (r" (a backslash is written \\)" if lines else "")
            )
            return


def shown(value: Any) -> str:
    """A value on one line, short, and without characters that a terminal would obey."""
    if type(value) is int and value.bit_length() > 3 * _MAX_SHOWN:
        return f"a number of {value.bit_length()} bits"
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def quoted(text: str) -> str:
    """Text as `shown`, in quotes."""
    return shown(repr(text))
