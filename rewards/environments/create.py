"""From a task's settings to the environment that plays it."""

from __future__ import annotations

import inspect

from learner_jax.runtime import DoorError, WeirError, raised, require_call
from rewards.contracts import Environment, Task
from rewards.environments.own_environment import OwnEnvironment
from rewards.sandbox import ENVIRONMENT
from rewards.settings import TaskSettings

_PROTOCOL = ("version", "max_turns", "reset", "step")


def create_environment(task: Task, settings: TaskSettings) -> Environment:
    """The environment that the settings name.

    A function, or a class with `version` and `max_turns`, is called with (task, settings) and gives an environment as
    `rewards.contracts` has it. Any other class is played by `OwnEnvironment`.

    Raises:
      DoorError: there is no such code, or it makes no environment.
      TaskError: a class can't be loaded in the processes that play it.
    """
    what = f"task.environment {settings.environment!r}"
    found = ENVIRONMENT.load(settings.environment)
    if not inspect.isfunction(found) and not (hasattr(found, "version") and hasattr(found, "max_turns")):
        return OwnEnvironment(settings, task_version=task.version)
    require_call(found, ("task", "settings"), (), what=what)
    try:
        environment = found(task, settings)
    except WeirError:
        raise
    except Exception as error:
        raise DoorError(f"{what} made no environment: {raised(error)}") from error
    if lacking := [name for name in _PROTOCOL if not hasattr(environment, name)]:
        raise DoorError(
            f"{what} made a {type(environment).__name__} without {', '.join(lacking)}; expected what "
            f"rewards.contracts.Environment has"
        )
    return environment
