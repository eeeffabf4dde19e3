"""The configurations that come with the package, by name."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

_SUFFIX = ".toml"


def shipped_configs() -> dict[str, Traversable]:
    """Name, such as "demo", -> file; in order of names."""
    files = (file for file in resources.files("configs").iterdir() if file.name.endswith(_SUFFIX))
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(files, key=lambda file: file.name)}


def shipped_config(path: str | Path) -> Traversable | None:
    """The file of a name such as "demo"; None if there is none, or the user has a file of that name."""
    return None if Path(path).is_file() else shipped_configs().get(str(path))
