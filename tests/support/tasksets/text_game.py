"""An environment of `gymnasium` whose observations and actions are texts: guess a number."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Discrete, Text


class Guess(gymnasium.Env):
    """Says higher or lower; three guesses."""

    observation_space = Text(max_length=100)
    action_space = Text(max_length=10)

    def __init__(self, most: int = 9, in_numbers: bool = False) -> None:
        self._most = most
        if in_numbers:
            self.action_space = Discrete(most)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._secret, self._left = int(self.np_random.integers(1, self._most)), 3
        return f"Guess a number below {self._most}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        guess = int(action) if action.isdecimal() else 0
        if guess == self._secret:
            return "Right.", 1.0, True, False, {"secret": self._secret}
        return ("Higher." if guess < self._secret else "Lower."), -0.1, False, self._left == 0, {}


gymnasium.register("Guess-v0", entry_point=Guess)
