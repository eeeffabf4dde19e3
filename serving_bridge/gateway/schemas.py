"""JSON schemas of strangers, before an engine compiles them: bounded in size, and in what their patterns expand to.

vLLM checks a schema in the process that answers everybody, and a counted repetition is as much work as its expansion:
half a minute for `(a{1,9999}){1,9999}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from serving_bridge.gateway.errors import invalid

_MAX_BYTES = 64 << 10
#: characters that all patterns of a schema may come to, with each repetition written out
_MAX_EXPANDED = 100_000
#: a class, an escape, a counted repetition, or any other character
_PART = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|\{(\d*)(?:,(\d*))?\}|.", re.DOTALL)


def check_schema(schema: Any, param: str) -> None:
    """Raises `GatewayError`: the schema is too large.

    Args:
      param: of the request that it came with.
    """
    if len(msgspec.json.encode(schema)) > _MAX_BYTES:
        raise invalid(f"a schema has at most {_MAX_BYTES} bytes", param)
    if sum(map(expanded, _patterns(schema))) > _MAX_EXPANDED:
        raise invalid(f"the patterns of a schema come to more than {_MAX_EXPANDED} characters, repeated", param)


def _patterns(schema: Any) -> Iterator[str]:
    """Whatever may be a pattern, wherever it stands; bodies of requests are not nested deep."""
    if isinstance(schema, Mapping):
        yield from (found for found in [schema.get("pattern")] if isinstance(found, str))
        if isinstance(by_pattern := schema.get("patternProperties"), Mapping):
            yield from by_pattern
        for value in schema.values():
            yield from _patterns(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _patterns(value)


def expanded(pattern: str) -> int:
    """How many characters, or classes of them, a regular expression has with its counted repetitions written out."""
    totals, last = [0], 0  # of each group that is open, and of what a repetition would repeat
    for part in _PART.finditer(pattern):
        text = part[0]
        if text == "(":
            totals.append(0)
            last = 0
        elif text == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif text[0] == "{" and len(text) > 1 and (bound := _bound(part[1], part[2])) is not None:
            totals[-1] += last * max(0, bound - 1)
            last *= max(1, bound)
        elif text not in "*+?|^$":
            last = 1
            totals[-1] += 1
    return sum(totals)


def _bound(least: str, most: str | None) -> int | None:
    """The most times that `{least}`, `{least,}` or `{least,most}` counts; None if it is no repetition."""
    digits = most or least
    return int(digits[:9]) if digits else None
