"""Short arithmetic, as bare sums and as small stories, with the right numbers for the verifier `math`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

_STORIES = (
    ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?", "+"),
    ("{name} has {a} {things} and gives away {b}. How many {things} are left?", "-"),
    ("{name} has {a} boxes with {b} {things} each. How many {things} are there in all?", "*"),
)
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry")
_THINGS = ("apples", "books", "coins", "stamps", "pens", "shells", "cards", "plums")
_SPOKEN = {"+": "plus", "-": "minus", "*": "times"}


def arithmetic(size: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows with question and answer.

    Args:
      size: number of rows.
      seed: of the problems; the same rows for the same seed.
    """
    for index in range(size):
        yield _row(random.Random(f"arithmetic {seed} {index}"))


def _row(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.5:
        return _sum(rng)
    story, sign = rng.choice(_STORIES)
    a, b = _numbers(rng, sign)
    question = story.format(name=rng.choice(_NAMES), things=rng.choice(_THINGS), a=a, b=b)
    return {"question": question, "answer": str(_value(a, sign, b))}


def _sum(rng: random.Random) -> dict[str, Any]:
    sign = rng.choice("+-*")
    a, b = _numbers(rng, sign)
    shown = rng.choice((sign, _SPOKEN[sign]))
    return {"question": f"What is {a} {shown} {b}? Answer in one short sentence.", "answer": str(_value(a, sign, b))}


def _numbers(rng: random.Random, sign: str) -> tuple[int, int]:
    """Two numbers whose sum, difference or product is small, and never negative."""
    if sign == "*":
        return rng.randint(2, 10), rng.randint(2, 10)
    a, b = rng.randint(2, 30), rng.randint(2, 20)
    return (max(a, b), min(a, b)) if sign == "-" else (a, b)


def _value(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]
