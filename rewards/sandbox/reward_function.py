"""A user's reward: a plain function, called in a process that can be killed; what it gives is read strictly.

A function whose arguments are called prompts, answers and rows gets lists of one and gives a list of one: such a
function was written for batches, and need not be rewritten.

The process imports the function's module once, then forks for each answer: nothing that one answer leaves behind
reaches the next, and an answer that hangs costs no new start.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import Door, raised
from rewards.sandbox.plain_json import from_json
from rewards.sandbox.user_code import call_runner, read_score, refused_hint

_BATCHED = ("prompts", "answers", "rows")

#: Functions of users and of installed packages; what comes with Weir are verifiers.
REWARD = Door(kind="reward", setting="task.reward", positional=("prompt", "answer", "row"))


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from `{"prompt": text, "answer": text, "row": columns}` to fields of `rewards.sandbox.Verified`.

    Args:
      settings: "name" of the function, and whether it is "confined".

    Raises:
      DoorError: there is no such function.
    """
    function = _of_one(REWARD.open(settings["name"]))
    run = call_runner()

    def score(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return read_score(run(function, request["prompt"], request["answer"], from_json(request["row"])))
        except Exception as error:  # noqa: BLE001  (isolation: what a user's function raises is a failed verdict)
            return {"error": raised(error) + refused_hint(error, confined=settings["confined"])}

    return score


def _of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one answer, whether it was written for one or for lists."""
    try:
        named = tuple(inspect.signature(function).parameters)[:3]
    except (TypeError, ValueError):  # code in C may have none
        return function
    if named != _BATCHED:
        return function

    async def one(prompt: str, answer: str, row: Mapping[str, Any]) -> Any:
        given = function([prompt], [answer], [row])
        scores = await given if inspect.isawaitable(given) else given
        if hasattr(scores, "tolist"):  # an array of NumPy, torch or JAX
            scores = scores.tolist()
        if not isinstance(scores, list | tuple):
            raise TypeError(f"a reward of lists gave {scores!r:.100}, expected a list with one score for each answer")
        if len(scores) != 1:
            raise ValueError(f"a reward of lists gave {len(scores)} scores for 1 answer")
        return scores[0]

    return one
