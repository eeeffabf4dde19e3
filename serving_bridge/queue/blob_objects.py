"""Payloads too big for a row in object storage: those of one `put` share an object, of which each row names a part.

An object is written at once and read by name, so that nothing depends on lists. Nothing is reused: a name that no row
needs any more is deleted.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from serving_bridge.queue.blobs import MAX_OFFSET, Blob, BlobError, check_place, checked, is_blob_name, placed
from serving_bridge.storage import ObjectStore, each

_ID = "id"
#: Of a name: milliseconds since 1970 in hexadecimal digits, as a list does not say when an object was written.
_TIME_DIGITS = 12
#: Deletions at the same time: the learner waits for them, and a checkpoint may end hundreds of groups.
_AT_ONCE = 16


class BlobObjects:
    """Objects below one URL that all processes of the run reach; implements `Blobs`.

    Args:
      clock: wall-clock seconds, part of the names.
    """

    def __init__(self, objects: ObjectStore, *, clock: Callable[[], float] = time.time):
        self._objects, self._clock = objects, clock
        self.address = objects.url

    def identity(self) -> int:
        """A number that the place got when it was first asked.

        Raises:
          BlobError: the object that holds it was damaged.
        """
        self._objects.put_new(_ID, str(secrets.randbits(62)).encode())
        try:
            return int(self._objects.get(_ID, max_bytes=64))
        except (FileNotFoundError, ValueError) as error:
            raise BlobError(
                f"{self.address}/{_ID} is damaged, expected a number: restore it, or begin in another place"
            ) from error

    def write(self, payloads: Sequence[bytes]) -> list[Blob]:
        """Stores payloads in one object under a name that was never used before; says where each is."""
        name = f"{int(self._clock() * 1000):0{_TIME_DIGITS}x}{secrets.token_hex(10)}"
        self.write_as(name, payloads)
        return placed(name, payloads)

    def write_as(self, name: str, payloads: Sequence[bytes]) -> None:
        """Stores payloads in the object of that name, one after the other."""
        self._objects.put(name, b"".join(payloads))

    def holds(self, name: str) -> bool:
        return self._objects.size(name) is not None

    @contextmanager
    def reader(self, max_bytes: int = MAX_OFFSET) -> Iterator[Callable[[Blob], bytes]]:
        """What reads blobs of at most `max_bytes`: raises `BlobError` where an object is missing or changed, and
        `StorageError` where storage does not answer."""

        def read(blob: Blob) -> bytes:
            check_place(blob, max_bytes)
            try:
                data = self._objects.get_range(blob.file, blob.offset, blob.num_bytes)
            except FileNotFoundError:
                raise BlobError(f"blob {blob.file} is not in {self.address} (store.blobs)") from None
            return checked(data, blob, self.address)

        yield read

    def release(self, names: Iterable[str]) -> None:
        """Deletes objects that no row needs any more; a name that is none of a blob is left alone."""
        each(lambda name: self._objects.delete([name]), filter(is_blob_name, names), at_once=_AT_ONCE)

    def files(self) -> Iterator[tuple[str, int, float]]:
        """(name, bytes, time of writing in wall-clock seconds) of every object, as far as a list shows them."""
        for name, num_bytes in self._objects.list().items():
            if is_blob_name(name):
                yield name, num_bytes, int(name[:_TIME_DIGITS], 16) / 1000

    def spares(self) -> Iterator[tuple[str, int, float]]:
        """None: nothing is reused."""
        return iter(())

    def sweep(self, wanted: Collection[str], *, before_s: float) -> int:
        """Deletes what no row refers to and was written before this time; returns how many."""
        orphans = [name for name, _, written_s in self.files() if name not in wanted and written_s < before_s]
        self.release(orphans)
        return len(orphans)
