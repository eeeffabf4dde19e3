"""Supervised examples in files, and the order in which they are trained on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from learner_jax.batches import BatchError, ExampleFiles, ExampleStream, Pairs, write_examples

_EXAMPLES: list[tuple[list[int], list[bool]]] = [
    ([1, 2, 3], [False, True, True]),
    ([4, 5], [False, True]),
    ([6, 7, 8, 9], [False, False, False, True]),
    ([10, 11], [False, True]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_examples(tmp_path / "run" / "examples", _EXAMPLES, {"tokenizer": "t"})
    return tmp_path / "run" / "examples"


def test_examples_come_back_with_the_mask_on_the_answer(folder: Path) -> None:
    files = ExampleFiles(folder)
    assert (len(files), files.facts) == (4, {"tokenizer": "t"})
    found = [(list(tokens), list(mask)) for tokens, mask in (files[number] for number in range(4))]
    assert found == _EXAMPLES
    chosen, rejected = Pairs(files)[1]
    assert (len(Pairs(files)), list(chosen[0]), list(rejected[0])) == (2, [6, 7, 8, 9], [10, 11])


def test_a_write_that_was_cut_off_leaves_nothing_that_is_taken_for_whole(folder: Path, tmp_path: Path) -> None:
    def broken() -> object:
        yield _EXAMPLES[0]
        raise KeyboardInterrupt

    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        write_examples(other, broken(), {})  # type: ignore[arg-type]
    assert not other.exists()
    write_examples(other, _EXAMPLES[:1], {})
    assert len(ExampleFiles(other)) == 1


def test_a_damaged_folder_is_refused_with_its_name(folder: Path) -> None:
    np.save(folder / "ends.npy", np.array([3, 5, 9, 99]))
    with pytest.raises(BatchError, match=r"examples is damaged: its arrays don't fit together; delete it"):
        ExampleFiles(folder)
    (folder / "ends.npy").write_bytes(b"junk")
    with pytest.raises(BatchError, match=r"examples holds no examples that can be read"):
        ExampleFiles(folder)


def taken(stream: ExampleStream[int], step: int, count: int) -> list[Sequence[int]]:
    return list(itertools.islice(stream.since(step), count))


def test_every_epoch_holds_each_example_once_in_an_order_of_its_own() -> None:
    batches = taken(ExampleStream(range(10), batch_size=4, seed=7), 0, 10)
    assert [len(batch) for batch in batches] == [4] * 10
    numbers = [number for batch in batches for number in batch]
    epochs = [numbers[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_follows_from_the_seed_and_goes_on_from_any_step() -> None:
    whole = taken(ExampleStream(range(10), batch_size=3, seed=7), 0, 12)
    for step in (1, 3, 4, 11):  # in the middle of an epoch, at its end, across two
        assert taken(ExampleStream(range(10), batch_size=3, seed=7), step, 12 - step) == whole[step:]
    assert taken(ExampleStream(range(10), batch_size=3, seed=8), 0, 12) != whole


def test_no_examples_are_an_error() -> None:
    with pytest.raises(BatchError, match="there are no supervised examples"):
        ExampleStream([], batch_size=1, seed=0)
