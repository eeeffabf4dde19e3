"""Node with a package from npm, for tests of other languages' clients; where there is none the test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from learner_jax.runtime import cache_folder

_INSTALL_S = 120


@dataclass(frozen=True)
class Node:
    """Node's program, and a folder in which the package can be imported."""

    node: str
    folder: Path


def node_command(package: str) -> Node:
    """Node and a package, e.g. openai@7; it is downloaded once, where it is not there yet."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node is not installed")
    folder = cache_folder(os.environ) / "node" / package
    if not (folder / "node_modules").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), package]
        done = subprocess.run(command, capture_output=True, timeout=_INSTALL_S, check=False)
        if done.returncode:
            pytest.skip(f"npm can't download {package}")
    return Node(node, folder)
