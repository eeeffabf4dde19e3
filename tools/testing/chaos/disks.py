"""Small file systems of their own for the folders of a job, so that a disk can be full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

#: of each, by the name that faults know it by: folder in the run, and size, several times what a job needs there
_DISKS = {"database": "32m", "weights": "8m", "checkpoints": "16m"}


@contextmanager
def small_disks(run: Path) -> Iterator[Mapping[str, Path]]:
    """Mounts them; gives none of them where that is not permitted."""
    mounted: dict[str, Path] = {}
    try:
        for name, size in _DISKS.items():
            folder = run / name
            folder.mkdir(parents=True, exist_ok=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "weir-chaos", str(folder)]
            try:
                done = subprocess.run(command, capture_output=True)
            except FileNotFoundError:
                break
            if done.returncode:
                break
            mounted[name] = folder
        yield mounted
    finally:
        for folder in mounted.values():
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
