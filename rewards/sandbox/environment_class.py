"""The side of a user's environment that runs in processes: one class, whose steps are free of state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from learner_jax.runtime import Door, DoorError, raised, require_call
from rewards.sandbox.plain_json import from_json, to_json
from rewards.sandbox.tool_function import text_of
from rewards.sandbox.user_code import call_runner, read_score, refused_hint

ENVIRONMENT = Door(
    kind="environment",
    setting="task.environment",
    built_in={
        "agent": "rewards.environments.agent:agent",
        "feedback": "rewards.environments.feedback:feedback",
        "tools": "rewards.environments.tool_environment:tools",
        "user_simulator": "rewards.environments.user_simulator:user_simulator",
    },
)


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from a request to the fields of `rewards.sandbox.Verified`.

    A request holds the "row", the "answer", and the "state" after the answer before, which is null before the first.
    In place of an answer it may hold a "call": the "name" of a method that is a tool, and its "arguments".

    Args:
      settings: "name" of the class, and whether it is "confined".

    Raises:
      DoorError: there is no such class, or it lacks something.
    """
    environment = _made(settings["name"])
    run = call_runner()

    def step(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            before = request["state"]
            state = run(environment.reset, from_json(request["row"])) if before is None else from_json(before["of"])
            if (call := request.get("call")) is not None:
                method, arguments = getattr(environment, call["name"]), call["arguments"]
                return _read_result(run(lambda: method(state, **arguments)), state)
            return _read(run(environment.step, state, request["answer"]))
        except Exception as error:  # noqa: BLE001  (isolation: what a user's class raises is a failed verdict)
            return {"error": raised(error) + refused_hint(error, confined=settings["confined"])}

    return step


def _made(name: str) -> Any:
    what = f"task.environment {name!r}"
    made = ENVIRONMENT.load(name)
    require_call(made, (), (), what=what)
    try:
        environment = made()
    except Exception as error:
        raise DoorError(f"{what} can't be made: {raised(error)}") from error
    for method, takes in {"reset": ("row",), "step": ("state", "answer")}.items():
        if not hasattr(environment, method):
            raise DoorError(f"{what} has no method {method}({', '.join(takes)})")
        require_call(getattr(environment, method), takes, (), what=f"{what}: {method}")
    return environment


def _read(outcome: Any) -> dict[str, Any]:
    if not isinstance(outcome, tuple | list) or len(outcome) != 3:
        raise TypeError(f"step gave {outcome!r:.100}, expected (reward, observation or None, state)")
    reward, observation, state = outcome
    if observation is not None and (not isinstance(observation, str) or not observation):
        raise TypeError(f"an observation is {observation!r:.100}, expected text, or None at the end")
    return {**read_score(reward), "observation": observation, "state": _kept(state)}


def _read_result(result: Any, before: Any) -> dict[str, Any]:
    """What a tool gave: a result; or (result, state); or (result, state, reward)."""
    state, reward = before, 0.0
    if isinstance(result, tuple):
        if len(result) not in (2, 3):
            raise TypeError(f"a tool gave {result!r:.100}, expected text, (text, state) or (text, state, reward)")
        result, state, reward = (*result, 0.0)[:3]
    return {**read_score(reward), "observation": text_of(result), "state": _kept(state)}


def _kept(state: Any) -> dict[str, Any]:
    try:
        return {"of": to_json(state)}
    except TypeError as error:
        raise TypeError(f"the state can't be handed on: {error}") from None
