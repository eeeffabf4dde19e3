"""The benchmark of conversion: its checkpoint is one that converts, and its disk rates are of the bytes it says."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from learner_jax.contracts.model import parameters
from learner_jax.conversion.checkpoint_reader import open_source
from tests.support.model_folders import CONFIG
from tools.bench.weights import convert


@pytest.mark.parametrize("compressed", [False, True])
def test_its_checkpoint_is_one(compressed: bool, tmp_path: Path) -> None:
    root, largest = convert.make_checkpoint(tmp_path, CONFIG, compressed=compressed)
    with open_source(root, CONFIG) as source:
        for row in parameters(CONFIG):
            array = source.arrays[row.path]
            values = np.asarray(array.read().result())
            assert values.std() > 0.01
            assert array.chunk_layout.read_chunk.shape == ((1, *row.shape) if row.stacked else row.shape)
            assert 4 * np.prod(array.chunk_layout.read_chunk.shape) <= largest
            assert (array.spec().to_json()["metadata"]["compressor"] is not None) == compressed


@pytest.mark.parametrize("gib", [1.0, 4.0, 15.0])
def test_a_model_has_about_the_size_asked_for(gib: float) -> None:
    config = convert.shape_of(gib * 2**30)
    size = sum(4 * np.prod(r.shape) * (config.num_layers if r.stacked else 1) for r in parameters(config))
    assert abs(size / 2**30 - gib) < 0.05


@pytest.mark.parametrize("direct", [False, True])
def test_rates_are_of_the_bytes_that_were_moved(direct: bool, tmp_path: Path) -> None:
    nbytes = 3 * (8 << 20)
    try:
        assert convert.write_file(tmp_path / "file", nbytes, direct=direct)() == nbytes
    except OSError:
        pytest.skip("the file system of the temporary folder knows no direct access")
    assert (tmp_path / "file").stat().st_size == nbytes
    assert convert.read_files(tmp_path, direct=direct)() == nbytes


@pytest.mark.parametrize("text", ["0.5", "-1", "nan", "inf", "much"])
def test_a_size_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected a number of at least 1, got '{text}'"):
        convert.gibibytes(text)
