"""Texts that are nearly the same: found by MinHash among many, then compared word by word.

Sources: A. Broder, On the Resemblance and Containment of Documents, 1997 (MinHash of shingles); P. Indyk, R. Motwani,
Approximate Nearest Neighbors, 1998 (bands of hashes). Nothing is guessed: a pair that is told has been compared. A pair
as alike as the threshold is missed with a probability below 1 in 1000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.data.orders import stable_hash

#: Shared part of all runs of words from which two texts count as nearly the same.
THRESHOLD = 0.8
_WORDS = 3
_BANDS, _BAND_HASHES = 16, 4
_MERSENNE = np.uint64((1 << 61) - 1)
#: Texts of one band that a new one is compared with: rows made by one template would be compared all with all.
_COMPARED = 8
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Twin:
    """A text that is nearly the same as an earlier one.

    Attributes:
      number, of: places of the text, and of the earlier one.
      similarity: Jaccard index of their runs of three words, 1 for the same words.
    """

    number: int
    of: int
    similarity: float


def twins(texts: Sequence[str], *, groups: Sequence[str] = (), threshold: float = THRESHOLD) -> Iterator[Twin]:
    """For each text that has one, the most similar of the earlier texts that it was compared with, one in each group.

    Case and punctuation do not count. Texts without a word have no twin.

    Args:
      groups: of each text, such as its split; all are of one if empty.
    """
    buckets: dict[tuple[str, int, bytes], list[int]] = {}
    shingles: list[frozenset[int]] = []
    named = list(dict.fromkeys(groups)) or [""]
    for number, text in enumerate(texts):
        own = _shingles(text)
        shingles.append(own)
        bands = list(_bands(own)) if own else []
        for group in named:
            near = {other for band in bands for other in buckets.get((group, *band), ())}
            found = [Twin(number, other, _similarity(own, shingles[other])) for other in near]
            best = max(found, key=_rank, default=None)
            if best is not None and best.similarity >= threshold:
                yield best
        for band in bands:
            members = buckets.setdefault((groups[number] if groups else "", *band), [])
            if len(members) < _COMPARED:
                members.append(number)


def _rank(twin: Twin) -> tuple[float, int]:
    return twin.similarity, -twin.of


def _shingles(text: str) -> frozenset[int]:
    words = _WORD.findall(text.casefold())
    runs = zip(*(words[start:] for start in range(min(_WORDS, len(words)))), strict=False)
    return frozenset(stable_hash("shingle", *run) for run in runs)


def _similarity(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


def _bands(shingles: frozenset[int]) -> Iterator[tuple[int, bytes]]:
    """Pieces of a text's MinHash; alike texts are likely to share one."""
    hashes = np.fromiter(shingles, np.uint64, len(shingles)) >> np.uint64(3)
    # Odd multiples modulo 2**64 and an exclusive or stand for random permutations.
    mixed = (hashes[:, None] ^ _MASKS) * _FACTORS
    least = (mixed >> np.uint64(7)).min(axis=0).reshape(_BANDS, _BAND_HASHES)
    for number, band in enumerate(least):
        yield number, band.tobytes()


def _drawn(name: str) -> np.ndarray:
    count = _BANDS * _BAND_HASHES
    return np.array([stable_hash("minhash", name, number) for number in range(count)], np.uint64)


_MASKS, _FACTORS = _drawn("mask") & _MERSENNE, _drawn("factor") | np.uint64(1)
