"""The configurations that come with the package, by name."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

_SUFFIX = ".toml"


def shipped_configs() -> dict[str, Traversable]:
    """Name, such as "demo", -> file; in order of names."""
    files = (file for file in resources.files("configs").iterdir() if file.name.endswith(_SUFFIX))
    return {file.name.removesuffix(_SUFFIX): file for file in sorted(files, key=lambda file: file.name)}
