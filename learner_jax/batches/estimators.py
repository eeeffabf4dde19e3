"""The advantage estimator that a run names: one of Weir's, or a function from outside whose results are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from learner_jax.losses import dr_grpo, grpo, rloo
from learner_jax.runtime import DoorError
from learner_jax.settings import ESTIMATOR_DOOR, OTHER_ESTIMATORS, AdvantageSettings


def estimator_of(settings: AdvantageSettings) -> str | Callable[[np.ndarray], np.ndarray]:
    """The name of one of Weir's estimators, or a function of a group's rewards.

    Raises:
      DoorError: there is no such function; or the returned function, when it is called, fails, or gives something other
        than one finite number for each answer.
    """
    name = settings.estimator
    if name in (*ESTIMATOR_DOOR.built_in, *OTHER_ESTIMATORS):
        return name
    function = ESTIMATOR_DOOR.open(name)

    def checked(rewards: np.ndarray) -> np.ndarray:
        return _checked(function, f"{ESTIMATOR_DOOR.setting} {name!r}", rewards)

    return checked


def function_of(settings: AdvantageSettings) -> Callable[[np.ndarray], np.ndarray]:
    """One of Weir's estimators that take the rewards of a group, or one from outside, as `estimator_of`."""
    chosen = estimator_of(settings)
    return _OF_A_GROUP[chosen] if isinstance(chosen, str) else chosen


_OF_A_GROUP: dict[str, Callable[[np.ndarray], np.ndarray]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def _checked(function: Callable[..., Any], what: str, rewards: np.ndarray) -> np.ndarray:
    given = np.array(rewards, np.float64)
    try:
        found = np.asarray(function(given), np.float64)
    except Exception as error:
        raise DoorError(f"{what} failed on the rewards {rewards.tolist()}: {type(error).__name__}: {error}") from error
    if found.shape != rewards.shape:
        raise DoorError(f"{what} returned advantages of shape {found.shape}, expected {rewards.shape}: one per answer")
    if not np.isfinite(found).all():
        raise DoorError(f"{what} returned {found.tolist()} for the rewards {rewards.tolist()}, expected finite numbers")
    return found
