"""One object of storage to a file of this host, in pieces, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from learner_jax.runtime import FILE_MODE, WeirError, at
from serving_bridge.storage.objects import ObjectStore

Item = TypeVar("Item")

_PIECE = 16 << 20
#: Requests at the same time: one connection rarely takes all that the network gives.
_AT_ONCE = 4


class ContentError(WeirError, ValueError):
    """An object in storage is not what its reader was told that it is."""


def download(objects: ObjectStore, key: str, num_bytes: int, path: Path) -> None:
    """Writes an object of that size to a new file.

    Raises:
      FileNotFoundError: storage has no such object.
      ContentError: the object has another size.
      StorageError: storage does not answer.
      OSError: the file can't be written here.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        with at(path):
            os.truncate(descriptor, num_bytes)

            def fetch(start: int) -> None:
                size = min(_PIECE, num_bytes - start)
                piece = objects.get_range(key, start, size)
                if len(piece) != size:
                    raise ContentError(
                        f"{objects.url}/{key} has {start + len(piece)} bytes, expected {num_bytes}: it was cut or "
                        f"replaced"
                    )
                _write(descriptor, piece, start)

            each(fetch, range(0, num_bytes, _PIECE))
    finally:
        os.close(descriptor)


def each(work: Callable[[Item], None], items: Iterable[Item], *, at_once: int = _AT_ONCE) -> None:
    """Does the work for every item, several at a time; the first failure is raised, and what has not begun is left."""
    listed = list(items)
    if len(listed) <= 1:
        for item in listed:
            work(item)
        return
    with ThreadPoolExecutor(min(at_once, len(listed))) as pool:
        pending = [pool.submit(work, item) for item in listed]
        try:
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
