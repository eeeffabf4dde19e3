"""Large files by position and around the page cache: moving a model evicts nobody's pages, and costs little CPU time.

The page cache takes parts that are short, or whose pages are shared with other parts, and everything on file systems
that know no direct access.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import numpy as np

#: Direct access wants memory, offset and length to be multiples of this; no disk in use wants more.
_PAGE = 4096
#: Below this the page cache is as quick.
_DIRECT_FROM = 256 << 10
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def supports_direct(path: Path) -> bool:
    """Whether the file system of an existing file can be read around the page cache."""
    descriptor = _open_direct(path, os.O_RDONLY)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def _open_direct(path: Path, flags: int) -> int | None:
    if not _O_DIRECT:
        return None
    try:
        return os.open(path, flags | _O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


class File:
    """One file that is read or written by position; owns its descriptors.

    Args:
      size: makes the file if need be and reserves this many bytes for it; None opens an existing one for reading.
    """

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        flags = os.O_RDONLY if size is None else os.O_RDWR | os.O_CREAT
        self.descriptor = os.open(path, flags, 0o644)
        self._direct: int | None = None
        try:
            if size is not None and os.fstat(self.descriptor).st_size != size:
                _reserve(self.descriptor, size)
            self._direct = _open_direct(path, flags)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        """uint8[`nbytes`] from `offset`; shorter where the file ends."""
        begin = offset // _PAGE * _PAGE
        buffer = _aligned(-(-(offset + nbytes) // _PAGE) * _PAGE - begin)
        is_direct = self._direct is not None and nbytes >= _DIRECT_FROM
        done = 0
        while done < offset + nbytes - begin:
            count = self._read(buffer[done:], begin + done, is_direct)
            done += count
            if count == 0:
                break
            is_direct &= done % _PAGE == 0
        return buffer[offset - begin : min(done, offset + nbytes - begin)]

    def _read(self, into: np.ndarray, offset: int, is_direct: bool) -> int:
        if is_direct and self._direct is not None:
            try:
                return os.preadv(self._direct, [into.data], offset)
            except OSError as error:
                self._give_up_direct(error)
        return os.preadv(self.descriptor, [into.data], offset)

    def write(self, offset: int, values: np.ndarray, dtype: np.dtype) -> None:
        """Writes an array's values as `dtype`, rounded to nearest even, in C order."""
        nbytes = values.size * dtype.itemsize
        shift = offset % _PAGE
        buffer = _aligned(shift + nbytes)[shift:]
        np.copyto(buffer.view(dtype).reshape(values.shape), values, casting="unsafe")
        begin, end = min(-offset % _PAGE, nbytes), max(nbytes - (offset + nbytes) % _PAGE, 0)
        if self._direct is None or nbytes < _DIRECT_FROM:
            write_at(self.descriptor, buffer.data, offset)
            return
        write_at(self.descriptor, buffer[:begin].data, offset)
        try:
            while begin < end and begin % _PAGE == -offset % _PAGE:
                begin += os.pwrite(self._direct, buffer[begin:end].data, offset + begin)
        except OSError as error:
            self._give_up_direct(error)
        write_at(self.descriptor, buffer[begin:].data, offset + begin)

    def _give_up_direct(self, error: OSError) -> None:
        if error.errno != errno.EINVAL or self._direct is None:
            raise error
        os.close(self._direct)
        self._direct = None


def _aligned(nbytes: int) -> np.ndarray:
    """uint8 array whose first byte is at the beginning of a page."""
    memory = np.empty(nbytes + _PAGE, np.uint8)
    begin = -memory.ctypes.data % _PAGE
    return memory[begin : begin + nbytes]


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """`os.pwrite` that goes on until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _reserve(descriptor: int, size: int) -> None:
    """Gives a file its size and its place on the disk: a full disk shows here; where nothing is reserved, the size."""
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate") and size:
        with contextlib.suppress(NotImplementedError):
            os.posix_fallocate(descriptor, 0, size)
