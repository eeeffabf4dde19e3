"""Objects of storage as files of a folder here, each with the size that a list gave it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from learner_jax.runtime import make_folder
from serving_bridge.storage.objects import ObjectStore, StorageError, check_key
from serving_bridge.storage.pieces import ContentError, download, each


def fetch_objects(
    objects: ObjectStore, sizes: Mapping[str, int], folder: Path, *, fetched: Callable[[int], None] = lambda _: None
) -> None:
    """Writes each object under its key below `folder`, where no such file may be.

    Args:
      sizes: key -> bytes.
      fetched: told the bytes of each file that is there.

    Raises:
      StorageError: storage does not answer, or the disk here has no room for all of them.
      ContentError: an object has gone, or has another size.
    """
    for key in sizes:
        try:
            check_key(key)
        except ValueError as error:
            raise ContentError(f"{objects.url} holds a file that no folder here can hold: {error}") from None
    for parent in sorted({(folder / key).parent for key in sizes} | {folder}):
        make_folder(parent)
    needed, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{objects.url} has {needed / 1e9:.1f} GB to fetch, but the disk of {folder} has {free / 1e9:.1f} GB free: "
            f"set TMPDIR to a folder on another disk"
        )

    def fetch(key: str) -> None:
        try:
            download(objects, key, sizes[key], folder / key)
        except FileNotFoundError:
            raise ContentError(f"{objects.url}/{key} has gone while it was read") from None
        fetched(sizes[key])

    each(fetch, sorted(sizes))
