"""Estimates per problem against enumeration of every choice of answers, and against their own definitions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.evaluation.estimators import MAX_SAMPLES, maj_at_k, pass_at_k


def enumerated_pass(passed: Sequence[bool], k: int) -> float:
    return float(np.mean([any(chosen) for chosen in itertools.combinations(passed, k)]))


def enumerated_majority(votes: Sequence[Hashable], passed: Sequence[bool], k: int) -> float:
    found = []
    for chosen in itertools.combinations(range(len(votes)), k):
        counts = Counter(votes[i] for i in chosen)
        most = max(counts.values())
        tied = [vote for vote, count in counts.items() if count == most]
        goods = [np.mean([passed[i] for i in range(len(votes)) if votes[i] == vote]) for vote in tied]
        found.append(np.mean(goods))
    return float(np.mean(found))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_choices_with_a_pass(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        passed = [True] * c + [False] * (n - c)
        assert pass_at_k(n, c, k) == pytest.approx(enumerated_pass(passed, k), abs=1e-12), (c, k)


def test_pass_at_k_is_unbiased_where_the_plug_in_is_not() -> None:
    """Mean over the binomial counts of 10 answers that pass with 30%: 1 - 0.7^4."""
    n, p, k = 10, 0.3, 4
    counts = np.arange(n + 1)
    weights = np.array([float(np.prod(np.arange(n - c + 1, n + 1))) for c in counts])
    weights = (
        weights / np.array([float(np.prod(np.arange(1, c + 1))) for c in counts]) * p**counts * (1 - p) ** (n - counts)
    )
    ours = float(weights @ [pass_at_k(n, int(c), k) for c in counts])
    plug_in = float(weights @ (1 - (1 - counts / n) ** k))
    assert ours == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    assert abs(plug_in - (1 - (1 - p) ** k)) > 0.01


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_numbers_out_of_range_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(n, c, k)
    if k > n or k == 0:
        with pytest.raises(ValueError, match="samples"):
            maj_at_k(["a"] * n, [True] * n, k)


@settings(deadline=None, max_examples=150)
@given(votes=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=9), data=st.data())
def test_maj_at_k_is_the_mean_over_every_choice(votes: list[tuple[int, bool]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(votes)))
    names, passed = [vote for vote, _ in votes], [good for _, good in votes]
    assert maj_at_k(names, passed, k) == pytest.approx(enumerated_majority(names, passed, k), abs=1e-12)


def test_majority_of_one_is_the_mean_and_of_all_is_the_winner() -> None:
    votes, passed = ["7"] * 5 + ["8"] * 3 + ["9"], [True] * 5 + [False] * 4
    assert maj_at_k(votes, passed, 1) == pytest.approx(5 / 9)
    assert maj_at_k(votes, passed, 9) == 1.0
    assert maj_at_k(["7", "8"], [True, False], 2) == 0.5  # a tie is drawn by lot


def test_majority_of_many_samples_agrees_with_draws() -> None:
    generator = np.random.default_rng(1)
    votes = generator.choice(list("abcdefgh"), size=64, p=[0.3, 0.22, 0.2, 0.1, 0.06, 0.06, 0.03, 0.03]).tolist()
    passed, k = [vote == "a" for vote in votes], 16
    won = []
    for _ in range(20_000):
        counts = Counter(votes[i] for i in generator.choice(64, size=k, replace=False))
        most = max(counts.values())
        tied = [vote for vote, count in counts.items() if count == most]
        won.append(("a" in tied) / len(tied))
    assert maj_at_k(votes, passed, k) == pytest.approx(np.mean(won), abs=4 * np.std(won) / len(won) ** 0.5)


def test_the_largest_number_of_samples_is_finite() -> None:
    half = MAX_SAMPLES // 2
    votes = ["a"] * (half + 8) + ["b"] * (half - 8)
    found = maj_at_k(votes, [vote == "a" for vote in votes], half + 1)
    assert 0.5 < found < 1.0
    assert pass_at_k(MAX_SAMPLES, 1, half) == pytest.approx(0.5)
