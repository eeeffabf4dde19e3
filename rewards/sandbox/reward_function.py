"""A user's reward: a plain function, called in a process that can be killed; what it gives is read strictly.

The process imports the function's module once, then forks for each answer: nothing that one answer leaves behind
reaches the next, and an answer that hangs costs no new start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import Door, raised
from rewards.sandbox.plain_json import from_json
from rewards.sandbox.user_code import call_runner, read_score, refused_hint

REWARD = Door(
    kind="reward",
    setting="task.reward",
    built_in={
        "exact": "rewards.tasks.exact_reward:exact_match",
        "math": "rewards.tasks.math_reward:final_answer",
    },
    positional=("prompt", "answer", "row"),
)


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
            return {"error": raised(error) + refused_hint(error, confined=settings["confined"])}

    return score
