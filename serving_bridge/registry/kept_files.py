"""Files beside the weights (config, tokenizer, settings, reports), kept once each under the sha256 of their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from learner_jax.runtime import PlainFileError, make_folder, read_plain, sync_path, write_durably
from serving_bridge.registry.entry import RegisteredFile
from serving_bridge.registry.errors import RegistryError, RegistryIntegrityError

#: A tokenizer of a big vocabulary takes some tens of MB; nothing that is kept here comes near this.
MAX_FILE_BYTES = 2**28
#: What of a model folder is no weight and is needed to serve it, or to train it further.
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".toml")
_NEVER = frozenset({"model.safetensors.index.json"})


class KeptFiles:
    """A folder `files/<first two digits>/<sha256>`; a file appears whole or not at all, and never changes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, name: str, content: bytes) -> RegisteredFile:
        """Keeps a content, durably."""
        sha256 = hashlib.sha256(content).hexdigest()
        folder = self._root / sha256[:2]
        path = folder / sha256
        file = RegisteredFile(name, len(content), sha256)
        if not self._is_whole(file):
            make_folder(self._root)
            make_folder(folder)
            write_durably(path, content)
            sync_path(self._root)
        return file

    def read(self, file: RegisteredFile) -> bytes:
        """Raises `RegistryIntegrityError` unless the content is there as it was registered; names the file."""
        path = self._root / file.sha256[:2] / file.sha256
        try:
            content = read_plain(self._root, path.name, inside=path.parent.name, max_bytes=MAX_FILE_BYTES)
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
