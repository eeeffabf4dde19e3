"""Control groups around sandboxes, of version 1 or 2, where this process may make them.

They bound memory and processes of a whole sandbox. Resource limits do without them: they bound each process, and the
answer's process makes no other.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

_NAME = "weir-code"
_ROOT = Path("/sys/fs/cgroup")
_REMOVALS = 500
_REMOVAL_PAUSE_S = 0.004


@dataclass(frozen=True)
class Group:
    """Folders of one sandbox's control groups; none where there are none."""

    folders: tuple[Path, ...]

    def take(self, process: int) -> None:
        """Puts a process inside; those that it starts from then on are inside as well."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(process))

    def remove(self) -> None:
        """After the last process has ended, whose end the kernel may take a moment for."""
        for folder in self.folders:
            for _ in range(_REMOVALS):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                if not folder.exists():
                    break
                time.sleep(_REMOVAL_PAUSE_S)


class ControlGroups:
    """Makes groups; `kind` says of which version, "" for none."""

    def __init__(self, memory_bytes: int, processes: int, root: Path = _ROOT) -> None:
        self._files, self._parents, self.kind = _choose(memory_bytes, processes, root)
        for parent in self._parents:
            _remove_stale(parent)

    def make(self) -> Group:
        """A group with its limits."""
        name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        folders = tuple(parent / name for parent in self._parents)
        for folder, files in zip(folders, self._files, strict=True):
            folder.mkdir()
            for file, value in files.items():
                # Limits of swap are only there where the kernel counts swap.
                with contextlib.suppress(FileNotFoundError, PermissionError) if "sw" in file else _nothing():
                    (folder / file).write_text(value)
        return Group(folders)


def _choose(memory_bytes: int, processes: int, root: Path) -> tuple[list[dict[str, str]], list[Path], str]:
    version_1 = [
        (
            root / "memory",
            {
                "memory.limit_in_bytes": str(memory_bytes),
                "memory.memsw.limit_in_bytes": str(memory_bytes),
                "memory.swappiness": "0",
            },
        ),
        (root / "pids", {"pids.max": str(processes)}),
    ]
    version_2 = [
        (root, {"memory.max": str(memory_bytes), "memory.swap.max": "0", "pids.max": str(processes)}),
    ]
    for kind, hierarchies in (("v1", version_1), ("v2", version_2)):
        parents = [parent / _NAME for parent, _ in hierarchies]
        files = [limits for _, limits in hierarchies]
        if all(_usable(parent, limits, kind) for parent, limits in zip(parents, files, strict=True)):
            return files, parents, kind
    return [], [], ""


def _usable(parent: Path, limits: dict[str, str], kind: str) -> bool:
    """Whether a group below `parent` can be made and limited; makes `parent`."""
    if not (parent.parent / "cgroup.procs").exists():
        return False
    trial = parent / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    try:
        parent.mkdir(mode=0o755, exist_ok=True)
        if kind == "v2":
            (parent / "cgroup.subtree_control").write_text("+memory +pids")
        trial.mkdir()
        needed = [file for file in limits if "sw" not in file]
        for file in needed:
            (trial / file).write_text(limits[file])
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            trial.rmdir()
    return True


def _remove_stale(parent: Path) -> None:
    """Groups of processes that were killed."""
    for folder in parent.iterdir():
        owner = folder.name.partition("-")[0]
        if folder.is_dir() and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
