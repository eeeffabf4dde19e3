"""Payloads too big for a row: those of one `put` share a file, of which each row names a part (the claim check: Hohpe,
Woolf, 2003).

A file that no row needs any more is kept as a spare for a while: overwriting bytes that the disk has room for already
takes about half the time of making a file.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash

from learner_jax.disk_errors import at
from serving_bridge.weight_files import sync_folder

_SPARE = "spare"
_ID = ".id"
#: Kept for the next ones to write; what is beyond is deleted.
_SPARE_BYTES = 2**29


class BlobError(RuntimeError):
    """A blob is missing or damaged; the message names it."""


@dataclass(frozen=True)
class Blob:
    """Where a payload is: so many bytes from `offset` in `file`, with this XXH3-128 in hexadecimal digits."""

    file: str
    offset: int
    num_bytes: int
    hash: str


class BlobFolder:
    """Files in a folder that all processes of the run see; the folder is made when the first is written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._spares = folder / _SPARE
        self._spare_bytes = _SPARE_BYTES  # as far as this process knows

    def identity(self) -> int:
        """A number that the folder got when it was first asked: who reads another one sees another folder."""
        path = self.folder / _ID
        if not path.exists():
            self._make()
            partial = path.with_name(f"{_ID}.{uuid.uuid4().hex}")
            partial.write_text(str(uuid.uuid4().int >> 66))  # as many bits as a database's integer has
            try:
                os.link(partial, path)
            except FileExistsError:
                pass  # another process was first
            except OSError:
                shutil.copyfile(partial, path)  # a file system without hard links
            partial.unlink()
        return int(path.read_text())

    def write(self, payloads: Sequence[bytes]) -> list[Blob]:
        """Stores payloads durably in one file under a name that was never used before; says where each is."""
        name = uuid.uuid4().hex
        self.write_as(name, payloads)
        blobs, offset = [], 0
        for payload in payloads:
            blobs.append(Blob(name, offset, len(payload), xxhash.xxh3_128_hexdigest(payload)))
            offset += len(payload)
        return blobs

    def write_as(self, name: str, payloads: Sequence[bytes]) -> None:
        """Stores payloads durably in the file of that name, one after the other."""
        path = self.folder / name
        try:
            with at(path), path.open("r+b" if self._take_spare(path) else "xb") as file:
                file.writelines(payloads)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        sync_folder(self.folder)

    def holds(self, name: str) -> bool:
        return (self.folder / name).exists()

    @contextmanager
    def reader(self) -> Iterator[Callable[[Blob], bytes]]:
        """What reads blobs: raises `BlobError` where a file is missing or does not hold what it held.

        Each file is opened once for as long as the context lasts, which is also when network file systems look for what
        other hosts wrote: a reader is not to be kept.
        """
        with ExitStack() as stack:

            @cache
            def opened(name: str) -> int:
                return stack.enter_context((self.folder / name).open("rb", buffering=0)).fileno()

            def read(blob: Blob) -> bytes:
                try:
                    data = os.pread(opened(blob.file), blob.num_bytes, blob.offset)
                except FileNotFoundError:
                    raise BlobError(
                        f"blob {blob.file} is not in {self.folder}: all hosts must see the same folder (store.blobs)"
                    ) from None
                if xxhash.xxh3_128_hexdigest(data) != blob.hash:
                    raise BlobError(
                        f"blob {blob.file} in {self.folder} is damaged: the {blob.num_bytes} bytes from {blob.offset} "
                        f"are not what was written"
                    )
                return data

            yield read

    def release(self, names: Iterable[str]) -> None:
        """Takes back files that no row needs any more: as spares, or for good where there are enough of them."""
        for name in names:
            path = self.folder / name
            with suppress(FileNotFoundError):  # whoever released it before died in between, or was only slow
                num_bytes = path.stat().st_size
                if self._spare_bytes + num_bytes > _SPARE_BYTES:  # or fewer, as others take them
                    self._spares.mkdir(exist_ok=True)
                    self._spare_bytes = sum(size for _, size, _ in self.spares())
                if self._spare_bytes + num_bytes > _SPARE_BYTES:
                    path.unlink()
                else:
                    path.rename(self._spares / name)
                    self._spare_bytes += num_bytes

    def files(self) -> Iterator[tuple[str, int, float]]:
        """(name, bytes, time of writing in wall-clock seconds) of every file that is no spare."""
        return _listed(self.folder)

    def spares(self) -> Iterator[tuple[str, int, float]]:
        """The same of the spare ones."""
        return _listed(self._spares)

    def sweep(self, wanted: Collection[str], *, before_s: float) -> int:
        """Takes back what no row refers to and was written before this time; returns how many.

        A process that dies between file and row leaves such an orphan. Younger ones may get their row yet.
        """
        orphans = [name for name, _, written_s in self.files() if name not in wanted and written_s < before_s]
        self.release(orphans)
        return len(orphans)

    def _take_spare(self, path: Path) -> bool:
        """Renames a spare file, if there is one that no other process takes just now."""
        try:
            with os.scandir(self._spares) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        os.rename(entry.path, path)
                        return True
        except FileNotFoundError:
            self._make()
        return False

    def _make(self) -> None:
        if not self.folder.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)


def _listed(folder: Path) -> Iterator[tuple[str, int, float]]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process ended its groups
                if entry.is_file() and not entry.name.startswith("."):
                    found = entry.stat()
                    yield entry.name, found.st_size, found.st_mtime
