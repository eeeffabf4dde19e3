"""A user's reward: a plain function, called in a process that can be killed; what it gives is read strictly.

The process imports the function's module once, then forks for each answer: nothing that one answer leaves behind
reaches the next, and an answer that hangs costs no new start.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import selectors
from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import Door, raised
from rewards.contracts import is_reward
from rewards.tasks.plain_json import from_json

REWARD = Door(
    kind="reward",
    setting="task.reward",
    built_in={"math": "rewards.tasks.math_reward:final_answer"},
    positional=("prompt", "answer", "row"),
)
_SCORE = "score"
_REFUSED = "Operation not permitted"


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from `{"prompt": text, "answer": text, "row": columns}` to fields of `rewards.sandbox.Verified`.

    Args:
      settings: "name" of the function, and whether it is "confined".

    Raises:
      DoorError: there is no such function.
    """
    function = REWARD.open(settings["name"])
    run = call_runner()

    def score(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return read_score(run(function, request["prompt"], request["answer"], from_json(request["row"])))
        except Exception as error:  # noqa: BLE001  (isolation: what a user's function raises is a failed verdict)
            return {"error": raised(error) + hint(error, confined=settings["confined"])}

    return score


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
      TypeError, ValueError: it is something else, or not finite.
    """
    if not isinstance(value, Mapping):
        return {_SCORE: _number(value, "a reward")}
    parts = {str(name): _number(part, f"the part {str(name)!r} of a reward") for name, part in value.items()}
    if not parts:
        raise ValueError("a reward is an empty dict, expected named numbers")
    score = parts.pop(_SCORE, None)
    return {_SCORE: math.fsum(parts.values()) if score is None else score, "parts": parts}


def hint(error: BaseException, *, confined: bool) -> str:
    """What to change where a confined function was refused something."""
    chain: BaseException | None = error
    while confined and chain is not None:
        if isinstance(chain, PermissionError) or _REFUSED in str(chain):
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
        raise ValueError(f"{what} is {value}, expected a finite number that fits into a float32")
    return float(value)
