"""Lists as parameters of statements: in pieces that every engine takes, and a mark for each item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import TypeVar

T = TypeVar("T")

#: Engines bound the parameters of a statement.
_PIECE = 500


def pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The list, cut into pieces that one statement takes."""
    return (items[start : start + _PIECE] for start in range(0, len(items), _PIECE))


def marks(items: Sized) -> str:
    """What stands for the items of a piece between the brackets of `IN ()`."""
    return ",".join("?" * len(items))
