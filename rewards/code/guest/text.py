"""JSON by the interpreter's own C functions: the package `json` would double the time that Python takes to start."""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Settings:
    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


def dumps(value: Any) -> bytes:
    """JSON of dicts with text keys, lists, texts, numbers, True, False and None."""
    encoder = _json.make_encoder({}, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
    return "".join(encoder(value, 0)).encode("ascii")


def loads(data: bytes) -> Any:
    """The value of JSON without blanks around it; ValueError or RecursionError for what is none."""
    text = data.decode("ascii")
    try:
        value, end = _json.make_scanner(_Settings())(text, 0)  # type: ignore[arg-type]
    except StopIteration:
        raise ValueError("what came is no JSON") from None
    if end != len(text):
        raise ValueError("something stands behind the JSON")
    return value
