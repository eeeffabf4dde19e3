"""Two sides that judge the same answers in turns, and have to agree on each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from tools.bench import BenchmarkError

A = TypeVar("A")
Progress = Callable[[], None]
#: Judges all answers, in order.
Side = Callable[[Sequence[A]], Sequence[bool]]


def take_turns(
    sides: Mapping[str, Side[A]], given: Sequence[A], *, rounds: int, done: Progress
) -> dict[str, list[float]]:
    """Seconds that each side takes for all answers, a round each; every round begins with another side.

    Args:
      done: called after each side of a round.

    Raises:
      BenchmarkError: the sides disagree on an answer.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        verdicts = {}
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            begin = time.perf_counter()
            verdicts[name] = list(sides[name](given))
            seconds[name].append(time.perf_counter() - begin)
            done()
        _agree(verdicts)
    return seconds


def _agree(verdicts: Mapping[str, Sequence[bool]]) -> None:
    (first, expected), *others = verdicts.items()
    for name, found in others:
        if found != expected:
            differing = sum(one != other for one, other in zip(expected, found, strict=True))
            raise BenchmarkError(f"the {first} and a {name} disagree on {differing} of {len(expected)} answers")
