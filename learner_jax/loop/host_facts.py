"""What must be the same on all hosts of a learner, in a form that can be compared and shown."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from learner_jax.runtime import this_code

_DISTRIBUTIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_dtypes")
#: Of JAX's variables, those that differ between hosts by their nature.
_PER_HOST = ("JAX_COORDINATOR", "JAX_PROCESS", "JAX_LOCAL", "JAX_COMPILATION_CACHE", "JAX_DUMP")
_OTHERS = (".md", ".png", ".pdf")
_READ_WHOLE_BYTES = 16 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


def code_facts(
    packages: Iterable[str] = ("learner_jax", "serving_bridge", "rewards", "configs", "tools"),
) -> dict[str, str]:
    """Versions, commit and a hash of the sources: hosts with other code compute something else."""
    root = Path(__file__).resolve().parents[2]
    code = this_code()
    sources = hashlib.sha256()
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        sources.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    facts = {"weir": code.version, "sources": sources.hexdigest()[:16], "python": platform.python_version()}
    if code.commit:
        facts["commit"] = code.commit
    for name in _DISTRIBUTIONS:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def environment_facts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that change what JAX computes, or on what."""
    return {
        name: value for name, value in environment.items() if name.startswith("JAX_") and not name.startswith(_PER_HOST)
    }


def flat(tree: Mapping[str, Any], *, without: Iterable[str] = (), prefix: str = "") -> dict[str, str]:
    """Nested settings as `{"section.key": JSON}`, without the keys named in full."""
    facts: dict[str, str] = {}
    left_out = set(without)
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in left_out:
            continue
        if isinstance(value, Mapping):
            facts |= flat(value, without=left_out, prefix=f"{name}.")
        else:
            facts[name] = json.dumps(value, default=str)
    return facts


def folder_facts(folder: Path) -> dict[str, str]:
    """Size and hash of each file of a model folder or checkpoint; large files are sampled, to take seconds at most.

    Hidden files and those of no model's, such as a README, are left out.

    Raises:
      OSError: a file can't be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): _file_fact(path)
        for path in paths
        if path.suffix not in _OTHERS and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _file_fact(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _READ_WHOLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"{size} bytes, {digest.hexdigest()[:16]}"
