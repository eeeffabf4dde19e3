"""Problems as JSON and back, with the tuples, sets and keys that JSON lacks; nothing but plain data goes through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: An object with this key is one of ours: its value names the kind, "of" holds the parts.
_MARK = "\x00kind"


def to_json(value: Any) -> Any:
    """`value` in JSON's types.

    Raises:
      TypeError: it holds something that is not plain data.
    """
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        value = value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {_MARK: "float", "of": str(value)}
        case list():
            return [to_json(part) for part in value]
        case tuple():
            return {_MARK: "tuple", "of": [to_json(part) for part in value]}
        case set() | frozenset():
            return {_MARK: "set", "of": [to_json(part) for part in value]}
        case Mapping():
            if all(type(key) is str and key != _MARK for key in value):
                return {key: to_json(part) for key, part in value.items()}
            return {_MARK: "dict", "of": [[to_json(key), to_json(part)] for key, part in value.items()]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def from_json(value: Any) -> Any:
    """What `to_json` was given, with arrays and scalars of NumPy as Python's lists and numbers."""
    match value:
        case list():
            return [from_json(part) for part in value]
        case dict() if _MARK in value:
            return _special(value[_MARK], value["of"])
        case dict():
            return {key: from_json(part) for key, part in value.items()}
    return value


def _special(kind: str, of: Any) -> Any:
    match kind:
        case "tuple":
            return tuple(from_json(part) for part in of)
        case "set":
            return {from_json(part) for part in of}
        case "dict":
            return {from_json(key): from_json(part) for key, part in of}
        case "float":
            return float(of)
    raise ValueError(f"{kind!r} is no kind of data that to_json writes")
