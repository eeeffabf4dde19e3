"""A disk that forgets: what was not synced, content and names alike, may be gone after a power failure.

Files are real ones, in memory where the machine has such a folder. A sync records what then survives: a file's content,
or a folder's list of names. A power failure brings that back; of what came later it keeps any part (Pillai et al., "All
File Systems Are Not Created Equal", OSDI 2014, call these states reachable).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

#: name -> content of a file, or the same of a folder
_Tree: TypeAlias = "dict[str, bytes | _Tree]"
_RENAMES = ("rename", "replace")
#: how likely something that was not synced is there all the same
_KEPT = 0.3


class Effect(NamedTuple):
    """What a process does to the disk, or has just done.

    Attributes:
      kind: "sync", "rename", "unlink", "mkdir" or "link".
      path: the file or folder; of a rename its new name, and `source` the old one.
      done: whether it has happened.
    """

    kind: str
    path: Path
    source: Path | None
    done: bool


class _Entry(NamedTuple):
    number: int
    is_folder: bool


class Disk:
    """What is below one folder, and what of it is on the disk.

    Args:
      on_effect: told of each effect before and after; may raise, which before means that it does not happen.
    """

    def __init__(self, root: Path, on_effect: Callable[[Effect], None]) -> None:
        self.root, self._on_effect = root, on_effect
        self._prefix = f"{root}{os.sep}"
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, _Entry]] = {}
        self.settle()

    def settle(self) -> None:
        """Everything that is there now is on the disk."""
        self._content.clear()
        self._names.clear()
        for base, _, files in os.walk(self.root):
            self._names[os.stat(base).st_ino] = _listing(base)
            for name in files:
                path = Path(base, name)
                self._content[path.stat().st_ino] = path.read_bytes()

    def survives(self, path: Path) -> bool:
        """Whether a power failure now would leave this file as it is, or this folder under its name."""
        folder = self.root
        try:
            for part in path.relative_to(self.root).parts:
                entry = self._names.get(folder.stat().st_ino, {}).get(part)
                folder = folder / part
                number = folder.stat().st_ino
                if entry is None or entry.number != number:
                    return False
            return folder.is_dir() or self.holds_content(folder)
        except FileNotFoundError:
            return False

    def holds_content(self, path: Path) -> bool:
        """Whether a file's content is on the disk, whatever its name is there."""
        return self._content.get(path.stat().st_ino) == path.read_bytes()

    def fail(self, draws: random.Random) -> None:
        """The power fails: what was synced is left, and of the rest anything or nothing."""
        paths = {os.stat(base).st_ino: Path(base) for base, _, _ in os.walk(self.root)}
        files = {entry.number: paths[n] / name for n in paths for name, entry in _listing(paths[n]).items()}
        tree = self._left(os.stat(self.root).st_ino, paths, files, draws)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _write(self.root, tree)
        self.settle()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, what Python code does to files below the root is seen."""
        replaced: dict[str, Any] = {"fsync": self._fsync(os.fsync)}
        replaced |= {name: self._named("rename", getattr(os, name)) for name in _RENAMES}
        replaced |= {name: self._named(name, getattr(os, name)) for name in ("unlink", "mkdir", "link")}
        with mock.patch.multiple(os, **replaced):
            yield

    def _left(
        self, number: int, folders: dict[int, Path], files: dict[int, Path], draws: random.Random
    ) -> dict[str, bytes | _Tree]:
        synced = self._names.get(number, {})
        now = _listing(folders[number]) if number in folders else {}
        tree: dict[str, bytes | _Tree] = {}
        for name in sorted(synced.keys() | now.keys()):
            old, new = synced.get(name), now.get(name)
            entry = new if old == new or draws.random() < _KEPT else old
            if entry is None:
                continue
            if entry.is_folder:
                tree[name] = self._left(entry.number, folders, files, draws)
            else:
                tree[name] = self._left_of_file(entry.number, files, draws)
        return tree

    def _left_of_file(self, number: int, files: dict[int, Path], draws: random.Random) -> bytes:
        synced = self._content.get(number, b"")
        now = files[number].read_bytes() if number in files else synced
        if now == synced:
            return synced
        return draws.choice((synced, synced, now[: len(now) // 2], now))

    def _fsync(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        def fsync(descriptor: Any) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if not path.startswith(self._prefix) and path != str(self.root):
                real(descriptor)
                return
            due = Effect("sync", Path(path), None, done=False)
            self._on_effect(due)
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self._names[found.st_ino] = _listing(descriptor)
            else:
                with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                    self._content[found.st_ino] = file.read()
            self._on_effect(due._replace(done=True))

        return fsync

    def _named(self, kind: str, real: Callable[..., None]) -> Callable[..., None]:
        def change(path: Any, *arguments: Any, **options: Any) -> None:
            target = os.fspath(arguments[0] if kind in ("rename", "link") else path)
            if not (isinstance(target, str) and (target.startswith(self._prefix) or "dir_fd" in options)):
                real(path, *arguments, **options)
                return
            source = Path(os.fspath(path)) if kind in ("rename", "link") else None
            due = Effect(kind, Path(target), source, done=False)
            self._on_effect(due)
            real(path, *arguments, **options)
            self._on_effect(due._replace(done=True))

        return change


def _listing(folder: Any) -> dict[str, _Entry]:
    with os.scandir(folder) as entries:
        return {entry.name: _Entry(entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries}


def _write(folder: Path, tree: dict[str, bytes | _Tree]) -> None:
    for name, what in tree.items():
        if isinstance(what, dict):
            (folder / name).mkdir(mode=0o700)
            _write(folder / name, what)
        else:
            (folder / name).write_bytes(what)
