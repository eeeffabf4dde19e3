"""Paths in settings: one meaning for all, and run directories that can be copied, moved and renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from rewards.settings import names_file
from serving_bridge.database import MEMORY
from serving_bridge.storage import is_url

#: Settings that name a file or folder. `store.database` and `store.weights` may be URLs instead, sources of rows a
#: function, `model.path` a model of the hub.
PATH_SETTINGS = (
    "run.directory",
    "model.path",
    "task.path",
    "task.data",
    "task.validation_data",
    "task.heldout_data",
    "task.tools",
    "task.episode.embeddings",
    "supervised.data",
    "store.database",
    "store.blobs",
    "store.weights",
    "store.cache",
    "learner.loss.kl.reference",
    "serving.keys",
    "fallback.calibration",
    "fallback.embeddings",
    "fallback.previous_run",
    "registry.path",
    "registry.database",
    "registry.trusted_key",
)
#: The same in each of [[task.sources]].
SOURCE_PATHS = tuple(
    name.replace("task.", "task.sources.")
    for name in PATH_SETTINGS
    if name.startswith("task.") and not name.startswith("task.episode.")
)
#: Tables of paths, by names of the user's.
PATH_TABLES = ("task.episode.corpora", "fallback.corpora")
#: Settings that can't be a URL of object storage, and what would be kept there.
_FOLDERS_ONLY = {
    "run.directory": "a run's directory, with its checkpoints,",
    "model.path": "a model folder",
    "task.path": "a task's file",
    "store.cache": "a host's cache",
    "learner.loss.kl.reference": "a reference model",
    "serving.keys": "the key of a fleet",
    "registry.path": "a registry",
    "registry.trusted_key": "a key",
}
#: How the ready-made configurations mark what only their user knows.
_TO_BE_GIVEN = "give --set "
_HUB_MODEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96})@([A-Za-z0-9][A-Za-z0-9._/-]{0,199})")
_SQLITE = "sqlite:///"
_HERE = "."
_MAY_BE_FUNCTIONS = ("data", "validation_data", "heldout_data")


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub, by repository and branch, tag or commit."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def hub_model(text: str) -> HubModel | None:
    """What "organization/name@revision" names; None for a path, and for a folder that is called so."""
    match = _HUB_MODEL.fullmatch(text)
    return HubModel(match[1], match[2]) if match and not Path(text).exists() else None


def base_of(tree: dict[str, Any], path: Path) -> Path:
    """The folder that relative paths of a file start from: its own for a run's config.toml, else the working folder."""
    run = tree.get("run")
    is_runs_own = isinstance(run, dict) and run.get("directory") == _HERE
    return path.absolute().parent if is_runs_own else Path.cwd()


def make_absolute(tree: dict[str, Any], base: Path) -> None:
    """Makes every path in a tree of settings absolute, in place; `~` is the user's home.

    Raises:
      ConfigError: a path starts with `~NAME`, and nobody of that name is known.
    """
    for setting, table, key in _paths(tree):
        try:
            place = Path(table[key].removeprefix(_SQLITE)).expanduser()
        except RuntimeError:
            raise ConfigError(f"{setting}: {table[key]!r} names the home of a user who is not known here") from None
        table[key] = os.path.normpath(base / place)


def make_portable(tree: dict[str, Any], folder: Path) -> None:
    """Makes what lies in a run's directory relative to it, in place, for the config.toml there."""
    if tree["run"].get("directory") != str(folder):
        return
    for _, table, key in _paths(tree):
        place = Path(table[key])
        if place.is_relative_to(folder):
            table[key] = str(place.relative_to(folder))


def not_in_storage(tree: dict[str, Any]) -> Iterator[str]:
    """What is wrong with URLs in a tree of settings that must be paths."""
    for setting, why in _FOLDERS_ONLY.items():
        *tables, key = setting.split(".")
        for table in _tables(tree, tables):
            text = table.get(key)
            if isinstance(text, str) and is_url(text):
                hint = " (store.checkpoints copies checkpoints there)" if setting == "run.directory" else ""
                yield f"{setting}: {why} on {text.partition('://')[0]}:// is not supported: expected a path{hint}"


def _paths(tree: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(setting, table, key) of each path that is given."""
    for setting in (*PATH_SETTINGS, *SOURCE_PATHS):
        *tables, key = setting.split(".")
        for table in _tables(tree, tables):
            text = table.get(key)
            if setting == "model.path" and isinstance(text, str) and hub_model(text):
                continue
            may_be_function = key in _MAY_BE_FUNCTIONS
            if isinstance(text, str) and _is_path(text) and (not may_be_function or names_file(text)):
                yield setting, table, key
    for setting in PATH_TABLES:
        for table in _tables(tree, setting.split(".")):
            for key, text in table.items():
                if isinstance(text, str) and _is_path(text):
                    yield f"{setting}.{key}", table, key


def _tables(tree: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The table of this name, or every one where it is a list of tables."""
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from _tables(item, names)
    elif isinstance(tree, dict):
        if not names:
            yield tree
        elif names[0] in tree:
            yield from _tables(tree[names[0]], names[1:])


def _is_path(text: str) -> bool:
    if text in ("", MEMORY) or text.startswith(_TO_BE_GIVEN) or not text.isprintable():
        return False  # what can't be printed is refused by the schema's check, as it was given
    return "://" not in text or text.startswith(_SQLITE)
