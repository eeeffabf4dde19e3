"""A user's program that plays an episode: called in a process of its own, which can be killed.

The process imports the program's module once, then forks for each episode: what one leaves behind reaches no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import Door, raised
from rewards.sandbox.plain_json import from_json
from rewards.sandbox.user_code import call_runner, read_score

AGENT = Door(kind="agent", setting="task.episode.agent", positional=("base_url", "row"))


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from `{"base_url": address, "row": columns}` to fields of `rewards.sandbox.Verified`.

    Its `state` says whether the program gave a reward.

    Args:
      settings: "name" of the program.

    Raises:
      DoorError: there is no such program.
    """
    function = AGENT.open(settings["name"])
    run = call_runner()

    def play(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            gave = run(function, request["base_url"], from_json(request["row"]))
            return {"score": 0.0, "state": False} if gave is None else {**read_score(gave), "state": True}
        except Exception as error:  # noqa: BLE001  (isolation: what a user's program raises is a failed verdict)
            return {"error": raised(error)}

    return play
