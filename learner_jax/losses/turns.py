"""Advantages of the turns of dialogs, from rewards that stand where they were earned; float64 on the host.

An outcome spread over a whole dialog gives every turn the same advantage, and with it the luck of all the others. Here
a turn is compared with the same turn of the group's other answers, by what followed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

#: By turn; dialogs differ in their number of turns.
ByTurn = Float[np.ndarray, "_"]


def turn_returns(rewards: ByTurn, discount: float) -> ByTurn:
    """G_k = r_k + discount G_{k+1}: what a turn and those behind it earned (Sutton & Barto, 2nd ed., equation 3.9)."""
    returns = np.array(rewards, np.float64)
    for turn in range(len(returns) - 2, -1, -1):
        returns[turn] += discount * returns[turn + 1]
    return returns


def turn_advantages(
    returns: Sequence[ByTurn], estimator: Callable[[np.ndarray], np.ndarray], *, fewest: int = 1
) -> list[ByTurn]:
    """Advantage of every turn of every dialog of a group: the estimator on the returns of the k-th turns alone.

    Turn-level credit as in MT-GRPO (arXiv 2505.11821, section 3.2), with returns in place of single rewards.

    Args:
      returns: of each dialog, by turn.
      estimator: from the returns of those dialogs that have a turn to their advantages.
      fewest: dialogs that the estimator can compare; where fewer have a turn, its advantages are 0.
    """
    advantages = [np.zeros(len(dialog)) for dialog in returns]
    for turn in range(max((len(dialog) for dialog in returns), default=0)):
        having = [index for index, dialog in enumerate(returns) if len(dialog) > turn]
        if len(having) < fewest:
            continue
        estimated = estimator(np.array([returns[index][turn] for index in having]))
        for index, value in zip(having, estimated, strict=True):
            advantages[index][turn] = value
    return advantages
