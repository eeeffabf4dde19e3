"""Which code runs: the version of the package, and the commit where it is a checkout."""

from __future__ import annotations

import importlib.metadata
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Code:
    """Version of Weir, and the commit that was checked out; None where that is not known."""

    version: str
    commit: str | None


@cache
def this_code() -> Code:
    """Version and commit of the code that runs; the commit is None where it is not a checkout, or git is missing."""
    root = Path(__file__).resolve().parents[2]
    try:
        version = importlib.metadata.version("weir")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    if not (root / ".git").exists():  # a checkout further up would be somebody else's
        return Code(version, None)
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return Code(version, None)
    return Code(version, done.stdout.strip() or None)
