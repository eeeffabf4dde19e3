"""Estimates from several answers to one problem: pass@k and maj@k, each exact over all choices of k answers.

Sources: M. Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374, equation 1 (pass@k);
X. Wang et al., Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171, section 2 (majority vote).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

#: Most answers to one problem: binomial coefficients of larger numbers are no float64.
MAX_SAMPLES = 1024


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Probability that at least one of k answers passes, drawn without replacement: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance of a pass in k fresh answers (arXiv 2107.03374, equation 1), unlike 1 - (1 - c/n)^k.

    Args:
      num_samples: n, answers to the problem.
      num_passed: c, those that passed.
      k: from 1 to n.

    Raises:
      ValueError: the numbers are out of range.
    """
    if not 0 <= num_passed <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"expected 0 <= passed <= samples and 1 <= k <= samples, got {num_passed}, {num_samples}, {k}")
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def maj_at_k(votes: Sequence[Hashable], passed: Sequence[bool], k: int) -> float:
    """Expected pass of the most frequent vote among k answers, drawn without replacement; ties are drawn by lot.

    Exact: for each vote and each number of times that it can win with, the choices of k answers are counted by
    multiplying polynomials, one for each other vote.

    Args:
      votes: final answer of each sample; equal ones are one candidate.
      passed: verdict of each sample. Where equal votes differ in it, the candidate passes with their mean.
      k: from 1 to the number of samples.

    Raises:
      ValueError: the lengths differ, k is out of range, or there are more samples than `MAX_SAMPLES`.
    """
    n = len(votes)
    if len(passed) != n or not 1 <= k <= n <= MAX_SAMPLES:
        raise ValueError(f"expected as many votes as verdicts, 1 <= k <= samples <= {MAX_SAMPLES}; got {n}, k {k}")
    sizes = Counter(votes)
    passes = Counter(vote for vote, good in zip(votes, passed, strict=True) if good)
    by_size = Counter(sizes.values())
    wins = {size: _win_probability(size, by_size, n, k) for size in by_size}
    # Summed in a fixed order: the same answers give the same float.
    return min(1.0, math.fsum(wins[size] * passes[vote] / size for vote, size in sizes.items()))


def _win_probability(size: int, by_size: Counter[int], n: int, k: int) -> float:
    """Probability that one given candidate of this size is chosen; `by_size` counts the candidates of each size."""
    others = by_size - Counter({size: 1})
    found = 0.0
    for times in range(1, min(size, k) + 1):
        ways = _ways_below(others, times, k - times)
        shares = 1.0 / np.arange(1, ways.shape[1] + 1)
        found += math.comb(size, times) * float(ways[k - times] @ shares)
    return found / math.comb(n, k)


def _ways_below(others: Counter[int], most: int, total: int) -> np.ndarray:
    """float64[total + 1, ties + 1]: ways to choose so many answers, so many of the others having `most` of them."""
    ties = min(total // most, others.total())
    ways = np.zeros((total + 1, ties + 1))
    ways[0, 0] = 1.0
    for size, count in sorted(others.items()):
        for _ in range(count):
            after = np.zeros_like(ways)
            for chosen in range(min(size, most, total) + 1):
                times = float(math.comb(size, chosen))
                if chosen < most:
                    after[chosen:] += times * ways[: total + 1 - chosen]
                elif ties:
                    after[chosen:, 1:] += times * ways[: total + 1 - chosen, :-1]
            ways = after
    return ways
