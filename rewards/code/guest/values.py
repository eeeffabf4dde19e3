"""Values on their way from the answer's process to the tests: plain data of a few types, and handles to the rest.

Whatever the answer's process sends is hostile. It is JSON, which is decoded into exact built-in types only; an object
of a class that the answer wrote stays behind a handle, so that none of its methods runs beside the tests.

A value is None, True, False, a str, a float or a small int as JSON has it, or a list of a tag and its content.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    #: (value, plain form or None) -> handle, as JSON; the answer's process keeps the object
    Remember = Callable[[Any, Any], Any]
    #: (content of a handle, decoded plain form or None) -> what stands for the object in the tests
    Recall = Callable[[Any, Any], Any]

_MAX_DEPTH = 200
_MAX_PLAIN_INT = 1 << 53
_STRUCTURED: dict[Any, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}


class Malformed(Exception):
    """The answer's process sent something that is no value."""


def encode(value: Any, remember: Remember) -> Any:
    """A value as JSON; raises RecursionError for one that holds itself."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_MAX_PLAIN_INT < value < _MAX_PLAIN_INT else ["i", hex(value)]
    if kind is float:
        return value if value - value == 0 else ["f", repr(value)]
    if kind in _STRUCTURED:
        return [_STRUCTURED[kind], [encode(item, remember) for item in value]]
    if kind is dict:
        return ["d", _pairs(value.items(), remember)]
    library = _encode_library(value, kind, remember)
    return library if library is not None else remember(value, _plain_form(value, remember))


def _plain_form(value: Any, remember: Remember) -> Any:
    """An object of a class that derives from a built-in type, as that type: taken by that type's own methods."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return encode(int.__int__(value), remember)
    if isinstance(value, float):
        return encode(float.__float__(value), remember)
    for base, tag in _STRUCTURED.items():
        if isinstance(value, base):
            return [tag, [encode(item, remember) for item in base.__iter__(value)]]
    return ["d", _pairs(dict.items(value), remember)] if isinstance(value, dict) else None


def _pairs(items: Any, remember: Remember) -> list[Any]:
    return [[encode(key, remember), encode(item, remember)] for key, item in items]


def _encode_library(value: Any, kind: type, remember: Remember) -> Any:
    name = kind.__name__
    if kind in (bytes, bytearray):
        return ["b" if kind is bytes else "B", value.hex()]
    if kind is complex:
        return ["j", [encode(value.real, remember), encode(value.imag, remember)]]
    if kind is range:
        return ["g", [encode(part, remember) for part in (value.start, value.stop, value.step)]]
    if kind is type({}.keys()):
        return ["vk", [encode(item, remember) for item in value]]
    if kind is type({}.items()):
        return ["vi", _pairs(value, remember)]
    if kind is type and value.__module__ == "builtins":
        return ["T", value.__name__]
    if kind.__module__ == "collections":
        if name in ("OrderedDict", "defaultdict", "Counter"):
            return [name, _pairs(dict.items(value), remember)]
        return ["deque", [encode(item, remember) for item in value]] if name == "deque" else None
    if kind.__module__ == "decimal" and name == "Decimal":
        return ["D", str(value)]
    if kind.__module__ == "fractions" and name == "Fraction":
        return ["F", [encode(value.numerator, remember), encode(value.denominator, remember)]]
    if kind.__module__ == "datetime" and name in ("date", "time", "datetime"):
        return [name, value.isoformat()]
    if kind.__module__ == "datetime" and name == "timedelta":
        return [name, [value.days, value.seconds, value.microseconds]]
    return None


def decode(data: Any, recall: Recall, depth: int = 0) -> Any:
    """The value that JSON stands for.

    Raises:
      Malformed: it stands for none.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if depth > _MAX_DEPTH or not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise Malformed("what came back is no value")
    try:
        return _decoded(data[0], data[1:], recall, depth + 1)
    except Malformed:
        raise
    except Exception as error:  # noqa: BLE001  (whatever hostile content makes a constructor raise)
        raise Malformed(f"what came back is no value: {type(error).__name__}") from None


def _decoded(tag: str, rest: list[Any], recall: Recall, depth: int) -> Any:
    if tag == "r":
        handle, plain = rest
        return recall(handle, None if plain is None else decode(plain, recall, depth))
    (content,) = rest
    if tag == "i":
        return int(content, 16)
    if tag == "f":
        return {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}[content]
    if tag in ("b", "B"):
        return (bytes if tag == "b" else bytearray).fromhex(content)
    if tag == "T":
        return _builtin_type(content)
    if tag in ("d", "vi", "OrderedDict", "defaultdict", "Counter"):
        pairs = [(decode(key, recall, depth), decode(item, recall, depth)) for key, item in content]
        return _mapping(tag, pairs)
    if tag in ("D", "F", "date", "time", "datetime", "timedelta"):
        return _number_or_date(tag, content, recall)
    items = [decode(item, recall, depth) for item in content]
    return _sequence(tag, items)


def _sequence(tag: str, items: list[Any]) -> Any:
    for kind, name in _STRUCTURED.items():
        if tag == name:
            return kind(items)
    if tag == "deque":
        import collections

        return collections.deque(items)
    if tag == "vk":
        return dict.fromkeys(items).keys()
    return {"j": complex, "g": range}[tag](*items)


def _mapping(tag: str, pairs: list[tuple[Any, Any]]) -> Any:
    if tag == "d":
        return dict(pairs)
    if tag == "vi":
        return dict(pairs).items()
    import collections

    if tag == "defaultdict":
        return collections.defaultdict(None, pairs)
    return {"OrderedDict": collections.OrderedDict, "Counter": collections.Counter}[tag](dict(pairs))


def _number_or_date(tag: str, content: Any, recall: Recall) -> Any:
    if tag == "D":
        import decimal

        return decimal.Decimal(content)
    if tag == "F":
        import fractions

        return fractions.Fraction(*(decode(part, recall) for part in content))
    import datetime

    kind = getattr(datetime, tag)
    return kind(*content) if tag == "timedelta" else kind.fromisoformat(content)


def _builtin_type(name: str) -> Any:
    kind = getattr(sys.modules["builtins"], name)
    if not isinstance(kind, type):
        raise Malformed("no type of Python's own has that name")
    return kind
