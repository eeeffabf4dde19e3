"""Orders that are known at any place: each number once, another order for another key, the same on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.data import Permutation, stable_hash
from rewards.data.train_order import TrainOrder
from rewards.settings import CurriculumSettings


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 600), key=st.integers(0, 2**64 - 1))
def test_a_permutation_has_each_number_once(size: int, key: int) -> None:
    order = Permutation(size, key)
    assert sorted(order[place] for place in range(size)) == list(range(size))


def test_a_permutation_is_the_same_on_every_machine_and_another_for_each_key() -> None:
    orders = [[Permutation(10, key)[place] for place in range(10)] for key in (0, 1, stable_hash("order", 0, "train"))]
    assert orders == [KNOWN_0, KNOWN_1, KNOWN_2]
    assert Permutation(10_000_000, 7)[9_999_999] == Permutation(10_000_000, 7)[9_999_999] < 10_000_000


KNOWN_0 = [7, 5, 1, 8, 6, 3, 4, 0, 9, 2]
KNOWN_1 = [3, 9, 4, 0, 7, 8, 1, 2, 5, 6]
KNOWN_2 = [3, 9, 4, 0, 6, 7, 1, 5, 2, 8]


def test_a_permutation_shuffles() -> None:
    """Neighbours land as far apart as those of random orders, and places are hit evenly over keys."""
    size = 2000
    order = np.array([Permutation(size, 3)[place] for place in range(size)])
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.08
    assert np.abs(np.diff(order)).mean() == pytest.approx(size / 3, rel=0.06)
    hits = np.bincount([Permutation(8, key)[0] for key in range(4000)], minlength=8)
    assert hits.min() > 400


def test_a_place_outside_is_refused() -> None:
    for place in (-1, 5):
        with pytest.raises(IndexError):
            Permutation(5, 0)[place]
    with pytest.raises(ValueError, match="at least 1"):
        Permutation(0, 0)


def test_every_epoch_has_every_place_once_in_an_order_of_its_own() -> None:
    order = TrainOrder(50, seed=1)
    epochs = [[order.place(epoch * 50 + place) for place in range(50)] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert TrainOrder(50, seed=2).place(0) != order.place(0) or TrainOrder(50, seed=2).place(1) != order.place(1)


DIFFICULTIES = np.array([3.0, 1.0, 2.0, 1.0, 3.0, 1.0, 2.0])


def test_a_curriculum_goes_from_easy_to_hard_in_each_epoch() -> None:
    order = TrainOrder(7, seed=1, curriculum=CurriculumSettings(column="level"), difficulties=DIFFICULTIES)
    epochs = [[order.place(epoch * 7 + place) for place in range(7)] for epoch in range(8)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
        assert DIFFICULTIES[epoch].tolist() == sorted(DIFFICULTIES)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "equally hard ones are shuffled anew"


def test_stages_have_what_is_easy_enough_and_then_all() -> None:
    curriculum = CurriculumSettings(column="level", stages=(0.5, 1.0, 2.0), stage_prompts=0)
    order = TrainOrder(7, seed=1, curriculum=curriculum, difficulties=DIFFICULTIES)
    asked = [order.place(index) for index in range(3 + 5 + 14)]
    assert sorted(asked[:3]) == [1, 3, 5], "a stage without a problem is passed over"
    assert sorted(asked[3:8]) == [1, 2, 3, 5, 6]
    assert sorted(asked[8:15]) == sorted(asked[15:22]) == list(range(7))
    longer = TrainOrder(7, seed=1, curriculum=CurriculumSettings(column="level", stages=(1.0,), stage_prompts=6),
                        difficulties=DIFFICULTIES)  # fmt: skip
    asked = [longer.place(index) for index in range(13)]
    assert sorted(asked[:3]) == sorted(asked[3:6]) == [1, 3, 5]
    assert sorted(asked[6:]) == list(range(7))
