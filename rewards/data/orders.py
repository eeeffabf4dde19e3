"""Orders of numbers without a list: a keyed permutation of 0 .. n-1 of which any place is known at once."""

from __future__ import annotations

import hashlib

_MASK = (1 << 64) - 1
_ROUNDS = 6


def stable_hash(*parts: object) -> int:
    """64-bit hash of the parts' text, the same in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Permutation:
    """A permutation of `range(size)`, the same on every machine for the same key.

    A Feistel network over the next power of four, walked until it comes out below `size` (Black and Rogaway, Ciphers
    with Arbitrary Finite Domains, 2002): no two places give the same number, and none is left out. It shuffles; it
    keeps no secret.

    Args:
      key: 64 bits.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} numbers, expected at least 1")
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._low = (1 << self._half) - 1
        self._keys = [_mixed((key + 0x9E3779B97F4A7C15 * (number + 1)) & _MASK) for number in range(_ROUNDS)]

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of {self.size}")
        number = place
        while True:
            number = self._once(number)
            if number < self.size:
                return number

    def _once(self, number: int) -> int:
        left, right = number >> self._half, number & self._low
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._low)
        return left << self._half | right


def _mixed(value: int) -> int:
    """The finalizer of splitmix64."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
