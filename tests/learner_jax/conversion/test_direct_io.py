"""Files by position: same bytes at any offset and length, whether or not the file system knows direct access."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from learner_jax.conversion import direct_io
from learner_jax.conversion.direct_io import File, supports_direct

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(params=["direct", "cached", "refused"])
def access(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "refused": the disk wants larger multiples than it is given."""
    monkeypatch.setattr(direct_io, "_DIRECT_FROM", 1)
    if request.param == "cached":
        monkeypatch.setattr(direct_io, "_O_DIRECT", 0)
    if request.param == "refused":
        monkeypatch.setattr(direct_io, "_PAGE", 8)
    return str(request.param)


@pytest.mark.parametrize("offset", [0, 8, 4088, 4096, 12296])
@pytest.mark.parametrize("count", [1, 500, 1024, 2048, 50_001])
def test_what_is_written_is_read(access: str, offset: int, count: int, tmp_path: Path) -> None:
    values = np.random.default_rng(count).standard_normal((count, 2), dtype=np.float32)
    size = offset + values.nbytes + 5
    file = File(tmp_path / "file", size=size)
    before = np.arange(size, dtype=np.uint8)
    file.write(0, before, np.dtype(np.uint8))
    file.write(offset, values, np.dtype(np.float32))
    expected = bytearray(before.tobytes())
    expected[offset : offset + values.nbytes] = values.tobytes()
    assert file.read(0, size).tobytes() == bytes(expected)
    assert file.read(offset, values.nbytes).tobytes() == values.tobytes()
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes(expected)
    again = File(tmp_path / "file")
    assert again.read(offset, size).tobytes() == bytes(expected)[offset:]  # as much as there is
    again.close()


def test_rounding_is_that_of_publishing(access: str, tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    special = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x3F808000, 0x3F818000, 1], np.uint32)
    values = np.concatenate([special, bits]).view(np.float32)
    file = File(tmp_path / "file", size=2 * len(values) + 8)
    with np.errstate(invalid="ignore"):
        file.write(8, values, BFLOAT16)
        expected = values.astype(BFLOAT16)
    assert file.read(8, expected.nbytes).tobytes() == expected.tobytes()
    file.close()


def file_around_the_cache(folder: Path) -> File:
    """A file of 1 MiB; skips where there is no direct access."""
    file = File(folder / "file", size=1 << 20)
    if not supports_direct(folder / "file"):
        pytest.skip("the file system of the temporary folder knows no direct access")
    return file


def test_large_parts_go_around_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_around_the_cache(tmp_path)
    used = []
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: used.append((fd, len(data))) or write(fd, data, at))
    file.write(8, np.zeros((1 << 20) - 8, np.uint8), np.dtype(np.uint8))
    assert sum(size for descriptor, size in used if descriptor == file._direct) == (1 << 20) - 4096
    read, asked = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: asked.append(fd) or read(fd, into, at))
    file.read(8, (1 << 20) - 8)
    file.read(8, 100)
    assert asked == [file._direct, file.descriptor]
    file.close()


def test_an_error_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to go through the page cache."""
    file = file_around_the_cache(tmp_path)
    write = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor == file._direct:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(0, np.zeros(1 << 20, np.uint8), np.dtype(np.uint8))
    file.close()
