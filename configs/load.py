"""Reads a run's TOML file, applies command-line overrides and checks the result against the schema."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from configs.schema import Config


class ConfigError(ValueError):
    """The configuration can't be used; every offending key is named with what was expected."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a configuration.

    Args:
      path: TOML file.
      overrides: `section.key=value` strings; the value is TOML, or a plain string where it isn't.

    Raises:
      ConfigError: the file is missing or not TOML, a key is unknown, or a value is of a wrong type or out of range.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist; the ready-made ones are in configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, origin=str(path))


def parse_config(tree: dict[str, Any], *, origin: str) -> Config:
    """Checks a tree of plain values against the schema; `origin` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration, every default included, as TOML that `load_config` reads."""
    Path(path).write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {override!r} is not understood; expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a table")
    tree[parts[-1]] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; {_known_keys(problem['loc'])}")
        elif problem["type"] in ("missing", "value_error"):
            lines.append(f"{key}: {message}")
        else:
            lines.append(f"{key}: {message}, got {problem['input']!r}")
    return "; ".join(lines)


def _known_keys(location: tuple[Any, ...]) -> str:
    model: Any = Config
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if hasattr(c, "model_fields")), None)
        if model is None:
            return "remove it"
    return f"known here: {', '.join(model.model_fields)}"
