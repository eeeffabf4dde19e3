"""Fills the weight files of a model folder from blocks of a checkpoint, rounded, in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from learner_jax.contracts import ModelConfig, hf_tensor_names
from learner_jax.conversion.checkpoint_reader import Block
from learner_jax.conversion.direct_io import File, write_at
from learner_jax.conversion.hf_layout import DTYPES, Index, Layout, write_part
from learner_jax.conversion.upload import Upload
from learner_jax.conversion.work_folder import Settler, Work, require_space


def pieces(config: ModelConfig, block: Block, values: np.ndarray) -> Iterator[tuple[str, Index, np.ndarray]]:
    """(Hugging Face name, part of that tensor, its values) for everything that a block holds."""
    names = list(hf_tensor_names(block.row, config))
    if not block.row.stacked:
        yield names[0], block.index, values
        return
    for layer, value in zip(names[block.index[0]], values, strict=True):
        yield layer, block.index[1:], value


class Shards:
    """The weight files of a folder while they are written; owns their descriptors.

    Args:
      work: its result is where the files are.
      upload_to: object storage that each file goes to as soon as it is complete.
    """

    def __init__(self, work: Work, layout: Layout, upload_to: Upload | None) -> None:
        self._work, self._layout, self._upload_to = work, layout, upload_to
        self._files = {file.name: file for file in layout.files}
        self._missing = {file.name: file.size - len(file.header) for file in layout.files}
        self._open_files: dict[str, File] = {}
        self._settler = Settler(work)
        if self._upload_to is None:
            missing = sum(file.size for file in layout.files if not (work.result / file.name).exists())
            require_space(work.result, missing)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *raised: object) -> None:
        self._settler.__exit__(*raised)
        for file in self._open_files.values():
            file.close()

    def skip(self, config: ModelConfig, block: Block) -> int:
        """Counts a block that earlier work wrote; returns its bytes in the files."""
        shape = [part.stop - part.start for part in block.index]
        return self._count(pieces(config, block, np.broadcast_to(np.int8(0), shape)))

    def _count(self, parts: Iterable[tuple[str, Index, np.ndarray]]) -> int:
        total = 0
        for name, _, value in parts:
            placed = self._layout.tensors[name]
            nbytes = value.size * DTYPES[placed.dtype].itemsize
            self._missing[placed.file] -= nbytes
            total += nbytes
        return total

    def write(self, number: str, config: ModelConfig, block: Block, values: np.ndarray) -> int:
        """Writes a block, rounded, to wherever its tensors are; returns the number of bytes."""
        touched = {}
        parts = list(pieces(config, block, values))
        for name, index, value in parts:
            placed = self._layout.tensors[name]
            file = touched[placed.file] = self._open(placed.file)
            for rows, part in in_slabs(index, value):
                write_part(file, placed, rows, part)
        total = self._count(parts)
        self._settler.wrote(number, total, touched.values())
        if self._upload_to is not None:
            for name in touched:
                self._upload(name)
        return total

    def _open(self, name: str) -> File:
        if name not in self._open_files:
            planned = self._files[name]
            file = self._open_files[name] = File(self._work.result / name, size=planned.size)
            write_at(file.descriptor, planned.header, 0)
        return self._open_files[name]

    def _upload(self, name: str) -> None:
        """Sends a file that is complete to where it belongs, and forgets it here."""
        assert self._upload_to is not None
        if self._missing[name]:
            return
        self._settler.finish()
        if (file := self._open_files.pop(name, None)) is not None:
            file.close()
        self._upload_to.put_file(name, self._work.result / name)
        (self._work.result / name).unlink()

    def finish(self) -> None:
        """Everything is on the disk, or where it was to be copied."""
        if self._upload_to is not None:
            for name in self._files:
                if (self._work.result / name).exists():
                    self._upload(name)
        self._settler.finish()


def in_slabs(index: Index, value: np.ndarray, limit: int = 8 << 20) -> Iterator[tuple[Index, np.ndarray]]:
    """Cuts along the first dimension, so that a rounded copy stays small and in the cache."""
    if value.ndim == 0 or value.nbytes <= limit:
        yield index, value
        return
    rows = max(limit // max(value.nbytes // len(value), 1), 1)
    for start in range(0, len(value), rows):
        part = value[start : start + rows]
        begin = index[0].start + start
        yield (slice(begin, begin + len(part)), *index[1:]), part
