"""Python modules as processes: nothing in the working folder stands in for a package of Weir or of its libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

#: The folder that Weir's packages lie in.
_ROOT = Path(__file__).resolve().parents[2]
_PATH = "PYTHONPATH"


def python_module(name: str) -> list[str]:
    """The beginning of a command line that runs a module with this Python, without the working folder in its path.

    Give the process the environment of `with_own_packages`: a checkout need not be installed.
    """
    return [sys.executable, "-P", "-m", name]


def with_own_packages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which a checkout's packages are found before any others; as it is where Weir is installed."""
    if not (_ROOT / "pyproject.toml").is_file():
        return dict(environment)
    root = str(_ROOT)
    others = [path for path in environment.get(_PATH, "").split(os.pathsep) if path and path != root]
    return {**environment, _PATH: os.pathsep.join([root, *others])}
