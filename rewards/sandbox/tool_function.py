"""A user's function as a tool, in a process that can be killed: arguments in, text out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import load_object, raised
from rewards.sandbox.plain_json import from_json
from rewards.sandbox.user_code import call_runner, refused_hint

#: of a result; a process can hand back no more than 64 KiB, and JSON makes up to six bytes of a character
MAX_TEXT = 10_000


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from `{"arguments": {...}, "row": columns}` to fields of `rewards.sandbox.Verified`.

    An argument called `row` gets the columns of the problem.

    Args:
      settings: "name" of the function, and whether it is "confined".

    Raises:
      DoorError: there is no such function.
    """
    function = load_object(settings["name"], setting="task.episode.tools")
    takes_row = "row" in inspect.signature(function).parameters
    run = call_runner()

    def call(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            given = dict(request["arguments"])
            if takes_row:
                given["row"] = from_json(request["row"])
            return {"score": 0.0, "observation": text_of(run(lambda: function(**given)))}
        except Exception as error:  # noqa: BLE001  (isolation: what a tool raises is told to the policy)
            return {"error": raised(error) + refused_hint(error, confined=settings["confined"])}

    return call


def text_of(value: Any) -> str:
    """A result as text, never empty.

    Raises:
      TypeError: it is nothing that a policy could be shown.
    """
    if value is None or not isinstance(value, str | int | float | bool | list | tuple | dict):
        raise TypeError(f"a tool gave {value!r:.100}, expected text, a number, a list or a dict")
    return (str(value) if not isinstance(value, str) else value)[:MAX_TEXT] or "(no result)"
