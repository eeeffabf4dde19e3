"""Files beside the weights (config, tokenizer, settings, reports), kept once each under the sha256 of their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from learner_jax.runtime import PlainFileError, make_folder, read_plain, sync_path, write_durably
from serving_bridge.registry.entry import RegisteredFile
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError
from serving_bridge.storage import FsspecObjects, StorageTimeouts, is_url

#: A tokenizer of a big vocabulary takes some tens of MB; nothing that is kept here comes near this.
MAX_FILE_BYTES = 2**28
#: What of a model folder is no weight and is needed to serve it, or to train it further.
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".toml")
_NEVER = frozenset({"model.safetensors.index.json"})


class _Folder:
    """Files in a folder; one appears whole or not at all."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, sha256: str) -> str:
        return str(self._root / sha256[:2] / sha256)

    def write(self, sha256: str, content: bytes) -> None:
        folder = self._root / sha256[:2]
        make_folder(self._root)
        make_folder(folder)
        write_durably(folder / sha256, content)
        sync_path(self._root)

    def read(self, sha256: str) -> bytes:
        """Raises `FileNotFoundError`, and `PlainFileError` for what is no regular file of a size that may be."""
        return read_plain(self._root, sha256, inside=sha256[:2], max_bytes=MAX_FILE_BYTES)


class _Objects:
    """As `_Folder`, in object storage."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._objects = FsspecObjects(url, timeouts=StorageTimeouts(give_up_s=timeout_s))

    def place(self, sha256: str) -> str:
        return f"{self._objects.url}/{sha256[:2]}/{sha256}"

    def write(self, sha256: str, content: bytes) -> None:
        self._objects.put(f"{sha256[:2]}/{sha256}", content)

    def read(self, sha256: str) -> bytes:
        try:
            return self._objects.get(f"{sha256[:2]}/{sha256}", max_bytes=MAX_FILE_BYTES)
        except ValueError as error:
            raise PlainFileError(str(error)) from error


class KeptFiles:
    """Files as `<first two digits>/<sha256>` below a folder or a URL of object storage; they never change.

    Args:
      timeout_s: seconds for which a request to object storage that fails is tried again.

    Raises:
      StorageSetupError: the URL names nothing that can be opened here.
    """

    def __init__(self, root: str | Path, *, timeout_s: float = 60.0) -> None:
        self._place = _Objects(str(root), timeout_s) if is_url(root) else _Folder(Path(root))

    def keep(self, name: str, content: bytes) -> RegisteredFile:
        """Keeps a content, durably."""
        sha256 = hashlib.sha256(content).hexdigest()
        file = RegisteredFile(name, len(content), sha256)
        if not self._is_whole(file):
            self._place.write(sha256, content)
        return file

    def read(self, file: RegisteredFile) -> bytes:
        """Raises `RegistryIntegrityError` unless the content is there as it was registered; names the file."""
        path = self._place.place(file.sha256)
        try:
            content = self._place.read(file.sha256)
        except FileNotFoundError:
            raise RegistryIntegrityError(f"{file.name} ({path}) is missing, expected {file.num_bytes} bytes") from None
        except PlainFileError as error:
            raise RegistryIntegrityError(f"{file.name}: {path}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != file.sha256:
            raise RegistryIntegrityError(f"{file.name} ({path}) has sha256 {found}, expected {file.sha256}")
        return content

    def _is_whole(self, file: RegisteredFile) -> bool:
        try:
            self.read(file)
        except RegistryIntegrityError:
            return False
        return True


def model_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files of a model folder that are no weights; links are followed, as in a hub's cache.

    Raises:
      RegistryError: one can't be read, or is too large.
    """
    found: dict[str, bytes] = {}
    try:
        names = sorted(os.listdir(folder))
        for name in names:
            path = folder / name
            if name in _NEVER or not name.endswith(_SUFFIXES) or name.startswith(".") or not path.is_file():
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                raise RegistryError(f"{path} has {path.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}")
            found[name] = path.read_bytes()
    except OSError as error:
        raise RegistryError(f"{folder} can't be read as a model folder: {error}") from error
    if "config.json" not in found:
        raise RegistryError(f"{folder} has no config.json: expected the folder of a model in Hugging Face's layout")
    return found


def tokenizer_sha256(files: Mapping[str, bytes]) -> str:
    """Identity of the tokenizer of a model folder, "" where it has none."""
    content = files.get("tokenizer.json")
    return hashlib.sha256(content).hexdigest() if content is not None else ""
