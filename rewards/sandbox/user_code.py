"""A user's code in the processes that score answers: how it is started, called, and read."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import selectors
from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import printable, raised
from rewards.contracts import MAX_PART_NAME, MAX_PARTS, REWARD_BOUNDS, TaskError, is_reward
from rewards.sandbox.killable_pool import VerifierPool, VerifierStartError

_SCORE = "score"
_REFUSED = "Operation not permitted"


def user_pool(module: str, name: str, *, confined: bool, deadline_s: float, num_workers: int) -> VerifierPool:
    """Processes that call a user's code, which was loaded once as a trial.

    An answer is scored once, however long it takes: a judge that is asked over the network may cost money.

    Args:
      module: whose `create` is given the "name" of the code, and whether it is "confined".

    Raises:
      TaskError: the code can't be loaded, or this machine can't confine it.
    """
    pool = VerifierPool(
        module,
        {"name": name, "confined": confined},
        num_workers=num_workers,
        deadline_s=deadline_s,
        slice_s=deadline_s,
        confinement="required" if confined else "none",
        folder=os.getcwd(),
    )
    try:
        pool.check()
    except VerifierStartError as error:
        advice = "; see task.score_confined" if "onfine" in error.said else ""
        raise TaskError(f"{error.said}{advice}") from None
    return pool


def call_runner() -> Callable[..., Any]:
    """Calls functions and waits for those that are async.

    The event loop is made here: a confined process may use its sockets, and make none.
    """
    loop = asyncio.SelectorEventLoop(selectors.PollSelector())

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        value = function(*arguments)
        return loop.run_until_complete(value) if inspect.isawaitable(value) else value

    return run


def read_score(value: Any) -> dict[str, Any]:
    """Score and parts of what a function gave: a number, or named numbers.

    Of named numbers the one called "score" is the score, and the others are its parts. Without it the score is their
    sum.

    Raises:
      TypeError, ValueError: it is something else, not finite, or beyond what a record holds.
    """
    if not isinstance(value, Mapping):
        return {_SCORE: _number(value, "a reward")}
    if len(value) > MAX_PARTS:
        raise ValueError(f"a reward is a dict of {len(value)} numbers, expected at most {MAX_PARTS}")
    parts = {}
    for key, part in value.items():
        name = printable(key)
        if len(name) > MAX_PART_NAME:
            raise ValueError(f"a part of a reward is called {name:.40}..., expected at most {MAX_PART_NAME} characters")
        parts[name] = _number(part, f"the part {name!r} of a reward")
    if not parts:
        raise ValueError("a reward is an empty dict, expected named numbers")
    score = parts.pop(_SCORE, None)
    return {_SCORE: math.fsum(parts.values()) if score is None else score, "parts": parts}


def refused_hint(error: BaseException, *, confined: bool) -> str:
    """What to change where a confined function was refused something."""
    chain: BaseException | None = error
    while confined and chain is not None:
        if isinstance(chain, PermissionError) or _REFUSED in raised(chain):
            return (
                "; answers are scored without files, network and programs: read files where the module is imported, "
                "or set task.score_confined to false"
            )
        chain = chain.__cause__ or chain.__context__
    return ""


def _number(value: Any, what: str) -> float:
    if hasattr(value, "item") and not isinstance(value, Mapping):  # a scalar of NumPy, torch or JAX
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{what} is {value!r:.100}, expected a number, True or False, or a dict of named numbers")
    if not is_reward(value):
        raise ValueError(f"{what} is {value!r:.40}, expected {REWARD_BOUNDS}")
    return float(value)
