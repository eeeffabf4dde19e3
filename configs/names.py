"""Names of settings that are near to one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.overrides import item_of, model_of
from configs.schema import Config

_MOST = 3
#: Characters that are compared.
_LONGEST = 200
#: Of a likeness that is 1 for the same name: what a name must have, and how much of the best one's.
_LEAST, _OF_BEST = 0.52, 0.85
#: Of a key alone, which must not be another word altogether.
_LEAST_OF_KEY = 0.55
#: How much more the key counts than the tables that it stands in.
_KEY_WEIGHT = 3


def known_names() -> list[str]:
    """Dotted names of all settings and tables, in the schema's order."""
    return list(_names(Config, ""))


def _names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield f"{prefix}{key}"
        if table := model_of(field.annotation):
            if is_named(field):
                yield f"{prefix}{key}.NAME"
            yield from _names(table, f"{prefix}{key}.NAME." if is_named(field) else f"{prefix}{key}.")
        if item := item_of(field.annotation):
            yield from (f"{prefix}{key}.{more}" for more in own_fields(item, model))


def own_fields(item: type[BaseModel], table: type[BaseModel]) -> list[str]:
    """Fields of the tables of a list, but for those that are the same in the table that the list stands in."""
    same = {name: field.description for name, field in table.model_fields.items()}
    return [name for name, field in item.model_fields.items() if same.get(name) != field.description]


def is_named(field: FieldInfo) -> bool:
    """Whether the field holds several tables, each under a name of the user's."""
    return get_origin(field.annotation) is dict


def nearest(name: str) -> list[str]:
    """The nearest dotted names of the schema, the best first: another spelling, or the key under another table."""
    found = ((_likeness(name, known), known) for known in known_names())
    rated = sorted(found, key=lambda pair: (-pair[0], pair[1].count(".")))  # of two equals the less special one
    best = rated[0][0]
    return [known for rate, known in rated[:_MOST] if rate >= max(_LEAST, _OF_BEST * best)]


def _likeness(wanted: str, known: str) -> float:
    """How alike two dotted names are, from 0 to 1."""
    tables, _, key = wanted.lower().rpartition(".")
    known_tables, _, known_key = known.rpartition(".")
    of_key, of_tables = (
        difflib.SequenceMatcher(None, one, other).ratio() for one, other in ((key, known_key), (tables, known_tables))
    )
    return (_KEY_WEIGHT * of_key + of_tables) / (_KEY_WEIGHT + 1) if of_key >= _LEAST_OF_KEY else 0.0


def did_you_mean(name: str) -> str:
    """`did you mean X?` for a name that does not exist; empty if none is near."""
    found = nearest(name[:_LONGEST])
    return f"did you mean {' or '.join(found)}?" if found else ""
