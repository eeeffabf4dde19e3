"""Which arm of the serving fleet answers a conversation: by shares, and always the same for one conversation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

STABLE = "stable"
_RANGE = 2**64


class Arms:
    """Arms by their share of the conversations.

    A conversation stays in its arm while the shares stay. When a share grows, conversations move into that arm alone.

    Args:
      shares: name -> share, in the order in which they take up the range from 0 to 1; they sum to 1.

    Raises:
      ValueError: a share is negative, or they don't sum to 1.
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        self._shares = dict(shares or {STABLE: 1.0})
        if any(share < 0 for share in self._shares.values()) or abs(sum(self._shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares are {self._shares}, expected none below 0 and a sum of 1")

    def of(self, conversation: str) -> str:
        """The arm of a conversation."""
        point = int.from_bytes(hashlib.blake2b(conversation.encode(), digest_size=8).digest()) / _RANGE
        end = 0.0
        for name, share in self._shares.items():
            end += share
            if point < end:
                return name
        return next(name for name in reversed(self._shares) if self._shares[name] > 0)
