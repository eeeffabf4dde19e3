"""Folders for the sockets and temporary files of a server: of this user only, gone when it is, however it ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from learner_jax.runtime import WeirError

#: of these folders alone: one that is empty may be swept, and Weir's other temporary folders are empty at first
PREFIX = "weir-server-"
#: says that a folder is one of ours: other programs may name theirs alike
_MARK = "private-folder-of-weir"
#: names that vLLM gives its sockets, and the bytes that Linux has for a socket's whole path
_NAME_CHARACTERS, _PATH_BYTES = 36, 107
_TRIES = 10


class PrivateFolderError(WeirError, RuntimeError):
    """No such folder can be made; says which variable to set."""


class PrivateFolder:
    """A new folder, mode 0700, marked as in use for as long as a process holds `lock`.

    Attributes:
      lock: descriptor to hand on to the process that removes the folder in the end.
    """

    def __init__(self, base: Path) -> None:
        """Removes folders in `base` that nobody uses any more, and makes one. Raises `PrivateFolderError`."""
        try:
            sweep(base)
            self.path, self.lock = _locked_folder(base)
        except OSError as error:
            raise PrivateFolderError(f"no folder can be made in {base}: {error}; set TMPDIR to one") from error
        if len(os.fsencode(self.path)) + 1 + _NAME_CHARACTERS > _PATH_BYTES:
            self.remove()
            self.close()
            raise PrivateFolderError(
                f"{base} has too long a path for sockets ({_PATH_BYTES} bytes with their names): set "
                f"VLLM_RPC_BASE_PATH to a shorter one"
            )

    def close(self) -> None:
        """Leaves the folder to whoever else holds the lock."""
        os.close(self.lock)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def base_folder(environment: Mapping[str, str]) -> Path:
    """Where a user wants sockets: VLLM_RPC_BASE_PATH, else the folder for temporary files."""
    return Path(environment.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir())


def sweep(base: Path) -> None:
    """Removes this user's folders whose processes are gone."""
    for path in base.glob(f"{PREFIX}*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # no folder, or of somebody else
        try:
            found = os.fstat(fd)
            if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700 and _is_ours(fd):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def _is_ours(folder: int) -> bool:
    names = os.listdir(folder)
    return not names or _MARK in names


def _locked_folder(base: Path) -> tuple[Path, int]:
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            os.close(os.open(_MARK, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=fd))
            return path, fd
        except FileNotFoundError:
            os.close(fd)  # swept by another process before it was locked
    raise FileNotFoundError(f"{PREFIX}* vanishes as soon as it is made")
