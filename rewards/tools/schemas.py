"""JSON schemas of tools, checked against what a policy wrote: no pattern of theirs runs without a bound.

jsonschema searches with Python's own `re`, which some patterns keep busy for years on some texts, with the GIL held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for

from learner_jax.runtime import Pattern

#: of processor time, for one pattern on one text: the event loop waits for it
_PATTERN_S = 0.05
_MAX_SHOWN = 100


def validator_of(schema: Mapping[str, Any]) -> Any:
    """jsonschema's validator, whose checks raise `SlowPatternError` where a pattern takes too long on a text."""
    plain = validator_for(dict(schema))
    bounded = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    return extend(plain, bounded)(dict(schema))


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _found(pattern, instance):
        yield ValidationError(f"{instance[:_MAX_SHOWN]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, properties: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, Mapping):
        return
    for pattern, inner in properties.items():
        for name, value in instance.items():
            if _found(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    if not isinstance(instance, Mapping):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    more = [n for n in instance if n not in known and not any(_found(pattern, n) for pattern in patterns)]
    if isinstance(wanted, Mapping):
        for name in more:
            yield from validator.descend(instance[name], wanted, path=name)
    elif wanted is False and more:
        names = ", ".join(repr(name[:_MAX_SHOWN]) for name in more)
        yield ValidationError(f"Additional properties are not allowed ({names})")


def _found(pattern: str, text: str) -> bool:
    return Pattern(pattern, limit_s=_PATTERN_S).found_in(text)
