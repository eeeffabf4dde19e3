"""What training has cost each user's answer so far, and whether it may cost it more: the bound is for whole answers.

A user who comes while training has the engine waits for the end of a step that training filled. So an answer begins
with a delay. Training then stays out of its steps until the answer is long enough for that delay, and for more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass

#: steps that a request may have waited for before the engine took it in
_REMEMBERED = 8


@dataclass
class _Answer:
    """Seconds of one answer since it was asked for.

    Attributes:
      alone_s: that users alone would have taken.
      extra_s: that training added.
    """

    since_s: float
    alone_s: float = 0.0
    extra_s: float = 0.0

    def took(self, began_s: float, ended_s: float, training_share: float) -> None:
        seconds = max(0.0, ended_s - max(began_s, self.since_s))
        self.extra_s += training_share * seconds
        self.alone_s += (1 - training_share) * seconds


class UserDelays:
    """The answers of users that an engine works on.

    Args:
      slowdown: most that training may add to an answer, as a share of its time without training.
    """

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._answers: dict[str, _Answer] = {}
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=_REMEMBERED)

    def begin(self, name: str, since_s: float) -> None:
        """An answer is asked for, since a time that may lie before the last steps: an engine looks only between two."""
        answer = self._answers[name] = _Answer(since_s)
        for step in self._steps:
            answer.took(*step)

    def keep(self, names: Container[str]) -> None:
        """Forgets all other answers."""
        self._answers = {name: answer for name, answer in self._answers.items() if name in names}

    def took(self, began_s: float, ended_s: float, training_share: float) -> None:
        """Takes over a step of the engine.

        Args:
          training_share: of the step's time that training took, from 0 to 1; 1 if no user was in it.
        """
        step = began_s, ended_s, training_share
        self._steps.append(step)
        for answer in self._answers.values():
            answer.took(*step)

    def allow(self, alone_s: float, extra_s: float) -> bool:
        """Whether every answer bears training in its next step.

        Args:
          alone_s, extra_s: what the step is expected to take without training, and what training adds.
        """
        return all(
            answer.extra_s + extra_s <= self._slowdown * (answer.alone_s + alone_s) for answer in self._answers.values()
        )
