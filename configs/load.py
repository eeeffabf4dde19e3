"""Reads a run's TOML file, applies command-line overrides and checks the result against the schema."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from configs.errors import ConfigError as ConfigError
from configs.names import did_you_mean
from configs.overrides import apply_override, item_of, model_of
from configs.paths import base_of, make_absolute, make_portable, not_in_storage
from configs.schema import Config
from configs.shipped import shipped_config, shipped_configs
from configs.text import quoted, shown, unusable
from learner_jax.runtime import SHARED_MODE, write_whole


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a configuration.

    Args:
      path: TOML file, or the name of a configuration that comes with Weir, such as "demo". Relative paths in it start
        from the working folder, those in a run's own config.toml from that file's folder.
      overrides: `section.key=value` strings. The value of a text setting is taken as it stands (with \\n for a new
        line and \\\\ for a backslash) or is a TOML string; that of any other setting is TOML, or `none`, which removes
        a table, or a value that need not be set.

    Raises:
      ConfigError: the file can't be read or is not TOML, a key is unknown, or a value is of a wrong type or out of
        range, or can't go with another one.
    """
    tree = _read(path)
    make_absolute(tree, base_of(tree, Path(path)))
    for override in overrides:
        apply_override(tree, override)
    make_absolute(tree, Path.cwd())
    return parse_config(tree, origin=str(path))


def load_past_config(path: str | Path) -> Config:
    """The configuration of a run that is only read: keys that this build does not know are left out, with a warning.

    Raises:
      ConfigError: as of `load_config`, for everything but unknown keys.
    """
    tree = _read(path)
    make_absolute(tree, base_of(tree, Path(path)))
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        for location in unknown:
            _remove(tree, location)
        if unknown:
            names = ", ".join(".".join(shown(part) for part in location) for location in unknown)
            print(f"warning: {path}: left out what this build does not know: {names}", file=sys.stderr)
    return parse_config(tree, origin=str(path))


def _remove(tree: Any, location: tuple[Any, ...]) -> None:
    for part in location[:-1]:
        tree = tree[part]
    del tree[location[-1]]


def parse_config(tree: dict[str, Any], *, origin: str) -> Config:
    """Checks a tree of plain values against the schema; `origin` names it in errors."""
    if problems := [*unusable(tree), *not_in_storage(tree)]:
        raise ConfigError(f"{origin}: {'; '.join(problems)}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration whole, every default included, as TOML that `load_config` reads.

    In the run's own directory paths inside it are written relative to it, so that the directory can be moved.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    make_portable(tree, Path(path).absolute().parent)
    write_whole(Path(path), tomli_w.dumps(tree), mode=SHARED_MODE)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads((shipped_config(path) or Path(path)).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        names = ", ".join(shipped_configs())
        raise ConfigError(f"config file {path} does not exist; those that come with Weir are {names}") from None
    except OSError as error:
        raise ConfigError(f"config file {path} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # TOML's own, and those of numbers that are too long
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


#: pydantic's words for what TOML calls otherwise
_IN_TOML = {"tuple_type": "Input should be an array", "dict_type": "Input should be a table"}
_IN_TOML["model_type"] = _IN_TOML["dict_type"]


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        kind = problem["type"]
        key = ".".join(shown(part) for part in problem["loc"]) or "(whole file)"
        message = _IN_TOML.get(kind, problem["msg"].removeprefix("Value error, "))
        if kind == "extra_forbidden":
            name = ".".join(part for part in problem["loc"] if isinstance(part, str))
            meant, known = did_you_mean(name), _known_keys(problem["loc"])
            lines.append(f"{key}: unknown key; {f'{meant} {known[0].upper()}{known[1:]}' if meant else known}")
        elif kind in ("missing", "value_error"):
            lines.append(f"{key}: {message}")
        else:
            value = problem["input"]
            got = quoted(value) if isinstance(value, str) else shown(value)
            quotes = "; put text in quotes" if kind == "string_type" else ""
            lines.append(f"{key}: {message}, got {got}{quotes}{_meaning(problem['loc'])}")
    if sum(problem["type"] == "missing" and len(problem["loc"]) == 1 for problem in error.errors()) > 1:
        lines.append("a run's configuration has all of these tables: `weir new my-run` writes one, to put yours into")
    return "; ".join(lines)


def _meaning(location: tuple[Any, ...]) -> str:
    """What the setting means, in parentheses, where the schema says so."""
    table = _table(location)
    field = table.model_fields.get(location[-1]) if table is not None else None
    return f" ({field.description})" if field is not None and field.description else ""


def _known_keys(location: tuple[Any, ...]) -> str:
    table = _table(location)
    return "remove it" if table is None else f"known here: {', '.join(table.model_fields)}"


def _table(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The table that a key stands in; None if the schema has none there."""
    model: type[BaseModel] | None = Config
    inside: Any = None
    for part in location[:-1]:
        if isinstance(part, int):
            model = item_of(inside)
        else:
            field = model.model_fields.get(part) if model is not None else None
            inside = None if field is None else field.annotation
            model = model_of(inside)
    return model
