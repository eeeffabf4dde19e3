"""Weir as it is installed: its wheel, built from the checkout and unpacked into a folder."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGES = ("learner_jax", "serving_bridge", "rewards", "configs", "tools")


def build_wheel(folder: Path) -> Path:
    """The wheel of the checkout, made in `folder`."""
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, source / name)
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, folder], cwd=source, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("weir-*.whl"))


@functools.cache
def installed() -> Path:
    """A folder for PYTHONPATH that holds Weir and its metadata: one for all tests of this process, to read only."""
    folder = Path(tempfile.mkdtemp(prefix="weir-installed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    site = folder / "site"
    with zipfile.ZipFile(build_wheel(folder)) as wheel:
        wheel.extractall(site)
    return site
