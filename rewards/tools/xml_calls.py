"""Calls as Qwen3-Coder writes them: `<function=add><parameter=a>1</parameter></function>`, often in `<tool_call>`.

Values are bare text: which of them are numbers, only the tool's schema says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from learner_jax.runtime import WeirError

_FUNCTION = re.compile(r"<function=([^>\s]*)>(.*?)(</function>|(?=<function=)|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]*)>(.*?)(</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_MARKS = re.compile(r"</?tool_call>")
_EXAMPLE = "<function=tool>\n<parameter=argument>\nvalue\n</parameter>\n</function>"


class XmlCallError(WeirError, ValueError):
    """What was meant as a call, and why it is none."""


def split_xml_calls(text: str) -> tuple[str, list[str]]:
    """(the text around the calls, the text of each call)."""
    return _MARKS.sub("", _FUNCTION.sub("", text)), [found.group(0) for found in _FUNCTION.finditer(text)]


def read_xml_call(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of one call.

    Args:
      schemas: of each tool's arguments, by its name. Without one, a value that reads as JSON is that.

    Raises:
      XmlCallError: it is none.
    """
    found = _FUNCTION.search(text)
    if found is None or not found.group(1):
        raise XmlCallError(f"it names no function; expected {_EXAMPLE}")
    if not found.group(3):
        raise XmlCallError(f"no </function> ends it; expected {_EXAMPLE}")
    name, inside = found.group(1), found.group(2)
    properties = schemas.get(name, {}).get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    arguments: dict[str, Any] = {}
    for piece in _PARAMETER.finditer(inside):
        key, value, end = piece.groups()
        if not key or not end:
            problem = "a parameter has no name" if not key else f"no </parameter> ends {key[:80]}"
            raise XmlCallError(f"{problem}; expected {_EXAMPLE}")
        arguments[key] = _value(value.removeprefix("\n").removesuffix("\n"), properties.get(key))
    if _PARAMETER.sub("", inside).strip():
        raise XmlCallError(f"there is text outside of its parameters; expected {_EXAMPLE}")
    return name, arguments


def _value(text: str, schema: Any) -> Any:
    """A text where the schema takes no other type, or where it reads as no JSON."""
    kinds = schema.get("type", ()) if isinstance(schema, Mapping) else ()
    if kinds in ("string", ["string"]):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
