"""Settings from the command line: `section.key=value`, where text needs no quotes and the rest is TOML."""

from __future__ import annotations

import re
import tomllib
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from configs.errors import ConfigError
from configs.schema import Config
from configs.text import quoted, shown

#: As a value: what the file says of this table, or value, does not count.
REMOVED = "none"
#: In text without quotes. Others, such as a tab, need them: \times and \text are meant as they stand more often.
_ESCAPES = {"\\n": "\n", "\\\\": "\\", '\\"': '"'}


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Puts one `section.key=value` into a tree of plain values; `section.key=none` takes a table, or value, out of it.

    Raises:
      ConfigError: it has another form, a part of the key is a value, or the text has an unknown escape.
    """
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"override {quoted(override)} is not understood; expected section.key=value")
    name, annotation = shown(".".join(parts)), _annotation(parts)
    removes = text.strip() == REMOVED and annotation is not None and _is_removable(annotation)
    value = None if removes else _text(name, text) if _is_text(annotation) else _value(name, text)
    for part in parts[:-1]:
        tree = tree.get(part, {}) if removes else tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override of {name}: {part!r} is a value, not a table")
    if removes:
        tree.pop(parts[-1], None)
    else:
        tree[parts[-1]] = value


def _text(name: str, text: str) -> str:
    """A TOML string where it is one, else the text as it stands."""
    if text.strip()[:1] in ("'", '"'):
        value = _toml(name, text)
        if isinstance(value, str):
            return value
    return _unquoted(name, text)


def _value(name: str, text: str) -> Any:
    """Any TOML value, else the text as it stands."""
    value = _toml(name, text)
    return _unquoted(name, text) if value is None else value


def _toml(name: str, text: str) -> Any:
    """The value of a TOML expression; None if it is none."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise ConfigError(f"override of {name} is nested too deeply") from None
    except ValueError:
        return None
    if len(tree) > 1:
        raise ConfigError(f"override of {name} holds several settings; give each with a --set of its own")
    return tree["value"]


def _unquoted(name: str, text: str) -> str:
    def unescaped(match: re.Match[str]) -> str:
        if (character := _ESCAPES.get(match[0])) is None:
            raise ConfigError(
                rf"override of {name}: {shown(match[0])} is not understood; write \n for a new line and \\ for a "
                rf"""backslash, or a TOML string in quotes of its own, such as 'key="a\tb"'"""
            )
        return character

    return re.sub(r"\\.?", unescaped, text, flags=re.DOTALL)


def _annotation(parts: list[str]) -> Any:
    """The type of the setting with this key; None where the schema has no such key, or takes any value."""
    model: Any = Config
    for part in parts[:-1]:
        model = model_of(model.model_fields[part].annotation) if part in model.model_fields else None
        if model is None:
            return None
    field = model.model_fields.get(parts[-1])
    return None if field is None else field.annotation


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The table that a field holds, also one that may be absent; None if it holds a value, or a list of tables."""
    if get_origin(annotation) is tuple:
        return None
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def item_of(annotation: Any) -> type[BaseModel] | None:
    """The table that a list of tables has for each item; None if the field holds something else."""
    return model_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def _is_removable(annotation: Any) -> bool:
    """Whether a setting is a table, or may be absent; to any other of text `none` is text."""
    return model_of(annotation) is not None or get_origin(annotation) is dict or NoneType in get_args(annotation)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    if get_origin(annotation) is dict:
        return False
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return annotation is str or (bool(parts) and all(_is_text(part) for part in parts))
