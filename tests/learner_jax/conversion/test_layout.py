"""Files are laid out and read as the safetensors library does it, whatever part is written or asked for first."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from learner_jax.contracts import WeightFileError
from learner_jax.conversion import checkpoint_writer
from learner_jax.conversion.checkpoint_writer import _chunk_name, _chunk_shape
from learner_jax.conversion.direct_io import File
from learner_jax.conversion.hf_layout import Placed, Weights, plan, runs, write_part
from learner_jax.conversion.hf_writer import in_slabs

SHAPES = {"b": (3, 4), "a": (5,), "c": (2, 3, 2)}


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_written_in_parts_is_the_one_that_the_library_saves(dtype: str, tmp_path: Path) -> None:
    layout = plan(SHAPES, dtype, 1 << 20)
    (planned,) = layout.files
    assert (planned.name, layout.index, planned.tensors) == ("model.safetensors", None, ("b", "a", "c"))
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(np.float32)
    whole = {name: values(shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    file = File(tmp_path / "f", size=planned.size)
    file.write(0, np.frombuffer(planned.header, np.uint8), np.dtype(np.uint8))
    for name, value in whole.items():
        for corner in itertools.product(*(range(0, size, 2) for size in value.shape)):
            index = tuple(slice(start, min(start + 2, size)) for start, size in zip(corner, value.shape, strict=True))
            write_part(file, layout.tensors[name], index, value[index])
    file.close()
    expected = save({name: value.astype(kind) for name, value in whole.items()}, metadata={"format": "pt"})
    assert (tmp_path / "f").read_bytes() == expected


@pytest.mark.parametrize(
    ("bound", "groups"),
    [(1 << 20, [["b", "a", "c"]]), (48, [["b"], ["a"], ["c"]]), (68, [["b", "a"], ["c"]]), (67, [["b"], ["a"], ["c"]])],
)
def test_files_hold_what_fits_in_order(bound: int, groups: list[list[str]]) -> None:
    """Of 48, 20 and 48 bytes; one that is larger than the bound stands alone."""
    layout = plan(SHAPES, "float32", bound)
    assert [list(file.tensors) for file in layout.files] == groups
    if len(groups) == 1:
        return
    assert layout.index is not None
    index = json.loads(layout.index)
    assert index["metadata"] == {"total_size": 116}
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    assert index["weight_map"] == {name: file for file, held in zip(names, groups, strict=True) for name in held}
    assert {placed.file for placed in layout.tensors.values()} == set(names)


def test_a_tensor_above_the_bound_has_a_file_of_its_own() -> None:
    assert [file.tensors for file in plan({"a": (9,), "b": (1,)}, "float32", 8).files] == [("a",), ("b",)]


def test_every_part_is_made_of_the_fewest_stretches() -> None:
    placed = Placed("f", "F32", (2, 3, 4), 100)
    whole = (slice(0, 2), slice(0, 3), slice(0, 4))
    assert list(runs(placed, whole)) == [(100, 96)]
    assert list(runs(placed, (slice(1, 2), *whole[1:]))) == [(148, 48)]
    assert list(runs(placed, (slice(0, 2), slice(1, 2), slice(0, 4)))) == [(116, 16), (164, 16)]
    assert list(runs(placed, (slice(1, 2), slice(0, 2), slice(1, 3)))) == [(152, 8), (168, 8)]
    assert list(runs(Placed("f", "BF16", (), 7), ())) == [(7, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({name: values(shape) for name, shape in SHAPES.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_parts_are_read_as_they_are_in_the_file(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    with Weights(folder) as weights:
        assert set(weights.tensors) == set(whole)
        for name, value in whole.items():
            for corner in itertools.product(*(range(size) for size in value.shape)):
                index = tuple(slice(start, start + 2) for start in corner)
                np.testing.assert_array_equal(weights.read_part(name, index), value[index])


def damaged(change: Any, folder: Path) -> None:
    """Rewrites the header with `change` made to its entries, and checks only what is Weir's own."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + text[:length] + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["a"]["data_offsets"].__setitem__(1, header["a"]["data_offsets"][1] - 4),
        lambda header: header["c"]["data_offsets"].__setitem__(1, 10**6),
        lambda header: header["a"].__delitem__("shape"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    change: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library looks first; what it lets pass one day is refused all the same."""
    monkeypatch.setattr(
        "learner_jax.conversion.hf_layout.open_weights", lambda path, promised: contextlib.nullcontext()
    )
    with Weights(folder):
        pass
    damaged(change, folder)
    with pytest.raises(WeightFileError, match="is not a whole safetensors file"):
        Weights(folder)


def test_a_file_that_ends_too_early_is_named_when_it_is_read(folder: Path) -> None:
    with Weights(folder) as weights:
        placed = max(weights.tensors.values(), key=lambda placed: placed.offset)
        name = next(name for name, other in weights.tensors.items() if other == placed)
        path = folder / "model.safetensors"
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(WeightFileError, match="ends in the middle of a tensor"):
            weights.read_part(name, tuple(slice(0, size) for size in placed.shape))


def test_slabs_are_whole_rows_within_the_limit() -> None:
    value = values((7, 4))
    index = (slice(10, 17), slice(2, 6))
    slabs = list(in_slabs(index, value, limit=3 * 16 + 5))
    assert [part[0] for part, _ in slabs] == [slice(10, 13), slice(13, 16), slice(16, 17)]
    assert all(part[1:] == index[1:] for part, _ in slabs)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in slabs]), value)
    assert [part for part, _ in in_slabs(index, value, limit=112)] == [index]
    assert [part[0] for part, _ in in_slabs(index, value, limit=1)] == [slice(n, n + 1) for n in range(10, 17)]
    assert list(in_slabs((), np.float32(1.0), limit=0)) == [((), np.float32(1.0))]  # type: ignore[arg-type]


def test_a_chunk_is_named_by_its_place_in_the_grid() -> None:
    assert _chunk_name((slice(4, 6), slice(0, 3)), (2, 3)) == "2.0"
    assert _chunk_name((), ()) == "0"


def test_chunks_are_layers_or_rows_of_large_ones_or_as_many_small_ones_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(checkpoint_writer, "_SMALL_BYTES", 100)
    config: Any = SimpleNamespace(num_layers=3)

    def shape(*of: int, stacked: bool = True) -> tuple[int, ...]:
        row: Any = SimpleNamespace(shape=of, stacked=stacked)
        return _chunk_shape(row, config)

    assert shape(10, 25) == (1, 10, 25)
    assert shape(10, 26) == (1, 9, 26)
    assert shape(2, 300) == (1, 1, 300)
    assert shape(10, 26, stacked=False) == (9, 26)
    assert shape(12) == (2, 12)
    assert shape(2) == (3, 2)
