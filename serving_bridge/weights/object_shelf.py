"""A weight store's files in object storage: each object appears at once, a manifest after the files that it names.

A number is claimed by an object that only one process can make. Files are written on this host first, hashed on the
way, then uploaded in pieces; replicas read them through a cache on their host. Lists may lag behind: a number that was
taken is refused when it is claimed again, and a version is read by name.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from learner_jax.contracts import WeightFile
from serving_bridge.storage import (
    ContentError,
    FileCache,
    FsspecObjects,
    ObjectStore,
    StorageError,
    StorageTimeouts,
    storage_variables,
)
from serving_bridge.weights.files import (
    StoreError,
    Tensor,
    WeightIntegrityError,
    check_file,
    read_safetensors,
    write_safetensors,
)
from serving_bridge.weights.folders import folder_name, number_of
from serving_bridge.weights.shelf import ANCHOR_MANIFEST_NAME, MANIFEST_NAME, MAX_REASON_BYTES, WANTED, ShelfOptions

_CLAIM = "claim"
_PIECE = 16 << 20


class ObjectShelf:
    """Implements `Shelf`; keys are `v00000007/manifest.json`, below the store's URL.

    Args:
      objects: by default those of the URL.

    Raises:
      StorageSetupError: the URL names nothing that can be opened here.
    """

    poll_s = 1.0  # each look is a request that costs money

    def __init__(self, url: str, options: ShelfOptions, *, objects: ObjectStore | None = None) -> None:
        self._objects = objects or FsspecObjects(url, timeouts=StorageTimeouts(give_up_s=options.timeout_s))
        self._options = options
        self._cache = FileCache(options.cache_folder, max_bytes=options.cache_bytes)
        self._of_others: set[int] = set()  # published by another process under a number that was ours
        self._seen: Mapping[str, int] | None = None

    @property
    def address(self) -> str:
        return self._objects.url

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        return storage_variables(environment) | self._options.variables()

    def place(self, version: int, name: str = "") -> str:
        return f"{self._objects.url}/{folder_name(version)}/{name}"

    def claimed(self) -> list[int]:
        found = (number_of(key.partition("/")[0]) for key in self._look())
        return sorted({version for version in found if version is not None})

    def stored(self, *, recent: bool = False) -> list[int]:
        keys = self._look(recent=recent)
        return sorted(version for version, name in map(_split, keys) if version is not None and name == MANIFEST_NAME)

    def claim(self, version: int) -> bool:
        holder = f"{socket.gethostname()} {secrets.token_hex(16)}"
        return self._objects.put_new(_key(version, _CLAIM), holder.encode())

    def holds(self, version: int, name: str, *, recent: bool = False) -> bool:
        if recent:
            return _key(version, name) in self._look(recent=True)
        return self._objects.size(_key(version, name)) is not None

    def read(self, version: int, name: str, *, max_bytes: int) -> bytes:
        try:
            return self._objects.get(_key(version, name), max_bytes=max_bytes)
        except ValueError as error:
            raise WeightIntegrityError(str(error)) from error

    def open(self, version: int) -> None:
        """Nothing to look at: a key can't lead elsewhere."""

    def write_tensors(self, version: int, name: str, tensors: Mapping[str, Tensor]) -> WeightFile:
        num_bytes = sum(tensor.words.nbytes for tensor in tensors.values())
        with self._local_space(num_bytes), self._cache.writing(num_bytes) as partial:
            written = write_safetensors(partial, tensors, sync=False)
            self._objects.put_file(_key(version, name), partial)
            self._cache.keep(partial, written.sha256)
        return WeightFile(name, written.num_bytes, written.sha256)

    def replace_tensors(self, version: int, name: str, tensors: Mapping[str, Tensor]) -> WeightFile:
        return self.write_tensors(version, name, tensors)

    def write_last(self, version: int, name: str, content: bytes) -> None:
        if name != MANIFEST_NAME:  # of an anchor, which may be made again
            self._objects.put(_key(version, name), content)
        elif not self._objects.put_new(_key(version, name), content):
            self._of_others.add(version)
            raise StoreError(
                f"{self.place(version, name)} is there already: another process publishes to {self.address}; end one "
                f"of them, or set store.weights of its run to another place"
            )

    def read_tensors(self, version: int, file: WeightFile) -> dict[str, Tensor]:
        for is_last in (False, True):
            with self._local_space(file.num_bytes):
                path = self._fetch(version, file)
            try:
                return read_safetensors(path, file)
            except WeightIntegrityError as error:  # here, or on the way here; the second time where it is kept
                self._cache.drop(file.sha256)
                if is_last:
                    raise WeightIntegrityError(f"{self.place(version, file.name)}, fetched twice: {error}") from error
        raise AssertionError("unreachable")

    def _fetch(self, version: int, file: WeightFile) -> Path:
        place = self.place(version, file.name)
        try:
            return self._cache.fetch(
                self._objects, _key(version, file.name), sha256=file.sha256, num_bytes=file.num_bytes
            )
        except FileNotFoundError:
            raise WeightIntegrityError(f"{place} is missing, expected {file.num_bytes} bytes") from None
        except (ContentError, ValueError) as error:
            raise WeightIntegrityError(f"{place}: {error}") from error

    def verify(self, version: int, file: WeightFile) -> None:
        place, key, digest = self.place(version, file.name), _key(version, file.name), hashlib.sha256()
        size = self._objects.size(key)
        if size is None:
            raise WeightIntegrityError(f"{place} is missing, expected {file.num_bytes} bytes")
        if size == file.num_bytes:
            for start in range(0, size, _PIECE):
                digest.update(self._objects.get_range(key, start, min(_PIECE, size - start)))
        check_file(place, file, size, digest.hexdigest())

    def empty(self, version: int) -> None:
        if version in self._of_others:
            return
        with suppress(StorageError):  # what is left is no version, and goes with the others of its age
            self._delete(version, but=_CLAIM)

    def remove(self, version: int) -> None:
        self._delete(version)

    def want(self, version: int, reason: bytes) -> None:
        self._objects.put(f"{WANTED}/{folder_name(version)}", reason[:MAX_REASON_BYTES])

    def wanted(self) -> list[int]:
        found = (number_of(key.removeprefix(f"{WANTED}/")) for key in self._objects.list(f"{WANTED}/"))
        return sorted(version for version in found if version is not None)

    def take_wanted(self, version: int) -> bytes | None:
        key = f"{WANTED}/{folder_name(version)}"
        try:
            reason = self._objects.get(key, max_bytes=MAX_REASON_BYTES)
        except FileNotFoundError:
            return None
        except ValueError as error:
            reason = str(error).encode()
        self._objects.delete([key])
        return reason

    def _look(self, *, recent: bool = False) -> Mapping[str, int]:
        if not recent or self._seen is None:
            self._seen = self._objects.list()
        return self._seen

    def _delete(self, version: int, *, but: str | None = None) -> None:
        first = {_key(version, MANIFEST_NAME): 0, _key(version, ANCHOR_MANIFEST_NAME): 1, _key(version, _CLAIM): 3}
        # By name as well, since a list may not have them yet.
        keys = first.keys() | self._objects.list(f"{folder_name(version)}/").keys()
        ordered = sorted(keys, key=lambda key: (first.get(key, 2), key))
        self._objects.delete([key for key in ordered if but is None or key != _key(version, but)])

    @contextmanager
    def _local_space(self, num_bytes: int) -> Iterator[None]:
        """Says of a full disk of this host what to do about it."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(
                f"no space for {num_bytes} bytes in {self._cache.folder}, through which files go to and from "
                f"{self.address}; free some, or set store.cache to a larger disk"
            ) from error


def _key(version: int, name: str) -> str:
    return f"{folder_name(version)}/{name}"


def _split(key: str) -> tuple[int | None, str]:
    folder, _, name = key.partition("/")
    return number_of(folder), name
