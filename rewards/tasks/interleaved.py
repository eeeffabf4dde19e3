"""Which of several sources gives the next prompt: a fixed pattern, exact over a period, known for any index at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

#: Weights are taken as fractions with denominators up to this.
_MAX_DENOMINATOR = 10**6


def whole_shares(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in proportion to the weights, each above 0: [0.75, 0.25] gives [3, 1]."""
    fractions = [Fraction(str(weight)).limit_denominator(_MAX_DENOMINATOR) for weight in weights]
    fractions = [fraction or Fraction(1, _MAX_DENOMINATOR) for fraction in fractions]
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * common) for fraction in fractions]
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]


def place(index: int, shares: Sequence[int]) -> tuple[int, int]:
    """(source, index within that source) of an index in the mixture.

    Of every sum(shares) prompts in a row, beginning at a multiple of it, each source gives its share, and they are
    spread evenly. The indices within a source rise one by one: an epoch of a source begins when the one before is over.

    The shares are cut off one source at a time. Of the first k prompts of those that are left, the first source has
    floor(k * share / total), and the others have the rest.
    """
    total = sum(shares)
    for source, share in enumerate(shares[:-1]):
        before = index * share // total
        if (index + 1) * share // total > before:
            return source, before
        index, total = index - before, total - share
    return len(shares) - 1, index
