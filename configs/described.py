"""Every setting of a run in words: name, type, default, range and meaning, read from the schema."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.names import is_named, own_fields
from configs.overrides import item_of, model_of
from configs.schema import Config

REQUIRED, NOT_SET = "required", "not set"
_LIST = "list of tables"
_WORDS: Mapping[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", dict: "table"}
_SEVERAL: Mapping[Any, str] = {int: "integers", float: "numbers", str: "texts"}


@dataclass(frozen=True)
class Setting:
    """One setting, or a table that may be absent.

    Attributes:
      name: dotted, as --set takes it.
      type: what TOML holds; choices are listed.
      default: as TOML writes it; `REQUIRED` where there is none, `NOT_SET` where it may be absent.
      range: what of that type is accepted; empty for all of it.
      meaning: the schema's description, unit included.
    """

    name: str
    type: str
    default: str
    range: str
    meaning: str

    @property
    def table(self) -> str:
        return self.name.rpartition(".")[0]


def settings() -> list[Setting]:
    """All settings, in the schema's order."""
    return list(_settings(Config, "", None))


def tables() -> dict[str, str]:
    """Dotted name -> the first sentence that the schema says of it, for every table, in order."""
    return dict(_tables(Config, ""))


def lists() -> set[str]:
    """Dotted names of the tables that may be given several times, as [[NAME]]."""
    return {setting.name for setting in settings() if setting.type == _LIST}


def _settings(model: type[BaseModel], prefix: str, given: BaseModel | None) -> Iterator[Setting]:
    """Those of one table; `given` holds their defaults where the table above has some of its own."""
    for key, field in model.model_fields.items():
        default = getattr(given, key) if given is not None else field.get_default(call_default_factory=True)
        name, table = f"{prefix}{key}", model_of(field.annotation)
        if table is None and (item := item_of(field.annotation)) is not None:
            yield Setting(name, _LIST, "[]", "", field.description or _sentence(item))
            own = tuple(f"{name}.{key}." for key in own_fields(item, model))
            yield from (found for found in _settings(item, f"{name}.", None) if f"{found.name}.".startswith(own))
            continue
        if table is None:
            rules = _range(field.annotation, field.metadata)
            yield Setting(name, type_text(field.annotation), _default(field, default), rules, field.description or "")
            continue
        if NoneType in get_args(field.annotation) or is_named(field):
            yield Setting(name, "table", _default(field, default), "", field.description or _sentence(table))
        name = f"{name}.NAME" if is_named(field) else name
        yield from _settings(table, f"{name}.", default if isinstance(default, BaseModel) else None)


def _tables(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for key, field in model.model_fields.items():
        if table := model_of(field.annotation):
            name = f"{prefix}{key}.NAME" if is_named(field) else f"{prefix}{key}"
            yield name, field.description or _sentence(table)
            yield from _tables(table, f"{name}.")
        elif item := item_of(field.annotation):
            yield f"{prefix}{key}", _sentence(item)


def _sentence(table: type[BaseModel]) -> str:
    """The first paragraph of the table's docstring."""
    return " ".join(inspect.cleandoc(table.__doc__ or "").partition("\n\n")[0].split())


def type_text(annotation: Any) -> str:
    """A type in words; that of a setting which may be absent is that of its value."""
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not NoneType]
    if origin is Annotated:
        return type_text(parts[0])
    if origin is Literal:
        return " | ".join(json.dumps(choice) for choice in parts)
    if origin in (Union, UnionType):
        return " or ".join(map(type_text, parts))
    if origin is tuple:
        item = get_args(parts[0])[0] if get_origin(parts[0]) is Annotated else parts[0]
        several = _SEVERAL.get(item, "values")
        return f"list of {several}" if parts[-1] is Ellipsis else f"list of {len(parts)} {several}"
    return _WORDS.get(origin or annotation, "value")


def _default(field: FieldInfo, default: Any) -> str:
    if field.is_required():
        return REQUIRED
    return NOT_SET if default is None else value_text(default)


def value_text(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(value_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _range(annotation: Any, metadata: Iterable[Any]) -> str:
    """The bounds of a value, and of each item of a list."""
    own = _bounds(metadata)
    for part in get_args(annotation):
        if get_origin(part) is Annotated:
            rules = [rule for found in get_args(part)[1:] for rule in getattr(found, "metadata", [found])]
            own = ", ".join(filter(None, (own, f"each {_bounds(rules)}")))
    return own


def _bounds(metadata: Iterable[Any]) -> str:
    found: dict[str, Any] = {}
    for rule in metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "allow_inf_nan"):
            if (value := getattr(rule, name, None)) is not None:
                found[name] = value
    words = []
    if "ge" in found and "le" in found:
        words.append(f"{_number(found.pop('ge'))} to {_number(found.pop('le'))}")
    for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if name in found:
            words.append(f"{word} {_number(found[name])}")
    if found.get("allow_inf_nan"):
        words.append("or inf")
    if "min_length" in found:
        words.append("not empty" if found["min_length"] == 1 else f"at least {found['min_length']} characters")
    if "max_length" in found:
        words.append(f"at most {found['max_length']} characters")
    if "pattern" in found:
        words.append(f"matches `{found['pattern']}`")
    return ", ".join(words)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"
