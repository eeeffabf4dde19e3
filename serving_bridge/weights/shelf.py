"""Where a weight store's files are: what it asks of a folder, or of object storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from learner_jax.contracts import WeightFile
from learner_jax.runtime import cache_folder
from serving_bridge.weights.files import Tensor

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.safetensors"
UPDATE_NAME = "update.safetensors"
ANCHOR_MANIFEST_NAME = "anchor.json"
ANCHOR_NAME = "anchor.safetensors"
#: Of the folder, or prefix, of requests for whole versions.
WANTED = "wanted"
MAX_REASON_BYTES = 10_000
_VARIABLE = "WEIR_STORE_"


@dataclass(frozen=True)
class ShelfOptions:
    """How a store in object storage is used; a folder needs none of it.

    Attributes:
      cache: folder of this host for files that were fetched, or are written; None: in Weir's cache.
      cache_bytes: that it may take.
      timeout_s: seconds for which a request that fails is tried again.
    """

    cache: Path | None = None
    cache_bytes: int = 32 * 2**30
    timeout_s: float = 60.0

    @property
    def cache_folder(self) -> Path:
        return self.cache or cache_folder() / "weights"

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> ShelfOptions:
        """What `variables` of another process said; the defaults where nothing was said."""
        given = {name: environment.get(f"{_VARIABLE}{name.upper()}") for name in ("cache", "cache_bytes", "timeout_s")}
        return cls(
            cache=Path(given["cache"]) if given["cache"] else None,
            cache_bytes=int(given["cache_bytes"] or cls.cache_bytes),
            timeout_s=float(given["timeout_s"] or cls.timeout_s),
        )

    def variables(self) -> dict[str, str]:
        """These options as environment variables."""
        said = {"CACHE": self.cache_folder, "CACHE_BYTES": self.cache_bytes, "TIMEOUT_S": self.timeout_s}
        return {f"{_VARIABLE}{name}": str(value) for name, value in said.items()}


class Shelf(Protocol):
    """The files of versions by number and name. A version exists once it has a manifest, which is written last.

    Implementations raise `OSError` where files can't be reached; `serving_bridge.storage.StorageError` is one.

    Attributes:
      address: absolute path or URL, the same in every process that opens the shelf.
      poll_s: seconds between two looks for something new that cost little.
    """

    poll_s: float

    @property
    def address(self) -> str: ...

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What of its own environment a process hands to one that shall open this shelf."""

    def place(self, version: int, name: str = "") -> str:
        """Where a version, or a file of one, is, for messages."""

    def claimed(self) -> list[int]:
        """Numbers that are taken, also by versions that never came to exist, in ascending order."""

    def stored(self, *, recent: bool = False) -> list[int]:
        """Versions that have a manifest, in ascending order.

        Args:
          recent: what the last look saw will do; then nothing is waited for that a network has to answer.
        """

    def claim(self, version: int) -> bool:
        """Takes a number for good, durably; False if it was taken already."""

    def holds(self, version: int, name: str, *, recent: bool = False) -> bool:
        """Whether a version has a file of that name; `recent` as in `stored`."""

    def read(self, version: int, name: str, *, max_bytes: int) -> bytes:
        """A small file's content. Raises `FileNotFoundError`; `WeightIntegrityError` for what is no such file."""

    def open(self, version: int) -> None:
        """Called before a version's files are written. Raises `StoreError` if they would land elsewhere."""

    def write_tensors(self, version: int, name: str, tensors: Mapping[str, Tensor]) -> WeightFile:
        """Writes a file of a version that does not exist yet; it is durable on return."""

    def replace_tensors(self, version: int, name: str, tensors: Mapping[str, Tensor]) -> WeightFile:
        """Writes a file of an existing version at once: readers find the old one or the new one."""

    def write_last(self, version: int, name: str, content: bytes) -> None:
        """Writes a manifest at once; it is durable on return, as is all that was written before."""

    def read_tensors(self, version: int, file: WeightFile) -> dict[str, Tensor]:
        """A file's tensors. Raises `WeightIntegrityError` unless it is what the manifest says."""

    def verify(self, version: int, file: WeightFile) -> None:
        """Hashes a file where it is kept. Raises `WeightIntegrityError` naming it, expected and got."""

    def empty(self, version: int) -> None:
        """Frees the space of a failed publish; the number stays taken."""

    def remove(self, version: int) -> None:
        """Deletes a version, its manifests first, so that it is never seen with files missing."""

    def want(self, version: int, reason: bytes) -> None:
        """Leaves a request for a version, whole."""

    def wanted(self) -> list[int]:
        """Versions that such requests are for, in ascending order."""

    def take_wanted(self, version: int) -> bytes | None:
        """Removes a request and returns its reason; None if there is none."""
