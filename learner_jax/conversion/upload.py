"""What a conversion asks of the object storage that its result goes to; serving_bridge's `ObjectStore` gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

#: Files that make Orbax, and Weir, take a checkpoint for whole.
_LAST = ("commit_success.txt", "_CHECKPOINT_METADATA")


class Upload(Protocol):
    """Object storage below one URL. Each object appears whole or not at all."""

    @property
    def url(self) -> str:
        """Names the place."""

    def put(self, key: str, content: bytes) -> None:
        """Writes an object, in place of one that is there."""

    def put_file(self, key: str, path: Path) -> None:
        """Writes a file's content as an object."""

    def list(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of the objects whose keys begin with `prefix`."""


def send_checkpoint(folder: Path, target: Upload) -> None:
    """Sends a folder of checkpoints; what makes a checkpoint whole goes last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.name in _LAST):
        target.put_file(path.relative_to(folder).as_posix(), path)
