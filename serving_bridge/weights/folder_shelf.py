"""A weight store's files in a folder, local or of a network: durable by fsync, whole by rename, never through links."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from learner_jax.contracts import WeightFile
from learner_jax.runtime import (
    FOLDER_MODE,
    PlainFileError,
    is_folder,
    is_regular,
    make_folder,
    read_plain,
    sync_path,
    write_durably,
)
from serving_bridge.weights.files import Tensor, WeightIntegrityError, read_safetensors, verify_file, write_safetensors
from serving_bridge.weights.folders import folder_name, numbers, own_folder
from serving_bridge.weights.shelf import ANCHOR_MANIFEST_NAME, MANIFEST_NAME, MAX_REASON_BYTES, WANTED


class FolderShelf:
    """Implements `Shelf`. Layout: `root/v00000007/manifest.json`; a number is claimed by making its folder."""

    poll_s = 0.03

    def __init__(self, root: Path) -> None:
        self.root = root
        self._is_root_durable = False

    @property
    def address(self) -> str:
        return str(self.root.absolute())

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Nothing: a path says it all."""
        return {}

    def folder(self, version: int) -> Path:
        return self.root / folder_name(version)

    def place(self, version: int, name: str = "") -> str:
        return str(self.folder(version) / name)

    def claimed(self) -> list[int]:
        return numbers(self.root, lambda mode: True)

    def stored(self, *, recent: bool = False) -> list[int]:
        return [
            version for version in numbers(self.root, stat.S_ISDIR) if is_regular(self.folder(version) / MANIFEST_NAME)
        ]

    def claim(self, version: int) -> bool:
        make_folder(self.root)
        try:
            self.folder(version).mkdir(mode=FOLDER_MODE)
        except FileExistsError:
            return False
        sync_path(self.root)
        if not self._is_root_durable:  # it may be as new as what is in it
            sync_path(self.root.parent)
            self._is_root_durable = True
        return True

    def holds(self, version: int, name: str, *, recent: bool = False) -> bool:
        return is_regular(self.folder(version) / name)

    def read(self, version: int, name: str, *, max_bytes: int) -> bytes:
        folder = self.folder(version)
        try:
            return read_plain(self.root, name, inside=folder.name, max_bytes=max_bytes)
        except PlainFileError as error:
            raise WeightIntegrityError(f"{folder / name}: {error}") from error

    def open(self, version: int) -> None:
        own_folder(self.folder(version))

    def write_tensors(self, version: int, name: str, tensors: Mapping[str, Tensor]) -> WeightFile:
        return write_safetensors(self.folder(version) / name, tensors)

    def replace_tensors(self, version: int, name: str, tensors: Mapping[str, Tensor]) -> WeightFile:
        folder = self.folder(version)
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            written = write_safetensors(temporary, tensors)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return WeightFile(name, written.num_bytes, written.sha256)

    def write_last(self, version: int, name: str, content: bytes) -> None:
        write_durably(self.folder(version) / name, content)

    def read_tensors(self, version: int, file: WeightFile) -> dict[str, Tensor]:
        return read_safetensors(self.folder(version) / file.name, file)

    def verify(self, version: int, file: WeightFile) -> None:
        verify_file(self.folder(version) / file.name, file)

    def empty(self, version: int) -> None:
        with suppress(FileNotFoundError):  # of the folder
            for path in sorted(self.folder(version).iterdir(), key=lambda path: path.name != MANIFEST_NAME):
                path.unlink(missing_ok=True)

    def remove(self, version: int) -> None:
        folder = self.folder(version)
        if not is_folder(folder):
            folder.unlink(missing_ok=True)  # a link or file that took the number; what it names stays
            return
        for name in (MANIFEST_NAME, ANCHOR_MANIFEST_NAME):
            (folder / name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            sync_path(folder)
        shutil.rmtree(folder, onerror=_unless_shared)

    def want(self, version: int, reason: bytes) -> None:
        folder = self.root / WANTED
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        write_durably(own_folder(folder) / folder_name(version), reason)

    def wanted(self) -> list[int]:
        return numbers(self.root / WANTED, stat.S_ISREG)

    def take_wanted(self, version: int) -> bytes | None:
        path = self.root / WANTED / folder_name(version)
        try:
            reason = read_plain(self.root, path.name, inside=WANTED, max_bytes=MAX_REASON_BYTES)
        except FileNotFoundError:
            return None
        except PlainFileError as error:
            reason = str(error).encode()
        path.unlink(missing_ok=True)
        return reason


def _unless_shared(function: object, path: str, problem: tuple[type[BaseException], BaseException, object]) -> None:
    """Another fleet may remove the same folder, and a late learner may still write there: the next turn has it gone."""
    error = problem[1]
    if not (isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTEMPTY)):
        raise error
