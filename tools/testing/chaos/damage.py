"""Damages files of a run as disks and people do: a flipped bit, a torn end."""

from __future__ import annotations

import random
import re
from pathlib import Path

from learner_jax.checkpoints import HASHES
from tools.assembly import RunPaths


def damage(path: Path, how: str, draws: random.Random) -> None:
    """Flips a bit of a file, or cuts it off in the middle."""
    data = bytearray(path.read_bytes())
    if how == "tear":
        data = data[: len(data) // 2]
    elif data:
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)


def newest_file(paths: RunPaths, what: str) -> Path | None:
    """A file of the newest version in the weight store, or a replica's row in the registry."""
    if what == "registry":
        return next(iter(sorted(paths.registry.glob("*.json"))), None)
    for folder in sorted(Path(paths.weights).glob("v*"), reverse=True):
        if (manifest := folder / "manifest.json").exists():
            return manifest if what == "manifest" else next(iter(sorted(folder.glob("*.safetensors"))), None)
    return None


def newest_hashed(checkpoints: Path) -> int:
    """Step of the newest checkpoint if it has hashes and another one is before it; else 0."""
    steps = sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())
    return steps[-1] if len(steps) > 1 and (checkpoints / str(steps[-1]) / HASHES).exists() else 0


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def refusal(log: str, folder: Path) -> str | None:
    """The line of the learner's log in which it refuses a checkpoint."""
    return next((line for line in log.splitlines() if f"checkpoint {folder} is damaged" in line), None)


def way_back(text: str) -> tuple[int, str | None]:
    """Step to go on from, and the command that makes the learner do so, as its refusal says."""
    found = re.search(r"can be used is \S+/(\d+), which is .* run (mv .*), then start the run again", text)
    return (int(found[1]), found[2]) if found else (0, None)
